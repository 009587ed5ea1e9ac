//! The directory of a store.

use std::{io, path::Path};

use super::atomic_file;
use crate::{Error, Result};

/// Removes a file that may be missing.
pub(in crate::backend) fn remove(path: &Path) -> Result<()> {
    atomic_file::remove_if_exists(path).map_err(|error| io_failed(path, "can't be removed", error))
}

/// An error of the file system at this path.
#[cold]
pub(in crate::backend) fn io_failed(path: &Path, what: &str, error: io::Error) -> Error {
    Error::io(format!("{} {what}", path.display()), error)
}
