//! What each backend promises beyond the contract.

#[cfg(all(feature = "conformance", any(feature = "mongodb", feature = "postgres")))]
mod counters;
#[cfg(feature = "file")]
mod file;
#[cfg(feature = "file")]
mod file_copies;
#[cfg(feature = "file")]
mod file_formats;
#[cfg(feature = "file")]
mod file_lists;
#[cfg(feature = "file")]
mod file_sharing;
#[cfg(feature = "file")]
mod file_watch;
#[cfg(feature = "git")]
mod git;
#[cfg(all(feature = "conformance", any(feature = "mongodb", feature = "postgres")))]
mod lease;
#[cfg(feature = "memory")]
mod memory;
#[cfg(all(feature = "conformance", feature = "mongodb"))]
mod mongodb;
#[cfg(all(feature = "conformance", feature = "postgres"))]
mod postgres;
#[cfg(all(feature = "conformance", feature = "redis"))]
mod redis;
