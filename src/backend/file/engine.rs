//! The storage engine: open, read, begin to write, close. Only this folder uses redb.

use std::{
    fs,
    os::unix::fs::FileExt,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use redb::{
    Builder, ConcurrencyMode, DatabaseError, ReadOnlyDatabase, ReadableDatabase, StorageBackend, TableError,
    WriteTransaction, backends::FileBackend,
};

pub(super) use super::snapshot::Snapshot;
use super::{
    database::{Database, Opened},
    directory::{Access, Directory, in_use},
    draft,
    options::{FileOptions, Sharing, Verify},
    overlay::Overlay,
    tables::{EXPIRIES, META, RECORDS, not_written},
};
use crate::{Error, ErrorKind, Outcome, Result};

/// The version of the format. A store with a higher version is refused; one with a lower version is upgraded.
///
/// 1: credentials, config values, counters. 2: also plans and their audit. 3: also the counts of records and
/// the order in which plans expire.
pub(super) const FORMAT: u64 = 3;

const FORMAT_NAME: &str = "format";

/// How often the file at the path is opened, if another process compacts the store each time.
const OPENINGS: usize = 8;

/// After a commit, how often it is looked whether the store was compacted, and how long after an error.
const LOOKS: usize = 5;
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The length of redb's header, which every commit changes.
const HEADER_BYTES: usize = 320;

/// The first bytes of the file. They are only compared: while they are the same, the file has had no commit.
pub(super) type Header = [u8; HEADER_BYTES];

/// The open store.
pub(super) struct Engine {
    // Dropped in this order: the file is closed before the lock is released.
    database: Opened,
    directory: Option<Directory>,
    /// For reading the header. None: only this process can write.
    header: Option<fs::File>,
    settings: Settings,
}

/// How the database is opened.
#[derive(Clone, Copy)]
struct Settings {
    cache_bytes: usize,
    sharing: Sharing,
    verifies: bool,
    read_only: bool,
}

impl Settings {
    fn builder(self) -> Builder {
        let mut builder = Builder::new();
        builder.set_cache_size(self.cache_bytes).set_check_integrity_on_open(self.verifies);
        builder.set_concurrency_mode(match self.sharing {
            Sharing::Exclusive => ConcurrencyMode::ExclusiveWriter,
            Sharing::SingleWriter => ConcurrencyMode::SingleWriter,
            Sharing::MultiWriter => ConcurrencyMode::MultiWriter,
        });
        builder
    }

    fn open(self, disk: impl StorageBackend, path: &str) -> Result<redb::Database> {
        catch_panic(path, || {
            self.builder().create_with_backend(disk).map_err(|error| describe(path, error.into()))
        })
    }

    fn open_to_read(self, disk: impl StorageBackend, path: &str) -> Result<ReadOnlyDatabase> {
        catch_panic(path, || {
            self.builder().open_read_only_with_backend(disk).map_err(|error| match error {
                DatabaseError::RepairAborted => unclean(path),
                error => describe(path, error.into()),
            })
        })
    }

    /// Opens the file of a store in the mode of these settings.
    fn opened(self, file: fs::File, path: &str) -> Result<Database> {
        let disk = FileBackend::new(file).map_err(|error| describe(path, error.into()))?;
        match self.read_only {
            true => self.open_to_read(disk, path).map(Database::ReadOnly),
            false => self.open(disk, path).map(Database::Writable),
        }
    }

    /// A second handle of the store's open file, for its header, if other processes write to it. Not opened
    /// by its path, which may lead to another file by then.
    fn header(self, file: &fs::File, path: &str) -> Result<Option<fs::File>> {
        let header = self.follows().then(|| file.try_clone()).transpose();
        header.map_err(|error| describe(path, error.into()))
    }

    /// Which store this file has. Writes nothing to it: if it needs a repair, that is made in memory.
    fn lineage(self, file: fs::File, path: &str) -> Result<Lineage> {
        let failed = |error: redb::Error| describe(path, error);
        let unclean = file.try_clone().map_err(|error| failed(error.into()))?;
        let builder = Self { verifies: false, ..self }.builder();
        let disk = FileBackend::new(file).map_err(|error| failed(error.into()))?;
        catch_panic(path, || {
            let database = match builder.open_read_only_with_backend(disk) {
                Ok(database) => Database::ReadOnly(database),
                Err(DatabaseError::RepairAborted) => {
                    let disk = Overlay::new(unclean).map_err(|error| failed(error.into()))?;
                    let settings = Self { sharing: Sharing::Exclusive, verifies: false, ..self };
                    Database::Writable(settings.open(disk, path)?)
                }
                Err(error) => return Err(failed(error.into())),
            };
            let database = Opened::from(database);
            check_format(&database.begin_read()?, path)?;
            Lineage::of(&Snapshot::new(database.begin_read()?, &database)?)
        })
    }

    /// Whether other processes may write to the store while it is open with these settings.
    fn follows(self) -> bool {
        match self.sharing {
            Sharing::Exclusive => false,
            Sharing::SingleWriter => self.read_only,
            Sharing::MultiWriter => true,
        }
    }

    const fn access(self) -> Access {
        if self.read_only { Access::Read } else { Access::Write }
    }
}

impl Engine {
    /// Opens or creates the store in this directory, and verifies it if the options say so.
    pub(super) fn open(directory: Directory, options: &FileOptions) -> Result<Self> {
        let path = directory.path().display().to_string();
        let settings = Settings {
            cache_bytes: usize::try_from(options.page_cache()).unwrap_or(usize::MAX),
            sharing: options.shared,
            // What is open in another process was verified when that process opened it.
            verifies: options.verify == Verify::Always && directory.is_alone(),
            read_only: options.read_only,
        };
        let disk = |file| FileBackend::new(file).map_err(|error| describe(&path, error.into()));
        if options.read_only {
            return Self::at_path(directory, settings, &path);
        }
        if directory.has_store() {
            check_unopened(disk(directory.open_store(Access::Write)?)?, settings, &path)?;
            // Before other processes can open the store, and begin a copy of their own.
            // One that can't be removed does no harm.
            drop(directory.remove_dead_copy());
        } else {
            let exclusive = Settings { sharing: Sharing::Exclusive, ..settings };
            let new = exclusive.open(disk(directory.new_store()?)?, &path)?;
            initialize(&new).map_err(|error| describe(&path, error))?;
            // Closed before it is renamed, so that the store is complete and on disk when it gets its name.
            new.close().map_err(|error| describe(&path, error.into()))?;
            directory.finish()?;
        }
        directory.make_private(&directory.open_store(Access::Write)?)?;
        directory.share()?;
        Self::at_path(directory, settings, &path)
    }

    /// Opens the file at the store's path.
    fn at_path(mut directory: Directory, settings: Settings, path: &str) -> Result<Self> {
        for _ in 0..OPENINGS {
            let file = directory.open_store(settings.access())?;
            directory.note(&file)?;
            if !settings.read_only {
                // The process that gave the file its name may have been killed before that was on disk.
                directory.sync()?;
            }
            let header = settings.header(&file, path)?;
            let database = settings.opened(file, path)?;
            if let Some(engine) = Self::checked(database, header, settings, Some(directory.clone()), path)? {
                return Ok(engine);
            }
        }
        Err(Error::new(ErrorKind::Busy, format!("the store in {path} is replaced again and again")))
    }

    /// The store of this database, after its format is checked and upgraded. None: another process has
    /// compacted the store since its file was opened.
    fn checked(
        database: Database,
        header: Option<fs::File>,
        settings: Settings,
        directory: Option<Directory>,
        path: &str,
    ) -> Result<Option<Self>> {
        let engine = Self { database: database.into(), directory, header, settings };
        let is_at_path = catch_panic(path, || {
            let format =
                engine.database.begin_read().and_then(|transaction| check_format(&transaction, path))?;
            if format < FORMAT && !engine.is_read_only() {
                let Some(transaction) = engine.begin_at_path()? else { return Ok(false) };
                draft::upgrade(&transaction).map_err(|error| describe(path, error))?;
                transaction
                    .open_table(META)
                    .map_err(redb::Error::from)
                    .and_then(|mut meta| Ok(meta.insert(FORMAT_NAME, FORMAT).map(drop)?))
                    .map_err(|error| describe(path, error))?;
                transaction.commit().map_err(|error| describe(path, error.into()))?;
            }
            engine.end_dead_copy()
        })?;
        Ok(is_at_path.then_some(engine))
    }

    /// Begins to write, unless the path leads to another file by then. The old file must not change: its
    /// other readers see by its last state that they have to look for another one.
    fn begin_at_path(&self) -> Result<Option<WriteTransaction>> {
        let transaction = self.begin()?;
        Ok(self.check().is_ok().then_some(transaction))
    }

    /// Ends a compaction whose process was killed. False: another process has compacted the store since.
    fn end_dead_copy(&self) -> Result<bool> {
        let Some(directory) = self.directory.as_ref().filter(|_| !self.settings.read_only) else {
            return Ok(true);
        };
        if self.snapshot()?.number(draft::COPYING)?.is_none() {
            return Ok(true);
        }
        let Some(transaction) = self.begin_at_path()? else { return Ok(false) };
        if !directory.remove_dead_copy().unwrap_or(true) {
            draft::end_copying(&transaction).map_err(not_written)?;
            transaction.commit().map_err(|error| not_written(error.into()))?;
        }
        Ok(true)
    }

    /// The store that has replaced this one by a compaction, in this or another process. None: there is none.
    pub(super) fn successor(&self) -> Result<Option<Self>> {
        let Some(directory) = self.directory.as_ref().filter(|_| self.settings.follows()) else {
            return Ok(None);
        };
        // A store of other origin must not be opened for writing, which can repair and upgrade it.
        if !self.is_replaced()? {
            return Ok(None);
        }
        let path = directory.path().display().to_string();
        let settings = Settings { verifies: false, ..self.settings };
        let next = Self::at_path(directory.clone(), settings, &path)?;
        let is_next = Lineage::of(&self.snapshot()?)?.precedes(&Lineage::of(&next.snapshot()?)?);
        Ok(is_next.then_some(next))
    }

    /// Whether the path leads to a store that has replaced this one by a compaction. Writes nothing. An error
    /// says nothing about that.
    fn is_replaced(&self) -> Result<bool> {
        let Some(directory) = self.directory.as_ref().filter(|_| self.settings.follows()) else {
            return Ok(false);
        };
        if directory.check().is_ok() {
            return Ok(false);
        }
        let path = directory.path().display().to_string();
        let found = directory.open_store(Access::Read).and_then(|file| self.settings.lineage(file, &path));
        match found {
            Ok(found) => Ok(Lineage::of(&self.snapshot()?)?.precedes(&found)),
            // There is no file, or one that is not a store that this version can read.
            Err(error) if error.code() == Some("os error 2") => Ok(false),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::Corrupt | ErrorKind::InvalidValue | ErrorKind::Unsupported
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Opens the complete copy in the store's directory, which is to replace this store.
    pub(super) fn open_copy(&self) -> Result<Self> {
        let directory = self.directory.as_ref().ok_or_else(Error::closed)?;
        let (mut directory, path) = (directory.clone(), directory.path().display().to_string());
        let settings = Settings { verifies: false, ..self.settings };
        let file = directory.open_unfinished(Access::Write)?;
        let header = settings.header(&file, &path)?;
        directory.note(&file)?;
        let database = settings.opened(file, &path)?.into();
        Ok(Self { database, directory: Some(directory), header, settings })
    }

    /// Whether the two have different files open.
    pub(super) fn is_other_file(&self, other: &Self) -> bool {
        !self.database.is(&other.database)
    }

    /// Whether no snapshot of the store is held.
    pub(super) fn is_unread(&self) -> bool {
        self.database.is_last()
    }

    /// The memory for pages, in bytes.
    pub(super) const fn cache_bytes(&self) -> usize {
        self.settings.cache_bytes
    }

    /// Whether all checksums were verified when the store was opened here.
    pub(super) const fn is_verified(&self) -> bool {
        self.settings.verifies
    }

    /// Whether other processes may write to the store while it is open here.
    pub(super) const fn is_shared(&self) -> bool {
        self.header.is_some()
    }

    fn is_read_only(&self) -> bool {
        self.database.is_read_only()
    }

    /// Whether every process that can write counts its commits. A reader can be beside one that does not.
    pub(super) fn counts_commits(&self) -> bool {
        self.settings.sharing == Sharing::MultiWriter && !self.is_read_only()
    }

    /// The file's header, which differs after every commit of any process.
    pub(super) fn header(&self) -> Result<Header> {
        let mut header = [0; HEADER_BYTES];
        if let Some(file) = &self.header {
            file.read_exact_at(&mut header, 0)
                .map_err(|error| Error::io("the store can't be read", error))?;
        }
        Ok(header)
    }

    /// The state after the last commit.
    pub(super) fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::new(self.database.begin_read()?, &self.database)
    }

    /// Begins the only write transaction. Waits while another process has one.
    pub(super) fn begin(&self) -> Result<WriteTransaction> {
        self.database.begin_write()
    }

    /// Makes the transaction durable, with one fsync, or two if the store is shared.
    ///
    /// The path is checked again afterwards, so that durable data can be found under it.
    pub(super) fn commit(&self, transaction: WriteTransaction) -> Result<()> {
        transaction
            .commit()
            .map_err(|error| not_written(error.into()))
            .and_then(|()| match self.check() {
                // Another process has compacted the store since, and so has copied this commit.
                Err(_) if self.was_replaced() => Ok(()),
                checked => checked,
            })
            .map_err(|error| error.with_outcome(Outcome::Unknown))
    }

    /// As [`is_replaced`](Self::is_replaced), after an error for a moment (too many open files) looked again.
    fn was_replaced(&self) -> bool {
        for _ in 0..LOOKS {
            match self.is_replaced() {
                Ok(is_replaced) => return is_replaced,
                Err(_) => std::thread::sleep(LOOK_AGAIN),
            }
        }
        false
    }

    /// Checks that the path of the store still leads to the open file.
    pub(super) fn check(&self) -> Result<()> {
        self.directory.as_ref().map_or(Ok(()), Directory::check)
    }

    pub(super) const fn directory(&self) -> Option<&Directory> {
        self.directory.as_ref()
    }

    /// Closes the store cleanly, so that opening it needs no repair.
    pub(super) fn close(&self) -> Result<()> {
        let closed = self.database.close();
        if let Some(directory) = &self.directory {
            directory.unlock();
        }
        closed
    }
}

/// Reports a panic as damage: some assertions of the engine fail on damaged pages.
fn catch_panic<T>(path: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(damaged(path)))
}

fn initialize(database: &redb::Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(RECORDS)?;
    transaction.open_table(EXPIRIES)?;
    transaction.open_table(META)?.insert(FORMAT_NAME, FORMAT)?;
    Ok(transaction.commit()?)
}

/// Checks that this is a store of this crate before it is opened for writing, which repairs and marks the
/// file.
///
/// A store that can't be checked this way (not closed cleanly, or damaged) is left to the opening itself.
fn check_unopened(disk: impl StorageBackend, settings: Settings, path: &str) -> Result<()> {
    let checked = catch_unwind(AssertUnwindSafe(|| {
        let database = settings.builder().open_read_only_with_backend(disk).ok()?;
        Some(check_format(&database.begin_read().ok()?, path).map(drop))
    }));
    match checked {
        Ok(Some(Err(error))) if matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::Unsupported) => {
            Err(error)
        }
        _ => Ok(()),
    }
}

fn check_format(transaction: &redb::ReadTransaction, path: &str) -> Result<u64> {
    let format = match transaction.open_table(META) {
        Ok(meta) => {
            let format = meta.get(FORMAT_NAME).map_err(|error| describe(path, error.into()))?;
            format.map(|format| format.value())
        }
        Err(TableError::TableDoesNotExist(_) | TableError::TableTypeMismatch { .. }) => None,
        Err(error) => return Err(describe(path, error.into())),
    };
    match format {
        Some(format @ 1..=FORMAT) => match transaction.open_table(RECORDS) {
            Ok(_) => Ok(format),
            Err(TableError::TableDoesNotExist(_) | TableError::TableTypeMismatch { .. }) => {
                Err(damaged(path))
            }
            Err(error) => Err(describe(path, error.into())),
        },
        Some(other) => Err(Error::new(
            ErrorKind::Unsupported,
            format!("the store in {path} has format {other}; this version reads formats up to {FORMAT}"),
        )),
        None => Err(Error::new(
            ErrorKind::InvalidValue,
            format!("the file in {path} is a redb database, but not a store of this crate"),
        )),
    }
}

/// Which store this is, and how often it was compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lineage {
    id: Option<u64>,
    copies: u64,
}

impl Lineage {
    fn of(snapshot: &Snapshot) -> Result<Self> {
        Ok(Self { id: snapshot.number(draft::ID)?, copies: snapshot.number(draft::COPIES)?.unwrap_or(0) })
    }

    fn precedes(&self, other: &Self) -> bool {
        self.id.is_some() && self.id == other.id && self.copies < other.copies
    }
}

#[cold]
fn damaged(path: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("the store in {path} is damaged; restore it from a backup or an export"),
    )
}

#[cold]
fn unclean(path: &str) -> Error {
    let message = format!(
        "the store in {path} was not closed cleanly and needs a repair, which writes: copy the directory to a writable \
         location, and open it there"
    );
    Error::new(ErrorKind::Unavailable, message).with_retryable(false)
}

/// An error of a store that is being opened.
#[cold]
fn describe(path: &str, error: redb::Error) -> Error {
    use redb::Error::{
        Corrupted, DatabaseAlreadyOpen, Io, LockProtocolMismatch, RepairAborted, UpgradeRequired,
    };
    match error {
        // How redb reports a missing magic number.
        Io(error) if error.kind() == std::io::ErrorKind::InvalidData => damaged(path).with_source(error),
        Io(error) if error.kind() == std::io::ErrorKind::Unsupported => Error::new(
            ErrorKind::Unsupported,
            format!("the file system of {path} has no locks for parts of a file: open the store with `shared=exclusive`"),
        )
        .with_source(error),
        Io(error) => Error::io(format!("the store in {path} can't be opened"), error),
        DatabaseAlreadyOpen | LockProtocolMismatch => in_use(path),
        UpgradeRequired(version) => Error::new(
            ErrorKind::Unsupported,
            format!(
                "the store in {path} is a redb file of version {version}, which this version does not read"
            ),
        ),
        error @ (Corrupted(_) | RepairAborted) => damaged(path).with_source(error),
        error => {
            Error::new(ErrorKind::Internal, format!("the store in {path} can't be opened")).with_source(error)
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
