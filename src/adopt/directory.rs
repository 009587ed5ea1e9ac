//! Directories and files of another program: read-only, without symbolic links that lead out, and only
//! regular files.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    os::{fd::OwnedFd, unix::ffi::OsStringExt},
    path::{Component, Path},
    sync::Arc,
};

use rustix::{
    fs::{Dir, FileType, Mode, OFlags, fstat, open, openat, readlinkat},
    io::Errno,
};

use crate::{Error, ErrorKind, Result};

/// An open directory. Entries are opened relative to it, so that no link can be inserted into its path.
#[derive(Clone)]
pub(super) struct Directory(Arc<OwnedFd>);

/// An entry of a directory.
pub(super) struct Entry {
    pub(super) name: OsString,
    pub(super) kind: EntryKind,
}

/// The kind of an entry; of a link, the kind of its target.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryKind {
    Directory,
    /// A link that is not followed, and why.
    Link(&'static str),
    /// A file, unless opening it shows something else.
    File,
    Other,
}

/// Neither follows links nor waits for the other end of a pipe.
const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK);

/// The most links in one path, as on Linux.
const MAX_LINKS: usize = 40;

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Self> {
        // By components, since `link/` would follow the link.
        let path: std::path::PathBuf = path.components().collect();
        match open(&path, READ | OFlags::DIRECTORY, Mode::empty()) {
            Ok(handle) => Ok(Self(Arc::new(handle))),
            Err(error) => Err(failed(&path, "can't be opened", error)),
        }
    }

    /// Opens a path within the directory. Links that stay within it are followed, such as those of a mounted
    /// Kubernetes secret. Opens one component at a time, relative to the last one, which works on every
    /// kernel.
    fn open_within(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let (mut above, mut links) = (Vec::new(), 0);
        let mut left: Vec<OsString> = path.iter().rev().map(OsStr::to_owned).collect();
        while let Some(name) = left.pop() {
            match Path::new(&name).components().next() {
                Some(Component::Normal(_)) => {}
                Some(Component::CurDir) => continue,
                Some(Component::ParentDir) if above.pop().is_some() => continue,
                _ => return Err(OUT),
            }
            let here = above.last().unwrap_or(&*self.0);
            match openat(here, &name, READ, Mode::empty()) {
                Ok(found) => above.push(found),
                // The errors of NOFOLLOW for a link, on Linux and FreeBSD.
                Err(Errno::LOOP | Errno::MLINK) if links < MAX_LINKS => {
                    links += 1;
                    let target = OsString::from_vec(readlinkat(here, &name, Vec::new())?.into_bytes());
                    left.extend(Path::new(&target).iter().rev().map(OsStr::to_owned));
                }
                Err(error) => return Err(error),
            }
        }
        above.pop().map_or_else(|| openat(&*self.0, ".", READ, Mode::empty()), Ok)
    }

    /// The entries of a subdirectory, sorted by name; `None` if it does not exist.
    pub(super) fn entries(&self, directory: &Path) -> Result<Option<Vec<Entry>>, &'static str> {
        let handle = match self.open_within(directory) {
            Ok(handle) => handle,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(why(error)),
        };
        if !is_directory(&handle) {
            return Err("it should be a directory, but is not");
        }
        let mut entries = Vec::new();
        for entry in Dir::read_from(handle).map_err(|_| UNREADABLE)? {
            let entry = entry.map_err(|_| UNREADABLE)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                let name = OsString::from_vec(name.to_vec());
                let kind = match entry.file_type() {
                    FileType::Directory => EntryKind::Directory,
                    FileType::Symlink => match self.open_within(&directory.join(&name)) {
                        Ok(handle) if is_directory(&handle) => EntryKind::Directory,
                        Ok(_) => EntryKind::File,
                        Err(error) => EntryKind::Link(why(error)),
                    },
                    FileType::RegularFile | FileType::Unknown => EntryKind::File,
                    _ => EntryKind::Other,
                };
                entries.push(Entry { name, kind });
            }
        }
        entries.sort_unstable_by(|left, right| left.name.cmp(&right.name));
        Ok(Some(entries))
    }

    /// The contents of a file, unless it is longer than the limit.
    pub(super) fn read(&self, path: &Path, limit: usize) -> Result<Vec<u8>, &'static str> {
        let file = File::from(self.open_within(path).map_err(why)?);
        let found = file.metadata().map_err(|_| UNREADABLE)?;
        if !found.is_file() {
            return Err(NOT_A_FILE);
        }
        let mut bytes = Vec::new();
        file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(|_| UNREADABLE)?;
        if bytes.len() > limit { Err(TOO_LARGE) } else { Ok(bytes) }
    }
}

fn is_directory(handle: &OwnedFd) -> bool {
    fstat(handle).is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory)
}

/// The error for a path that leads out of the directory.
const OUT: Errno = Errno::XDEV;

/// Why an entry can't be opened.
fn why(error: Errno) -> &'static str {
    match error {
        OUT => LINK,
        Errno::NOENT => "missing, or a symbolic link to a missing file",
        Errno::LOOP | Errno::MLINK => "a symbolic link in a loop",
        Errno::NOTDIR => "a symbolic link through a file",
        Errno::ACCESS | Errno::PERM => "no permission to read it",
        _ => "can't be opened",
    }
}

/// Opens a file that the caller named.
pub(super) fn open_file(path: &Path) -> Result<File> {
    let handle = open(path, READ, Mode::empty()).map_err(|error| failed(path, "can't be opened", error))?;
    let file = File::from(handle);
    match file.metadata() {
        Ok(found) if found.is_file() => Ok(file),
        _ => Err(Error::new(ErrorKind::InvalidValue, format!("{} is not a regular file", path.display()))),
    }
}

const LINK: &str = "a symbolic link that leads out of the directory, which is not followed";
pub(super) const NOT_A_FILE: &str = "not a regular file";
const UNREADABLE: &str = "can't be read";
const TOO_LARGE: &str = "the file is too large";

#[cold]
fn failed(path: &Path, what: &str, error: Errno) -> Error {
    let kind = match error {
        Errno::NOENT => ErrorKind::NotFound,
        Errno::ACCESS | Errno::PERM => ErrorKind::Denied,
        Errno::LOOP | Errno::NOTDIR => ErrorKind::InvalidValue,
        _ => ErrorKind::Unavailable,
    };
    let what = match error {
        Errno::NOENT => "does not exist",
        Errno::LOOP | Errno::NOTDIR => "is a symbolic link, or leads through a file; name the target itself",
        _ => what,
    };
    Error::new(kind, format!("{} {what}", path.display())).with_source(io::Error::from(error))
}
