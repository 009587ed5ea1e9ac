//! Syncs packs: libgit2 syncs those that it writes from our objects, but not those that it fetches.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use crate::{Result, backend::local::directory::io_failed};

/// The packs of a repository that are known to be on disk.
pub(super) struct Packs {
    directory: PathBuf,
    synced: HashSet<OsString>,
}

impl Packs {
    /// For the repository with this `.git`.
    pub(super) fn new(git: &Path) -> Self {
        Self { directory: git.join("objects/pack"), synced: HashSet::new() }
    }

    /// Syncs new packs; at first all, because a killed process may have left unsynced ones.
    pub(super) fn sync(&mut self) -> Result<()> {
        self.sync_new().map_err(|error| io_failed(&self.directory, "can't be synced", error))
    }

    fn sync_new(&mut self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if self.synced.contains(&entry.file_name()) {
                continue;
            }
            match File::open(entry.path()).and_then(|file| file.sync_all()) {
                Ok(()) => drop(self.synced.insert(entry.file_name())),
                // `git gc` has moved its content into another pack.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        File::open(&self.directory)?.sync_all()
    }
}
