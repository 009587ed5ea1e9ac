//! The directory of a store.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::atomic_file::remove_if_exists;
use crate::{Error, ErrorKind, Result};

/// The absolute path of a store's directory, and whether it exists. Refuses a link and any other file.
pub(crate) fn locate(path: &Path) -> Result<(PathBuf, bool)> {
    // Absolute, because the working directory may change; by components, because `link/` would follow the
    // link.
    let path: PathBuf = std::path::absolute(path)
        .map_err(|error| io_failed(path, "can't be accessed", error))?
        .components()
        .collect();
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_dir() => Ok((path, true)),
        Ok(found) if found.is_symlink() => {
            Err(refused(&path, "is a symbolic link; name the directory itself"))
        }
        Ok(_) => Err(refused(&path, "is not a directory")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((path, false)),
        Err(error) => Err(io_failed(&path, "can't be accessed", error)),
    }
}

/// Removes a file that may be missing.
pub(crate) fn remove(path: &Path) -> Result<()> {
    remove_if_exists(path).map_err(|error| io_failed(path, "can't be removed", error))
}

#[cold]
pub(crate) fn refused(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::InvalidValue, format!("{} {why}", path.display()))
}

/// An error of the file system at this path.
#[cold]
pub(crate) fn io_failed(path: &Path, what: &str, error: io::Error) -> Error {
    Error::io(format!("{} {what}", path.display()), error)
}
