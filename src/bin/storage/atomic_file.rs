//! Atomic file replacement: writes a private temporary file and renames it into place.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    process,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A temporary file beside its final path. It is removed on drop, unless it was
/// [persisted](AtomicFile::persist).
pub(crate) struct AtomicFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    directory: File,
    is_persisted: bool,
}

/// The temporary file that exists now, for an exit without drops.
static CURRENT: Mutex<Option<PathBuf>> = Mutex::new(None);

fn current() -> MutexGuard<'static, Option<PathBuf>> {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the process and removes the temporary file.
pub(crate) fn end(code: i32) -> ! {
    // Locked until the exit, so that no other file is created.
    let current = current();
    if let Some(temporary) = &*current {
        let _ = fs::remove_file(temporary);
    }
    signal_hook::low_level::exit(code)
}

impl AtomicFile {
    /// Creates the temporary file, readable by its owner only. The file at `path` stays until it is replaced.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        match path.symlink_metadata() {
            // Neither replacing the link nor following it to a path that another user chose is what was asked
            // for.
            Ok(found) if found.is_symlink() => {
                return Err(io::Error::other("this is a symbolic link; name the file that it points to"));
            }
            // A directory or a device: as root, the rename would replace `/dev/null`.
            Ok(found) if !found.is_file() => {
                return Err(io::Error::other("not a regular file; use `-` and redirect stdout instead"));
            }
            _ => {}
        }
        let name = path.file_name().ok_or_else(|| io::Error::other("not a valid file name"))?;
        let parent = path.parent().filter(|directory| !directory.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        // Opened before anything is written, because the end syncs it.
        let directory = File::open(parent)?;
        remove_stale(parent, name);
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.tmp", process::id()));
        let temporary = path.with_file_name(hidden);
        let mut current = current();
        let file = loop {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            // Marks the file as in use. Without locks in the file system, `remove_stale` removes nothing
            // either.
            let _ = file.lock();
            // Retry if `remove_stale` of another process was faster than the lock.
            if file.metadata()?.nlink() > 0 {
                break file;
            }
        };
        *current = Some(temporary.clone());
        Ok(Self { file, temporary, path: path.to_owned(), directory, is_persisted: false })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Syncs the file and renames it to its final path, replacing the file there.
    pub(crate) fn persist(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.temporary, &self.path)?;
        self.is_persisted = true;
        self.directory.sync_all()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        let mut current = current();
        if !self.is_persisted {
            let _ = fs::remove_file(&self.temporary);
        }
        *current = None;
    }
}

/// Removes temporary files that killed writers of this file left behind: they contain secrets.
fn remove_stale(directory: &Path, name: &OsStr) {
    let is_temporary = |file: &OsStr| {
        let number = file.as_bytes().strip_prefix(b".").and_then(|rest| rest.strip_prefix(name.as_bytes()));
        let number = number.and_then(|rest| rest.strip_prefix(b".")?.strip_suffix(b".tmp"));
        number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit))
    };
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if is_temporary(&entry.file_name()) && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
            // Locked during the removal, so that a process that has just created it notices.
            if let Ok(file) = options.open(entry.path())
                && file.try_lock().is_ok()
            {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}
