//! One directory per backend. No backend uses another backend or a layer.

mod feed;
#[cfg(feature = "file")]
pub(crate) mod file;
#[cfg(feature = "git")]
pub(crate) mod git;
pub(crate) mod local;
#[cfg(feature = "memory")]
pub(crate) mod memory;
#[cfg(feature = "mongodb")]
pub(crate) mod mongodb;
mod plan_step;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "redis")]
pub(crate) mod redis;
#[cfg(any(feature = "mongodb", feature = "postgres", feature = "redis"))]
mod remote;
#[cfg(any(feature = "file", feature = "git", feature = "memory"))]
mod snapshot;
