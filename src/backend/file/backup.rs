//! Backup: a verified copy of the store in another directory, while the store is used.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use redb::{Builder, ReadableDatabase, backends::FileBackend};
use serde::Serialize;

use super::{
    File,
    copy::{Lineage, check_lengths, copy_all, not_copied},
    directory::Directory,
    engine::Engine,
};
use crate::{
    Error, ErrorKind, Result,
    backend::local::directory::{locate, refused},
};

/// The result of [`File::backup`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BackupReport {
    /// The absolute path of the copy's directory.
    pub path: PathBuf,
    /// The number of records, including plans and their audit. Leases are copied, too, and not counted.
    pub records: u64,
    /// The size of the copy's file in bytes.
    pub bytes: u64,
    /// Whether the store has the time of this backup, for [`stats`](crate::Backend::stats). Not if it is open
    /// for reading only, or can no longer be written.
    pub is_recorded: bool,
}

impl File {
    /// Copies the whole store into a new or empty directory, while the store is used: one state of it, with
    /// all records, plans, their audit and leases.
    ///
    /// The copy is a store. To restore it, [open](crate::Storage::open) it, or move it to where the store was
    /// while no process has that open. It has mode 0700. It gets its name once it is on disk, all of its
    /// checksums are verified, and it has as many records as the store had.
    ///
    /// Neither reads nor writes wait. Until it is complete, the file of the store keeps the space of what is
    /// replaced or deleted meanwhile. The time of the copied state is stored in the store, so that
    /// [`StorageStats::last_backup`](crate::StorageStats::last_backup) has it in every process.
    ///
    /// There is no deadline, because a large store takes longer than a call. If the future is dropped, the
    /// copy is given up shortly afterwards and removed, unless it has its name by then.
    ///
    /// # Errors
    ///
    /// [`InvalidValue`](ErrorKind::InvalidValue) if the directory is that of the store, has a store or other
    /// files, or is not a directory; [`Unavailable`](ErrorKind::Unavailable) if the copy can't be written;
    /// [`Corrupt`](ErrorKind::Corrupt) if the store is too damaged to be copied. After an error there is no
    /// copy, and directories that were created for it are removed.
    pub async fn backup(&self, directory: impl AsRef<Path>) -> Result<BackupReport> {
        let current = self.store.reader.newest()?;
        let path = directory.as_ref().to_owned();
        let wanted = Wanted(Arc::new(AtomicBool::new(true)));
        let is_wanted = wanted.0.clone();
        let copied = tokio::task::spawn_blocking(move || {
            let taken = SystemTime::now();
            let copied = copied(&current.engine, &path, &|| is_wanted.load(Ordering::Acquire))?;
            Ok((taken, copied))
        });
        let (taken, mut report) = copied.await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Internal, "the backup panicked, or the runtime has ended"))
        })?;
        drop(wanted);
        let since = taken.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        // The copy is good, whether the store knows of it or not.
        report.is_recorded = self.write(move |draft| draft.backed_up(millis)).await.is_ok();
        Ok(report)
    }
}

/// Until it is dropped, the copy is wanted.
struct Wanted(Arc<AtomicBool>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn copied(engine: &Engine, path: &Path, is_wanted: &dyn Fn() -> bool) -> Result<BackupReport> {
    let (path, _) = locate(path)?;
    if engine.directory().is_some_and(|directory| directory.is_at(&path)) {
        return Err(refused(&path, "has the store itself; name an empty or a new directory"));
    }
    let missing: Vec<PathBuf> =
        path.ancestors().take_while(|above| !above.exists()).map(Path::to_owned).collect();
    let copied = copy_into(engine, &path, is_wanted);
    if copied.is_err() {
        for new in &missing {
            // It stays if another process has put something into it.
            drop(fs::remove_dir(new));
        }
    }
    copied
}

fn copy_into(engine: &Engine, path: &Path, is_wanted: &dyn Fn() -> bool) -> Result<BackupReport> {
    let directory = Directory::for_new_store(path)?;
    let written = written(engine, &directory, is_wanted);
    if written.is_err() {
        drop(directory.remove_unfinished());
    }
    let records = written?;
    let bytes = directory.size().unwrap_or(0);
    Ok(BackupReport { path: directory.path().to_owned(), records, bytes, is_recorded: false })
}

fn written(engine: &Engine, directory: &Directory, is_wanted: &dyn Fn() -> bool) -> Result<u64> {
    let source = engine.snapshot()?;
    let disk = |file| FileBackend::new(file).map_err(|error| not_copied(error.into()));
    let mut builder = Builder::new();
    builder.set_cache_size(engine.cache_bytes() / 2);
    let copy = builder
        .create_with_backend(disk(directory.new_store()?)?)
        .map_err(|error| not_copied(error.into()))?;
    copy_all(&source, &copy, Lineage::New, is_wanted)?;
    copy.close().map_err(|error| not_copied(error.into()))?;
    // Read back from the file, and not from the memory of what was written.
    let copy = builder
        .set_check_integrity_on_open(true)
        .create_with_backend(disk(directory.open_unfinished(super::Access::Write)?)?)
        .map_err(|error| not_copied(error.into()))?;
    let records = check_lengths(&source, &copy.begin_read().map_err(|error| not_copied(error.into()))?)?;
    copy.close().map_err(|error| not_copied(error.into()))?;
    if !is_wanted() {
        return Err(Error::new(ErrorKind::Unavailable, "the copy of the store was given up"));
    }
    directory.finish()?;
    Ok(records)
}
