//! What the backends on the local file system share, and a copy's checkpoint with them.

pub(crate) mod atomic_file;
#[cfg(any(feature = "file", feature = "git"))]
pub(super) mod directory;
#[cfg(any(feature = "file", feature = "git"))]
pub(super) mod thread;
