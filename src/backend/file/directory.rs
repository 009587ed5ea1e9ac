//! The store's directory: ours alone, locked, and never somebody else's.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::{Error, ErrorKind, Result};

/// The store's file in its directory.
pub(super) const STORE: &str = "store.redb";

/// A store that is being made: renamed to [`STORE`] once it is whole and on disk.
const UNFINISHED: &str = "store.redb.new";

/// An open directory, locked for this process until it is dropped.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    handle: File,
    has_store: bool,
}

impl Directory {
    /// Opens the directory, makes it if it is missing and may be made, and locks it.
    pub(super) fn open(path: &Path, create: bool) -> Result<Self> {
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => {}
            Ok(found) if found.is_symlink() => {
                return Err(refused(path, "is a symbolic link; name the directory itself"));
            }
            Ok(_) => return Err(refused(path, "is not a directory")),
            Err(error) if error.kind() == io::ErrorKind::NotFound && create => make(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing(path)),
            Err(error) => return Err(failed(path, "can't be looked at", error)),
        }
        let handle = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(path)
            .map_err(|error| failed(path, "can't be opened", error))?;
        lock(path, &handle)?;
        let has_store = look_around(path, create)?;
        keep_private(path, &handle, 0o700)?;
        Ok(Self { path: path.to_owned(), handle, has_store })
    }

    /// Whether there is a store in it already.
    pub(super) const fn has_store(&self) -> bool {
        self.has_store
    }

    /// Opens the store's file.
    pub(super) fn open_store(&self) -> Result<File> {
        let file = self.open_file(STORE, OpenOptions::new().read(true).write(true))?;
        let length = file.metadata().map_err(|error| failed(&self.path, "can't be read", error))?.len();
        // The engine would take an empty file for a new store.
        if length == 0 {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("the store in {} is an empty file", shown(&self.path)),
            ));
        }
        Ok(file)
    }

    /// A new file to make a store in. [`finish`](Self::finish) gives it its name.
    pub(super) fn new_store(&self) -> Result<File> {
        self.open_file(UNFINISHED, OpenOptions::new().read(true).write(true).create_new(true))
    }

    /// Gives a store that is whole and on disk its name, durably.
    pub(super) fn finish(&self) -> Result<()> {
        fs::rename(self.path.join(UNFINISHED), self.path.join(STORE))
            .and_then(|()| self.handle.sync_all())
            .map_err(|error| failed(&self.path, "can't be written", error))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn open_file(&self, name: &str, options: &mut OpenOptions) -> Result<File> {
        let path = self.path.join(name);
        let file = options.mode(0o600).custom_flags(libc::O_NOFOLLOW).open(&path).map_err(|error| {
            if error.raw_os_error() == Some(libc::ELOOP) {
                refused(&path, "is a symbolic link; a store's file is never one")
            } else {
                failed(&path, "can't be opened", error)
            }
        })?;
        keep_private(&path, &file, 0o600)?;
        Ok(file)
    }
}

fn make(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        // The new directory's own entry must survive power loss, too.
        .and_then(|()| File::open(path.join(".."))?.sync_all())
        .map_err(|error| failed(path, "can't be created", error))
}

fn lock(path: &Path, handle: &File) -> Result<()> {
    handle.try_lock().map_err(|error| match error {
        fs::TryLockError::WouldBlock => Error::new(
            ErrorKind::Busy,
            format!("the store in {} is open already, in this process or another one", shown(path)),
        ),
        fs::TryLockError::Error(error) => failed(path, "can't be locked", error),
    })
}

/// Says whether the directory holds a store. One that holds other things and no store is not ours to use.
fn look_around(path: &Path, create: bool) -> Result<bool> {
    let unreadable = |error| failed(path, "can't be read", error);
    let (mut has_store, mut has_others) = (false, false);
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        match name.to_str() {
            Some(STORE) => has_store = true,
            // Left by a process that died while it made the store; nothing was ever acknowledged in it.
            Some(UNFINISHED) => fs::remove_file(path.join(UNFINISHED)).map_err(unreadable)?,
            _ => has_others = true,
        }
    }
    match (has_store, has_others) {
        (true, _) => Ok(true),
        (false, true) => {
            Err(refused(path, "holds other things and no store; name an empty or a new directory"))
        }
        (false, false) if create => Ok(false),
        (false, false) => Err(missing(path)),
    }
}

/// Takes every right from group and others, whatever the umask and whoever made it.
fn keep_private(path: &Path, handle: &File, mode: u32) -> Result<()> {
    let unprotected = |error| failed(path, "can't be made private to its owner", error);
    let current = handle.metadata().map_err(unprotected)?.permissions().mode() & 0o777;
    if current == mode {
        Ok(())
    } else {
        handle.set_permissions(Permissions::from_mode(mode)).map_err(unprotected)
    }
}

fn shown(path: &Path) -> std::path::Display<'_> {
    path.display()
}

#[cold]
fn missing(path: &Path) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no store in {}", shown(path)))
}

#[cold]
fn refused(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::InvalidValue, format!("{} {why}", shown(path)))
}

#[cold]
fn failed(path: &Path, what: &str, error: io::Error) -> Error {
    io_error(format!("{} {what}", shown(path)), error)
}

/// An I/O error, by what the caller can do about it.
#[cold]
pub(super) fn io_error(message: String, error: io::Error) -> Error {
    use io::ErrorKind::{InvalidData, PermissionDenied, ReadOnlyFilesystem, UnexpectedEof};
    let kind = match error.kind() {
        PermissionDenied | ReadOnlyFilesystem => ErrorKind::Denied,
        UnexpectedEof | InvalidData => ErrorKind::Corrupt,
        _ => ErrorKind::Unavailable,
    };
    let code = error.raw_os_error().map(|code| format!("os error {code}"));
    code.into_iter().fold(Error::new(kind, message).with_source(error), Error::with_code)
}
