//! Files, directories and threads, for the backends on the local file system and for the checkpoint of a
//! copy.

pub(crate) mod atomic_file;
#[cfg(any(feature = "file", feature = "git"))]
pub(super) mod directory;
#[cfg(any(feature = "file", feature = "git"))]
pub(super) mod thread;
