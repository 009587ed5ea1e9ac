//! Packs on disk: libgit2 syncs those that it makes of our objects, and not those that it fetches.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::repository::at;
use crate::Result;

/// The packs of a repository, and which of them are known to be on disk.
pub(super) struct Packs {
    directory: PathBuf,
    synced: HashSet<OsString>,
}

impl Packs {
    /// Of the repository whose `.git` this is.
    pub(super) fn new(git: &Path) -> Self {
        Self { directory: git.join("objects/pack"), synced: HashSet::new() }
    }

    /// Syncs what is new; the first time everything, since a process that was killed may have left what is
    /// not on disk.
    pub(super) fn sync(&mut self) -> Result<()> {
        self.sync_new().map_err(|error| at(&self.directory, "can't be synced", error))
    }

    fn sync_new(&mut self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if self.synced.contains(&entry.file_name()) {
                continue;
            }
            match File::open(entry.path()).and_then(|file| file.sync_all()) {
                Ok(()) => drop(self.synced.insert(entry.file_name())),
                // `git gc` has put its content into another one.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        File::open(&self.directory)?.sync_all()
    }
}
