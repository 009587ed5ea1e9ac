//! The store's directory: locked, private, and never one with other data.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::options::Sharing;
use crate::{
    Error, ErrorKind, Result,
    backend::local::{
        atomic_file::remove_if_exists,
        directory::{io_failed, locate, refused},
    },
};

/// The store's file in its directory.
const STORE: &str = "store.redb";

/// A store that is being created or compacted: renamed to [`STORE`] once it is complete and on disk.
const UNFINISHED: &str = "store.redb.new";

/// Takes space that is given back once the file system is full, so that deletes can be written.
const RESERVE: &str = "store.reserve";

/// Deletes write the pages that lead to the deleted records.
pub(super) const RESERVE_BYTES: u64 = 8 << 20;

/// Entries that volumes and desktops create. A directory with only these counts as empty.
///
/// `.nfs` and `.Trash-` are prefixes.
const IGNORED: [&str; 8] = [
    "lost+found",
    ".snapshot",
    ".snapshots",
    ".zfs",
    ".DS_Store",
    ".Trash-",
    ".nfs",
    "System Volume Information",
];

/// How the store is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// To write; a missing store is created.
    Create,
    /// To write to an existing store.
    Write,
    /// To read an existing store, without changing anything.
    Read,
}

/// An open directory, locked for this process until it and its clones are dropped.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// The path of the store's file.
    store: PathBuf,
    handle: Arc<File>,
    has_store: bool,
    /// Whether no other process has the store open.
    is_alone: bool,
    sharing: Sharing,
    /// Device and inode of the store's open file.
    opened: Option<(u64, u64)>,
}

impl Directory {
    /// Opens and locks a new or empty directory for a new store, and creates it if it is missing.
    pub(super) fn for_new_store(path: &Path) -> Result<Self> {
        let directory = Self::open(path, Access::Create, Sharing::Exclusive)?;
        match directory.has_store {
            false => Ok(directory),
            true => Err(refused(&directory.path, "has a store; name an empty or a new directory")),
        }
    }

    /// Whether this path leads to this directory.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        let here = self.handle.metadata().ok();
        let there = fs::metadata(path).ok();
        here.zip(there).is_some_and(|(here, there)| (here.dev(), here.ino()) == (there.dev(), there.ino()))
    }

    /// Opens the directory, or creates it with [`Access::Create`], and locks it: for this process alone if
    /// the store is to be created or not to be shared.
    pub(super) fn open(path: &Path, access: Access, sharing: Sharing) -> Result<Self> {
        let (path, exists) = locate(path)?;
        if !exists {
            if access != Access::Create {
                return Err(missing(&path));
            }
            make(&path)?;
        }
        let handle = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|error| io_failed(&path, "can't be opened", error))?;
        let is_alone = lock(&path, &handle, access, sharing)?;
        let has_store = find_store(&path, &handle, access == Access::Create)?;
        if !has_store {
            keep_private(&path, &handle, 0o700)?;
        }
        if !has_store && !is_alone {
            return Err(in_use(path.display()));
        }
        let (store, handle) = (path.join(STORE), Arc::new(handle));
        Ok(Self { path, store, handle, has_store, is_alone, sharing, opened: None })
    }

    /// Whether no other process had the store open when this one locked it.
    pub(super) const fn is_alone(&self) -> bool {
        self.is_alone
    }

    /// Lets other processes open the store, if it is to be shared.
    pub(super) fn share(&self) -> Result<()> {
        if self.is_alone && self.sharing != Sharing::Exclusive {
            // The lock is lost for a moment, in which another process may take it.
            lock(&self.path, &self.handle, Access::Read, self.sharing)?;
        }
        Ok(())
    }

    /// Releases the lock, before the directory is dropped.
    pub(super) fn unlock(&self) {
        // An error means that there is no lock.
        drop(self.handle.unlock());
    }

    /// Whether space is reserved. Another process may have given it back.
    pub(super) fn has_reserve(&self) -> bool {
        self.path.join(RESERVE).exists()
    }

    /// Takes the space of the reserve.
    ///
    /// A file system without a call for it has no reserve: as much space is then left free.
    pub(super) fn take_reserve(&self) {
        if let Ok(file) = self.open_file(RESERVE, OpenOptions::new().write(true).create(true)) {
            let taken = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES);
            if taken.is_err() {
                drop(fs::remove_file(self.path.join(RESERVE)));
            }
        }
    }

    /// Gives the space of the reserve back.
    pub(super) fn release_reserve(&self) {
        drop(fs::remove_file(self.path.join(RESERVE)));
    }

    /// The bytes that the file system has left for this user, if it reports them.
    pub(super) fn free(&self) -> Option<u64> {
        free(&self.path)
    }

    /// Whether the directory has a store.
    pub(super) const fn has_store(&self) -> bool {
        self.has_store
    }

    /// Opens the store's file.
    pub(super) fn open_store(&self, access: Access) -> Result<File> {
        self.open_existing(STORE, access)
    }

    /// Opens the file of a store that is complete, before [`finish`](Self::finish).
    pub(super) fn open_unfinished(&self, access: Access) -> Result<File> {
        self.open_existing(UNFINISHED, access)
    }

    fn open_existing(&self, name: &str, access: Access) -> Result<File> {
        let file = self.open_file(name, OpenOptions::new().read(true).write(access != Access::Read))?;
        let length = file.metadata().map_err(|error| io_failed(&self.path, "can't be read", error))?.len();
        // The engine would take an empty file for a new store.
        if length == 0 {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("the store in {} is an empty file", self.path.display()),
            ));
        }
        Ok(file)
    }

    /// Creates the file for a new store. [`finish`](Self::finish) gives it its name.
    pub(super) fn new_store(&self) -> Result<File> {
        // An existing one was left by a process that was killed while it created the store: it has no data
        // yet.
        self.remove_unfinished()?;
        let file = self.open_file(UNFINISHED, OpenOptions::new().read(true).write(true).create_new(true))?;
        let path = self.path.join(UNFINISHED);
        keep_private(&path, &file, 0o600).inspect_err(|_| drop(fs::remove_file(&path)))?;
        Ok(file)
    }

    /// Durably renames a store that is complete and on disk.
    pub(super) fn finish(&self) -> Result<()> {
        self.rename()?;
        self.sync()
    }

    /// Gives a store that is complete and on disk its name, in place of the one that has it.
    pub(super) fn rename(&self) -> Result<()> {
        fs::rename(self.path.join(UNFINISHED), &self.store)
            .map_err(|error| io_failed(&self.path, "can't be written", error))
    }

    /// Makes the names of the files durable.
    pub(super) fn sync(&self) -> Result<()> {
        self.handle.sync_all().map_err(|error| io_failed(&self.path, "can't be written", error))
    }

    /// Creates the file for a copy of the store that is to replace it. None: a process is making one.
    ///
    /// The file is locked, so that other processes see that the copy is being made.
    pub(super) fn new_copy(&self) -> Result<Option<File>> {
        let path = self.path.join(UNFINISHED);
        let unwritten = |error| io_failed(&path, "can't be written", error);
        loop {
            let mut options = OpenOptions::new();
            let file = self.open_file(UNFINISHED, options.read(true).write(true).create(true))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(fs::TryLockError::WouldBlock) => return Ok(None),
                Err(fs::TryLockError::Error(error)) => return Err(unwritten(error)),
            }
            // Another process may have removed it before it was locked.
            if is_same(&path, &file).map_err(unwritten)? {
                file.set_len(0).map_err(unwritten)?;
                self.own(&file).inspect_err(|_| drop(fs::remove_file(&path)))?;
                return Ok(Some(file));
            }
        }
    }

    /// Gives the copy the owner, the group and the mode of the store: those who use the store must be able to
    /// use the copy, also if root makes it.
    fn own(&self, copy: &File) -> Result<()> {
        let path = self.path.join(UNFINISHED);
        keep_private(&path, copy, 0o600)?;
        let of = |found: fs::Metadata| (found.uid(), found.gid(), found.mode() & 0o777);
        let unread = |error| io_failed(&path, "can't be read", error);
        let found = || copy.metadata().map(of).map_err(unread);
        let wanted @ (uid, gid, mode) = of(fs::symlink_metadata(&self.store).map_err(unread)?);
        let now = found()?;
        let mut given = Ok(());
        if (now.0, now.1) != (uid, gid) {
            given = fchown(copy, Some(uid), Some(gid));
        }
        if given.is_ok() && found()?.2 != mode {
            given = copy.set_permissions(Permissions::from_mode(mode));
        }
        match given {
            Ok(()) if found()? == wanted => Ok(()),
            given => {
                let message = format!(
                    "the copy of the store in {} can't be given the owner, the group and the mode of the store: compact                      it as the user with the id {uid}, which the store belongs to",
                    self.path.display()
                );
                let denied = Error::new(ErrorKind::Denied, message);
                Err(given.err().into_iter().fold(denied, Error::with_source))
            }
        }
    }

    /// Removes an unfinished copy of the store unless a process is making it. Returns whether one is.
    pub(super) fn remove_dead_copy(&self) -> Result<bool> {
        let path = self.path.join(UNFINISHED);
        let unlocked = |error| io_failed(&path, "can't be locked", error);
        loop {
            if !path.exists() {
                return Ok(false);
            }
            let file = match self.open_file(UNFINISHED, OpenOptions::new().read(true).write(true)) {
                Err(error) if path.exists() => return Err(error),
                Err(_) => return Ok(false),
                Ok(file) => file,
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(fs::TryLockError::WouldBlock) => return Ok(true),
                Err(fs::TryLockError::Error(error)) => return Err(unlocked(error)),
            }
            // Another process may have removed it before it was locked, and have begun another one.
            if is_same(&path, &file).map_err(unlocked)? {
                return self.remove_unfinished().map(|()| false);
            }
        }
    }

    pub(super) fn remove_unfinished(&self) -> Result<()> {
        remove_if_exists(&self.path.join(UNFINISHED))
            .map_err(|error| io_failed(&self.path, "can't be written", error))
    }

    /// Removes the permissions of group and others from an existing store, whatever the umask was.
    pub(super) fn make_private(&self, store: &File) -> Result<()> {
        keep_private(&self.path, &self.handle, 0o700)?;
        keep_private(&self.path.join(STORE), store, 0o600)
    }

    /// Records the identity of the open file, for [`check`](Self::check).
    pub(super) fn note(&mut self, store: &File) -> Result<()> {
        let found = store.metadata().map_err(|error| io_failed(&self.path, "can't be read", error))?;
        self.opened = Some((found.dev(), found.ino()));
        Ok(())
    }

    /// Checks that the directory's path still leads to the open file. Writes to a removed file are lost when
    /// it is closed.
    pub(super) fn check(&self) -> Result<()> {
        match fs::symlink_metadata(&self.store) {
            Ok(found) if Some((found.dev(), found.ino())) == self.opened => Ok(()),
            Ok(_) => Err(gone(&self.path, "was replaced")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(gone(&self.path, "was removed")),
            Err(error) => Err(io_failed(&self.path, "can't be accessed", error)),
        }
    }

    /// The size of the store's file in bytes, if the system reports it.
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
                io_failed(&path, "can't be opened", error)
            }
        })
    }
}

/// Whether the path leads to this open file.
fn is_same(path: &Path, file: &File) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The bytes that the file system of this directory has left for this user, if it reports them.
pub(super) fn free(path: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(path).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

/// The size of the store's file in this directory, if the system reports it.
pub(super) fn size(path: &Path) -> Option<u64> {
    fs::metadata(path.join(STORE)).ok().map(|file| file.len())
}

/// Durably creates the directory and its missing parents.
fn make(path: &Path) -> Result<()> {
    let unmade = |error| io_failed(path, "can't be created", error);
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

/// How long a process that may share the store waits for one that is creating or checking it.
const OPENING: Duration = Duration::from_millis(500);

/// Locks the directory. Returns whether this process is the only one that has it locked.
fn lock(path: &Path, handle: &File, access: Access, sharing: Sharing) -> Result<bool> {
    let locked = |locked: Result<(), fs::TryLockError>| match locked {
        Ok(()) => Ok(true),
        Err(fs::TryLockError::WouldBlock) => Ok(false),
        Err(fs::TryLockError::Error(error)) => Err(io_failed(path, "can't be locked", error)),
    };
    let begun = Instant::now();
    loop {
        if access != Access::Read && locked(handle.try_lock())? {
            return Ok(true);
        }
        let is_shared = sharing != Sharing::Exclusive;
        if (access == Access::Read || is_shared) && locked(handle.try_lock_shared())? {
            return Ok(false);
        }
        if !is_shared || begun.elapsed() > OPENING {
            return Err(in_use(path.display()));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// An error of a store that is open elsewhere.
#[cold]
pub(super) fn in_use(path: impl std::fmt::Display) -> Error {
    let message = format!(
        "the store in {path} is already open in this or another process in a mode that keeps this one out: close it \
         there, wait for that with the option `wait`, or let both have it with the option `shared`, which is \
         `multi-writer` in all of them, or `single-writer` if one writes and the others read"
    );
    Error::new(ErrorKind::Busy, message)
}

/// Returns whether the directory has a store. Refuses a directory with other files and no store.
fn find_store(path: &Path, handle: &File, create: bool) -> Result<bool> {
    let unreadable = |error| io_failed(path, "can't be read", error);
    let (mut has_store, mut has_others) = (false, false);
    for entry in fs::read_dir(path).map_err(unreadable)? {
        match entry.map_err(unreadable)?.file_name().to_str() {
            Some(STORE) => has_store = true,
            Some(UNFINISHED | RESERVE) => {}
            Some(name) if is_ignored(name) => {}
            _ => has_others = true,
        }
    }
    match (has_store, has_others) {
        (true, _) => Ok(true),
        (false, true) if is_mount_point(path, handle) => {
            Err(refused(path, "is a volume with other files and no store; name a new directory in it"))
        }
        (false, true) => Err(refused(path, "has other files and no store; name an empty or a new directory")),
        (false, false) if create => Ok(false),
        (false, false) => Err(missing(path)),
    }
}

fn is_ignored(name: &str) -> bool {
    IGNORED.iter().any(|known| match known.strip_prefix('.') {
        Some("Trash-" | "nfs") => name.starts_with(known),
        _ => name == *known,
    })
}

fn is_mount_point(path: &Path, handle: &File) -> bool {
    let above = path.parent().and_then(|above| fs::metadata(above).ok());
    above.zip(handle.metadata().ok()).is_some_and(|(above, here)| above.dev() != here.dev())
}

/// Removes the permissions of group and others. A volume can belong to another user, or have fixed modes
/// (vfat, CIFS): then it is enough that other users can neither read the file nor replace it.
fn keep_private(path: &Path, handle: &File, mode: u32) -> Result<()> {
    let mode_now = || Ok(handle.metadata()?.permissions().mode() & 0o777);
    let unprotected = |error| io_failed(path, "can't be restricted to its owner", error);
    if mode_now().map_err(unprotected)? == mode {
        return Ok(());
    }
    let changed = handle.set_permissions(Permissions::from_mode(mode));
    let is_directory = mode & 0o100 != 0;
    let open_to_others = if is_directory { 0o002 } else { 0o007 };
    match (mode_now().map_err(unprotected)?, changed) {
        (now, _) if now == mode || now & open_to_others == 0 => Ok(()),
        (_, Err(error)) if error.kind() != io::ErrorKind::PermissionDenied => Err(unprotected(error)),
        (now, _) => {
            let can = if is_directory { "write to it" } else { "read it" };
            let message = format!(
                "{} has the mode {now:o}, so other users can {can}, and the mode can't be changed: name a new directory \
                 in it, or mount the volume with other modes",
                path.display()
            );
            Err(Error::new(ErrorKind::Denied, message))
        }
    }
}

#[cold]
fn gone(path: &Path, how: &str) -> Error {
    let path = path.display();
    let message = format!("the store in {path} {how} while it was open: open it again to continue");
    Error::new(ErrorKind::Unavailable, message)
}

#[cold]
fn missing(path: &Path) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no store in {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_owner_and_the_mode_of_the_store() {
        let base = tempfile::TempDir::new().unwrap();
        let directory = Directory::for_new_store(&base.path().join("store")).unwrap();
        drop(directory.new_store().unwrap());
        directory.finish().unwrap();
        // Only root can give a file away.
        drop(fchown(File::open(&directory.store).unwrap(), Some(12345), Some(54321)));
        let store = fs::metadata(&directory.store).unwrap();
        fs::set_permissions(&directory.store, Permissions::from_mode(0o640)).unwrap();
        let copy = directory.new_copy().unwrap().unwrap().metadata().unwrap();
        assert_eq!((copy.uid(), copy.gid(), copy.mode() & 0o777), (store.uid(), store.gid(), 0o640));
    }

    #[test]
    fn a_copy_is_removed_once_its_process_has_ended() {
        let base = tempfile::TempDir::new().unwrap();
        let directory = Directory::for_new_store(&base.path().join("store")).unwrap();
        drop(directory.new_store().unwrap());
        directory.finish().unwrap();
        let copy = directory.new_copy().unwrap().unwrap();
        assert!(directory.new_copy().unwrap().is_none());
        assert!(directory.remove_dead_copy().unwrap() && directory.path.join(UNFINISHED).exists());
        drop(copy);
        assert!(!directory.remove_dead_copy().unwrap() && !directory.path.join(UNFINISHED).exists());
        assert!(!directory.remove_dead_copy().unwrap());
    }
}
