//! Marker files: what says on disk, while something is done, that locks of the repository may be ours.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::place::{at, remove};
use crate::Result;

/// A file that is there as long as somebody of this process is at it.
pub(super) struct Marker {
    path: PathBuf,
    /// How many are: one that ends does not end the others.
    at_it: Mutex<usize>,
}

impl Marker {
    pub(super) fn new(path: PathBuf) -> Arc<Self> {
        Arc::new(Self { path, at_it: Mutex::default() })
    }

    /// Makes the file, until the last result is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Result<Writing> {
        let mut at_it = self.at_it();
        if *at_it == 0 {
            let made =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.path);
            made.map_err(|error| at(&self.path, "can't be written", error))?;
        }
        *at_it += 1;
        Ok(Writing(self.clone()))
    }

    /// Whether a process died at it.
    pub(super) fn is_left(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok()
    }

    /// Forgets that one did.
    pub(super) fn clear(&self) -> Result<()> {
        remove(&self.path)
    }

    fn at_it(&self) -> MutexGuard<'_, usize> {
        // Each change of it is whole.
        self.at_it.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it exists, locks in the repository may be ours.
pub(super) struct Writing(Arc<Marker>);

impl Drop for Writing {
    fn drop(&mut self) {
        let mut at_it = self.0.at_it();
        *at_it -= 1;
        if *at_it == 0 {
            // If it stays, the next start looks for locks in vain.
            drop(self.0.clear());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_ends_it() {
        let folder = tempfile::tempdir().unwrap();
        let marker = Marker::new(folder.path().join("writing"));
        let outer = marker.begin().unwrap();
        drop(marker.begin().unwrap());
        assert!(marker.is_left());
        drop(outer);
        assert!(!marker.is_left());
    }
}
