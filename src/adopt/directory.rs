//! Directories and files of somebody else: read only, no symbolic link followed, nothing read that is no file.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    os::{fd::OwnedFd, unix::ffi::OsStringExt},
    path::Path,
    sync::Arc,
};

use rustix::{
    fs::{Dir, FileType, Mode, OFlags, open, openat},
    io::Errno,
};

use crate::{Error, ErrorKind, Result};

/// An open directory. What it holds is opened relative to it, so that nobody can put a link in between.
#[derive(Clone)]
pub(super) struct Directory(Arc<OwnedFd>);

/// One thing in a directory.
pub(super) struct Entry {
    pub(super) name: OsString,
    pub(super) is: Is,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Is {
    Directory,
    Link,
    /// A file, or a thing that is found out to be none when it is opened.
    File,
    Other,
}

/// Neither follows a link nor waits for whoever should open the other end.
const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK);

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Self> {
        // By components, since `link/` would follow the link.
        let path: std::path::PathBuf = path.components().collect();
        match open(&path, READ | OFlags::DIRECTORY, Mode::empty()) {
            Ok(handle) => Ok(Self(Arc::new(handle))),
            Err(error) => Err(failed(&path, "can't be opened", error)),
        }
    }

    /// A directory in it; none if there is nothing of this name.
    pub(super) fn directory(&self, name: &str) -> Result<Option<Self>, &'static str> {
        match openat(&*self.0, name, READ | OFlags::DIRECTORY, Mode::empty()) {
            Ok(handle) => Ok(Some(Self(Arc::new(handle)))),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP) => Err(LINK),
            Err(Errno::NOTDIR) => Err("it should be a directory, and is none or a symbolic link"),
            Err(_) => Err("the directory can't be opened"),
        }
    }

    /// What it holds, sorted by name.
    pub(super) fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in Dir::read_from(&*self.0)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                let is = match entry.file_type() {
                    FileType::Directory => Is::Directory,
                    FileType::Symlink => Is::Link,
                    FileType::RegularFile | FileType::Unknown => Is::File,
                    _ => Is::Other,
                };
                entries.push(Entry { name: OsString::from_vec(name.to_vec()), is });
            }
        }
        entries.sort_unstable_by(|left, right| left.name.cmp(&right.name));
        Ok(entries)
    }

    /// All of a file in it, but no more than so many bytes.
    pub(super) fn read(&self, name: &OsString, limit: usize) -> Result<Vec<u8>, &'static str> {
        let handle = openat(&*self.0, name, READ, Mode::empty()).map_err(|error| match error {
            Errno::LOOP => LINK,
            Errno::NOENT => "it is gone",
            Errno::ACCESS | Errno::PERM => "this user may not read it",
            _ => "it can't be opened",
        })?;
        let file = File::from(handle);
        let found = file.metadata().map_err(|_| UNREADABLE)?;
        if !found.is_file() {
            return Err(NO_FILE);
        }
        let mut bytes = Vec::new();
        file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(|_| UNREADABLE)?;
        if bytes.len() > limit { Err(TOO_LARGE) } else { Ok(bytes) }
    }
}

/// A file that the caller names.
pub(super) fn open_file(path: &Path) -> Result<File> {
    let handle = open(path, READ, Mode::empty()).map_err(|error| failed(path, "can't be opened", error))?;
    let file = File::from(handle);
    match file.metadata() {
        Ok(found) if found.is_file() => Ok(file),
        _ => Err(Error::new(ErrorKind::InvalidValue, format!("{} is no regular file", path.display()))),
    }
}

pub(super) const LINK: &str = "a symbolic link, which is not followed";
pub(super) const NO_FILE: &str = "it is no regular file";
const UNREADABLE: &str = "it can't be read";
const TOO_LARGE: &str = "the file is larger than what may be in it";

#[cold]
fn failed(path: &Path, what: &str, error: Errno) -> Error {
    let kind = match error {
        Errno::NOENT => ErrorKind::NotFound,
        Errno::ACCESS | Errno::PERM => ErrorKind::Denied,
        Errno::LOOP | Errno::NOTDIR => ErrorKind::InvalidValue,
        _ => ErrorKind::Unavailable,
    };
    let what = match error {
        Errno::NOENT => "is not there",
        Errno::LOOP | Errno::NOTDIR => "is a symbolic link, or leads through a file; name the thing itself",
        _ => what,
    };
    Error::new(kind, format!("{} {what}", path.display())).with_source(io::Error::from(error))
}
