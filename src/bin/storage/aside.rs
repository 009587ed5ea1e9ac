//! A file that is there when it is complete, and is nobody else's.

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

/// A file that is written beside its place. Dropped before it is [kept](Aside::keep), it is gone.
pub(crate) struct Aside {
    file: File,
    aside: PathBuf,
    place: PathBuf,
    folder: File,
    is_kept: bool,
}

/// What is written now, for an end that drops nothing.
static WRITTEN: Mutex<Option<PathBuf>> = Mutex::new(None);

fn written() -> MutexGuard<'static, Option<PathBuf>> {
    WRITTEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the process, and leaves no half of a file.
pub(crate) fn end(code: i32) -> ! {
    // Held until the end: none is made after this one is gone.
    let written = written();
    if let Some(aside) = &*written {
        let _ = fs::remove_file(aside);
    }
    signal_hook::low_level::exit(code)
}

impl Aside {
    /// Makes the file, for its owner only. What is at its place stays there until it is replaced.
    pub(crate) fn create(place: &Path) -> io::Result<Self> {
        match place.symlink_metadata() {
            // To be replaced, or to be followed to a place that somebody else chose: neither is what was asked for.
            Ok(found) if found.is_symlink() => {
                return Err(io::Error::other("this is a link; name the file that it leads to"));
            }
            // A directory, or a device: root would put a file in the place of `/dev/null`.
            Ok(found) if !found.is_file() => {
                return Err(io::Error::other("this is no file; `-` and a redirection write anywhere"));
            }
            _ => {}
        }
        let name = place.file_name().ok_or_else(|| io::Error::other("this is no name of a file"))?;
        let parent = place.parent().filter(|folder| !folder.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        // Before anything is written: it is synced in the end.
        let folder = File::open(parent)?;
        sweep(parent, name);
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.tmp", process::id()));
        let aside = place.with_file_name(hidden);
        let mut written = written();
        let file = loop {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
            // Says that somebody writes it. Not every file system can; there, nobody sweeps.
            let _ = file.lock();
            // Swept before it had its lock?
            if file.metadata()?.nlink() > 0 {
                break file;
            }
        };
        *written = Some(aside.clone());
        Ok(Self { file, aside, place: place.to_owned(), folder, is_kept: false })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Puts it in its place, in place of what is there, when all of it is on disk.
    pub(crate) fn keep(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.aside, &self.place)?;
        self.is_kept = true;
        self.folder.sync_all()
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let mut written = written();
        if !self.is_kept {
            // Nothing more can be done about it here.
            let _ = fs::remove_file(&self.aside);
        }
        *written = None;
    }
}

/// Removes what writers of this file left that were killed: files with secrets in them.
fn sweep(folder: &Path, name: &OsStr) {
    let is_left = |file: &OsStr| {
        let number = file.as_bytes().strip_prefix(b".").and_then(|rest| rest.strip_prefix(name.as_bytes()));
        let number = number.and_then(|rest| rest.strip_prefix(b".")?.strip_suffix(b".tmp"));
        number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit))
    };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if is_left(&entry.file_name()) && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
            // Locked while it goes: whoever has just made it sees that.
            if let Ok(file) = options.open(entry.path())
                && file.try_lock().is_ok()
            {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}
