//! A file that is there when it is complete, and is nobody else's.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process,
};

/// A file that is written beside its place. Dropped before it is [kept](Aside::keep), it is gone.
pub(crate) struct Aside {
    file: File,
    aside: PathBuf,
    place: PathBuf,
    is_kept: bool,
}

impl Aside {
    /// Makes the file, for its owner only. What is at its place stays there until it is replaced.
    pub(crate) fn create(place: &Path) -> io::Result<Self> {
        let is_other = |found: fs::Metadata| !found.is_file() && !found.is_symlink();
        if place.symlink_metadata().is_ok_and(is_other) {
            // A directory, or a device: root would put a file in the place of `/dev/null`.
            return Err(io::Error::other("this is no file; `-` and a redirection write anywhere"));
        }
        let name = place.file_name().ok_or_else(|| io::Error::other("this is no name of a file"))?;
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.tmp", process::id()));
        let aside = place.with_file_name(hidden);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        Ok(Self { file, aside, place: place.to_owned(), is_kept: false })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Puts it in its place, in place of what is there, when all of it is on disk.
    pub(crate) fn keep(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.aside, &self.place)?;
        self.is_kept = true;
        let folder = self.place.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.is_kept {
            // Nothing more can be done about it here.
            let _ = fs::remove_file(&self.aside);
        }
    }
}
