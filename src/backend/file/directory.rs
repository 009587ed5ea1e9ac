//! The store's directory: ours alone, locked, and never somebody else's.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::{Error, ErrorKind, Result};

/// The store's file in its directory.
const STORE: &str = "store.redb";

/// A store that is being made: renamed to [`STORE`] once it is whole and on disk.
const UNFINISHED: &str = "store.redb.new";

/// An open directory, locked for this process until it is dropped.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    handle: File,
    has_store: bool,
    /// Device and inode of the store's file that is open.
    opened: Option<(u64, u64)>,
}

impl Directory {
    /// Opens the directory, makes it if it is missing and may be made, and locks it.
    pub(super) fn open(path: &Path, create: bool) -> Result<Self> {
        // Absolute, since the working directory may change; by components, since `link/` would follow the link.
        let path: PathBuf = std::path::absolute(path)
            .map_err(|error| failed(path, "can't be looked at", error))?
            .components()
            .collect();
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => {}
            Ok(found) if found.is_symlink() => {
                return Err(refused(&path, "is a symbolic link; name the directory itself"));
            }
            Ok(_) => return Err(refused(&path, "is not a directory")),
            Err(error) if error.kind() == io::ErrorKind::NotFound && create => make(&path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing(&path)),
            Err(error) => return Err(failed(&path, "can't be looked at", error)),
        }
        let handle = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|error| failed(&path, "can't be opened", error))?;
        lock(&path, &handle)?;
        let has_store = look_around(&path, create)?;
        // Who made the store may have died before its name was on disk.
        handle.sync_all().map_err(|error| failed(&path, "can't be written", error))?;
        Ok(Self { path, handle, has_store, opened: None })
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
                format!("the store in {} is an empty file", self.path.display()),
            ));
        }
        Ok(file)
    }

    /// A new file to make a store in. [`finish`](Self::finish) gives it its name.
    pub(super) fn new_store(&self) -> Result<File> {
        // One that is there was left by a process that died while it made the store: it has no name and no data yet.
        match fs::remove_file(self.path.join(UNFINISHED)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(&self.path, "can't be written", error));
            }
            _ => {}
        }
        self.open_file(UNFINISHED, OpenOptions::new().read(true).write(true).create_new(true))
    }

    /// Gives a store that is whole and on disk its name, durably.
    pub(super) fn finish(&self) -> Result<()> {
        fs::rename(self.path.join(UNFINISHED), self.path.join(STORE))
            .and_then(|()| self.handle.sync_all())
            .map_err(|error| failed(&self.path, "can't be written", error))
    }

    /// Takes every right on a store that is known to be ours from group and others, whatever the umask was.
    pub(super) fn make_private(&self, store: &File) -> Result<()> {
        keep_private(&self.path, &self.handle, 0o700)?;
        keep_private(&self.path.join(STORE), store, 0o600)
    }

    /// Notes which file the open store is, for [`check`](Self::check).
    pub(super) fn note(&mut self, store: &File) -> Result<()> {
        let found = store.metadata().map_err(|error| failed(&self.path, "can't be read", error))?;
        self.opened = Some((found.dev(), found.ino()));
        Ok(())
    }

    /// Checks that the directory's path still leads to the file that is open. What is written to one without a name is
    /// lost when it is closed.
    pub(super) fn check(&self) -> Result<()> {
        let found = fs::symlink_metadata(self.path.join(STORE));
        match found {
            Ok(found) if Some((found.dev(), found.ino())) == self.opened => Ok(()),
            Ok(_) => Err(gone(&self.path, "was replaced")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(gone(&self.path, "was removed")),
            Err(error) => Err(failed(&self.path, "can't be looked at", error)),
        }
    }

    /// The size of the store's file in bytes, if the system says it.
    pub(super) fn size(&self) -> Option<u64> {
        size(&self.path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn open_file(&self, name: &str, options: &mut OpenOptions) -> Result<File> {
        let path = self.path.join(name);
        options.mode(0o600).custom_flags(libc::O_NOFOLLOW).open(&path).map_err(|error| {
            if error.raw_os_error() == Some(libc::ELOOP) {
                refused(&path, "is a symbolic link; a store's file is never one")
            } else {
                failed(&path, "can't be opened", error)
            }
        })
    }
}

/// The size of the file of the store in this directory, if the system says it.
pub(super) fn size(path: &Path) -> Option<u64> {
    fs::metadata(path.join(STORE)).ok().map(|file| file.len())
}

/// Makes the directory and what is missing above it, each one's name durable.
fn make(path: &Path) -> Result<()> {
    let unmade = |error| failed(path, "can't be created", error);
    let missing: Vec<&Path> = path.ancestors().take_while(|above| !above.exists()).collect();
    for new in missing.into_iter().rev() {
        match DirBuilder::new().mode(0o700).create(new) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(unmade(error)),
            _ => {}
        }
        File::open(new.join("..")).and_then(|above| above.sync_all()).map_err(unmade)?;
    }
    Ok(())
}

fn lock(path: &Path, handle: &File) -> Result<()> {
    handle.try_lock().map_err(|error| match error {
        fs::TryLockError::WouldBlock => Error::new(
            ErrorKind::Busy,
            format!("the store in {} is open already, in this process or another one", path.display()),
        ),
        fs::TryLockError::Error(error) => failed(path, "can't be locked", error),
    })
}

/// Says whether the directory holds a store. One that holds other things and no store is not ours to use.
fn look_around(path: &Path, create: bool) -> Result<bool> {
    let unreadable = |error| failed(path, "can't be read", error);
    let (mut has_store, mut has_others) = (false, false);
    for entry in fs::read_dir(path).map_err(unreadable)? {
        match entry.map_err(unreadable)?.file_name().to_str() {
            Some(STORE) => has_store = true,
            Some(UNFINISHED) => {}
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

fn keep_private(path: &Path, handle: &File, mode: u32) -> Result<()> {
    let unprotected = |error| failed(path, "can't be made private to its owner", error);
    let current = handle.metadata().map_err(unprotected)?.permissions().mode() & 0o777;
    if current == mode {
        Ok(())
    } else {
        handle.set_permissions(Permissions::from_mode(mode)).map_err(unprotected)
    }
}

#[cold]
fn gone(path: &Path, how: &str) -> Error {
    let path = path.display();
    let message =
        format!("the store in {path} {how} while it was open: open it again to write to what is there now");
    Error::new(ErrorKind::Unavailable, message)
}

#[cold]
fn missing(path: &Path) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no store in {}", path.display()))
}

#[cold]
fn refused(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::InvalidValue, format!("{} {why}", path.display()))
}

#[cold]
fn failed(path: &Path, what: &str, error: io::Error) -> Error {
    Error::io(format!("{} {what}", path.display()), error)
}
