//! Directories and files of another program: read only, no symbolic link followed that leads out, nothing read that is no file.

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

/// An open directory. All that is in it is reached from there, so that no link can be put in between.
#[derive(Clone)]
pub(super) struct Directory(Arc<OwnedFd>);

/// One thing in a directory.
pub(super) struct Entry {
    pub(super) name: OsString,
    pub(super) is: Is,
}

/// What it is; of a link, what it leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Is {
    Directory,
    /// A link that is not followed, and why.
    Link(&'static str),
    /// A file, or a thing that is found out to be none when it is opened.
    File,
    Other,
}

/// Neither follows a link nor waits for the other end to be opened.
const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK);

/// As many links on one way as Linux follows.
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

    /// Opens what a path in it leads to. Links are followed as long as they stay in it, as those of a mounted Kubernetes
    /// secret do. Step by step, which any kernel can, and each step from a directory that is open already.
    fn reach(&self, path: &Path) -> Result<OwnedFd, Errno> {
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
                // What NOFOLLOW says of a link: Linux, FreeBSD.
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

    /// What a directory in it holds, sorted by name; none if there is no such directory.
    pub(super) fn entries(&self, folder: &Path) -> Result<Option<Vec<Entry>>, &'static str> {
        let handle = match self.reach(folder) {
            Ok(handle) => handle,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(why(error)),
        };
        if !is_directory(&handle) {
            return Err("it should be a directory, and is none");
        }
        let mut entries = Vec::new();
        for entry in Dir::read_from(handle).map_err(|_| UNREADABLE)? {
            let entry = entry.map_err(|_| UNREADABLE)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                let name = OsString::from_vec(name.to_vec());
                let is = match entry.file_type() {
                    FileType::Directory => Is::Directory,
                    FileType::Symlink => match self.reach(&folder.join(&name)) {
                        Ok(handle) if is_directory(&handle) => Is::Directory,
                        Ok(_) => Is::File,
                        Err(error) => Is::Link(why(error)),
                    },
                    FileType::RegularFile | FileType::Unknown => Is::File,
                    _ => Is::Other,
                };
                entries.push(Entry { name, is });
            }
        }
        entries.sort_unstable_by(|left, right| left.name.cmp(&right.name));
        Ok(Some(entries))
    }

    /// All of a file in it, but no more than this many bytes.
    pub(super) fn read(&self, path: &Path, limit: usize) -> Result<Vec<u8>, &'static str> {
        let file = File::from(self.reach(path).map_err(why)?);
        let found = file.metadata().map_err(|_| UNREADABLE)?;
        if !found.is_file() {
            return Err(NO_FILE);
        }
        let mut bytes = Vec::new();
        file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(|_| UNREADABLE)?;
        if bytes.len() > limit { Err(TOO_LARGE) } else { Ok(bytes) }
    }
}

fn is_directory(handle: &OwnedFd) -> bool {
    fstat(handle).is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory)
}

/// What the system calls a way out of a directory.
const OUT: Errno = Errno::XDEV;

/// Why something in a directory can't be opened.
fn why(error: Errno) -> &'static str {
    match error {
        OUT => LINK,
        Errno::NOENT => "it is gone, or a symbolic link to nothing",
        Errno::LOOP | Errno::MLINK => "a symbolic link that leads in a circle",
        Errno::NOTDIR => "a symbolic link through what is no directory",
        Errno::ACCESS | Errno::PERM => "this user may not read it",
        _ => "it can't be opened",
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

const LINK: &str = "a symbolic link that leads out of the folder, which is not followed";
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
