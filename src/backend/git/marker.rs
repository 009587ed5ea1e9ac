//! Marker files: record on disk that locks of the repository may belong to this process.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    Result,
    backend::local::directory::{io_failed, remove},
};

/// A file that exists while this process works.
pub(super) struct Marker {
    path: PathBuf,
    /// The number of users: the file is removed with the last one.
    active: Mutex<usize>,
}

impl Marker {
    pub(super) fn new(path: PathBuf) -> Arc<Self> {
        Arc::new(Self { path, active: Mutex::default() })
    }

    /// Creates the file, until the last guard is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Result<MarkerGuard> {
        let mut active = self.active();
        if *active == 0 {
            let made =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.path);
            made.map_err(|error| io_failed(&self.path, "can't be written", error))?;
        }
        *active += 1;
        Ok(MarkerGuard(self.clone()))
    }

    /// Whether the file exists: at the start, because a process was killed.
    pub(super) fn exists(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok()
    }

    /// Removes the file.
    pub(super) fn clear(&self) -> Result<()> {
        remove(&self.path)
    }

    fn active(&self) -> MutexGuard<'_, usize> {
        // Each change is complete, so a poisoned lock is safe to use.
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it exists, locks in the repository may belong to this process.
pub(super) struct MarkerGuard(Arc<Marker>);

impl Drop for MarkerGuard {
    fn drop(&mut self) {
        let mut active = self.0.active();
        *active -= 1;
        if *active == 0 {
            // If the file stays, the next start only looks for locks that do not exist.
            drop(self.0.clear());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_guard_removes_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let marker = Marker::new(directory.path().join("writing"));
        let outer = marker.begin().unwrap();
        drop(marker.begin().unwrap());
        assert!(marker.exists());
        drop(outer);
        assert!(!marker.exists());
    }
}
