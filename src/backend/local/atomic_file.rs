//! Files that are replaced as a whole.

use std::{fs, io, path::Path};

/// Removes a file that may be missing.
pub(crate) fn remove_if_exists(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
