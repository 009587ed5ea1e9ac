//! What each backend has, and promises, beyond the contract.

#[cfg(feature = "file")]
mod file;
#[cfg(feature = "git")]
mod git;
#[cfg(feature = "memory")]
mod memory;
#[cfg(feature = "mongodb")]
mod mongodb;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
