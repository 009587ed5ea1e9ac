//! The storage engine: load, commit, compact. Only this file uses redb.

use std::panic::{AssertUnwindSafe, catch_unwind};

use redb::{
    Builder, CompactionError, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend,
    TableDefinition, TableError, backends::FileBackend,
};

use super::{
    directory::{Access, Directory, in_use},
    state::{State, TableWrites, Writes},
};
use crate::{Error, ErrorKind, Outcome, Result};

/// The version of the format. A store with a higher version is refused; one with a lower version is upgraded.
///
/// 1: credentials, config values, counters. 2: also plans and their audit.
pub(super) const FORMAT: u64 = 2;

/// Every record, by `RecordKey`: JSON for documents, eight bytes (big-endian) for a counter.
const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");

/// The leases, by name. A version without leases opens the store, and neither reads nor changes this table. A
/// store that such a version made gets the table with its first lease.
const LEASES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("leases");

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FORMAT_NAME: &str = "format";

/// The size of the engine's cache. It is small, because reads are served from memory: the engine needs only
/// the pages that it writes.
const CACHE_BYTES: usize = 8 << 20;

/// The open store.
pub(super) struct Engine {
    // Dropped in this order: the file is closed before the lock is released.
    database: Database,
    directory: Option<Directory>,
}

impl Engine {
    /// Opens or creates the store in this directory, verifies all of it, and loads it.
    pub(super) fn open(mut directory: Directory) -> Result<(Self, State)> {
        let path = directory.path().display().to_string();
        let disk = |file| FileBackend::new(file).map_err(|error| describe(&path, error.into()));
        if directory.has_store() {
            check_unopened(disk(directory.open_store(Access::Write)?)?, &path)?;
        } else {
            let new = database(disk(directory.new_store()?)?, &path)?;
            initialize(&new).map_err(|error| describe(&path, error))?;
            // Closed before it is renamed, so that the store is complete and on disk when it gets its name.
            new.close().map_err(|error| describe(&path, error.into()))?;
            directory.finish()?;
        }
        let file = directory.open_store(Access::Write)?;
        directory.make_private(&file)?;
        directory.note(&file)?;
        let (mut engine, state) = Self::on(disk(file)?, &path)?;
        engine.directory = Some(directory);
        Ok((engine, state))
    }

    /// Loads the store of a directory that is open for reading, without changing anything.
    pub(super) fn read(directory: &mut Directory) -> Result<State> {
        let path = directory.path().display().to_string();
        let file = directory.open_store(Access::Read)?;
        directory.note(&file)?;
        let disk = FileBackend::new(file).map_err(|error| describe(&path, error.into()))?;
        catch_panic(&path, || {
            let opened = Builder::new().set_cache_size(CACHE_BYTES).open_read_only_with_backend(disk);
            let database = opened.map_err(|error| match error {
                DatabaseError::RepairAborted => unclean(&path),
                error => describe(&path, error.into()),
            })?;
            load(&database, &path)
        })
    }

    /// Opens the store on this disk, verifies all of it, and loads it.
    pub(super) fn on(disk: impl StorageBackend, path: &str) -> Result<(Self, State)> {
        let database = database(disk, path)?;
        let state = catch_panic(path, || {
            let state = load(&database, path)?;
            upgrade(&database).map_err(|error| describe(path, error))?;
            Ok(state)
        })?;
        Ok((Self { database, directory: None }, state))
    }

    /// Checks that the path of the store still leads to the open file.
    pub(super) fn check(&self) -> Result<()> {
        self.directory.as_ref().map_or(Ok(()), Directory::check)
    }

    /// Commits all writes with one fsync. An error before the commit itself changes nothing.
    ///
    /// The path is checked before anything is written, and again afterwards, so that durable data can be
    /// found under it.
    pub(super) fn commit(&mut self, writes: &Writes) -> Result<()> {
        self.check()?;
        let transaction = self.database.begin_write().map_err(|error| not_written(error.into()))?;
        put(&transaction, writes).map_err(not_written)?;
        transaction
            .commit()
            .map_err(|error| not_written(error.into()))
            .and_then(|()| self.check())
            .map_err(|error| error.with_outcome(Outcome::Unknown))
    }

    /// Moves the free space to the end of the file and truncates it. Returns by how many bytes the file has
    /// shrunk.
    ///
    /// Busy: refused, and the file is unchanged.
    pub(super) fn compact(&mut self) -> Result<u64> {
        use CompactionError::{EphemeralSavepointExists, PersistentSavepointExists, TransactionInProgress};
        self.check()?;
        let before = self.size().unwrap_or(0);
        let compacted = self.database.compact().map_err(|error| match error {
            EphemeralSavepointExists | PersistentSavepointExists | TransactionInProgress => {
                Error::new(ErrorKind::Busy, "the store can't be compacted while it is being read")
                    .with_source(error)
            }
            error => not_written(error.into()).with_outcome(Outcome::Unknown),
        });
        compacted.and_then(|_| self.check().map_err(|error| error.with_outcome(Outcome::Unknown)))?;
        Ok(before.saturating_sub(self.size().unwrap_or(before)))
    }

    fn size(&self) -> Option<u64> {
        self.directory.as_ref().and_then(Directory::size)
    }

    /// Closes the store cleanly, so that opening it needs no repair.
    pub(super) fn close(self) -> Result<()> {
        let closed = self.database.close().map_err(|error| not_written(error.into()));
        drop(self.directory);
        closed
    }
}

fn database(disk: impl StorageBackend, path: &str) -> Result<Database> {
    catch_panic(path, || {
        Builder::new()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .create_with_backend(disk)
            .map_err(|error| describe(path, error.into()))
    })
}

/// Reports a panic as damage: some assertions of the engine fail on damaged pages.
fn catch_panic<T>(path: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(damaged(path)))
}

fn initialize(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(RECORDS)?;
    transaction.open_table(META)?.insert(FORMAT_NAME, FORMAT)?;
    Ok(transaction.commit()?)
}

/// Upgrades an older store. Its records are the same in this format.
fn upgrade(database: &Database) -> Result<(), redb::Error> {
    let format = database.begin_read()?.open_table(META)?.get(FORMAT_NAME)?.map(|format| format.value());
    if format == Some(FORMAT) {
        return Ok(());
    }
    let transaction = database.begin_write()?;
    transaction.open_table(META)?.insert(FORMAT_NAME, FORMAT)?;
    Ok(transaction.commit()?)
}

/// Checks that this is a store of this crate before it is opened for writing, which repairs and marks the
/// file.
///
/// A store that can't be checked this way (not closed cleanly, or damaged) is left to the opening itself.
fn check_unopened(disk: impl StorageBackend, path: &str) -> Result<()> {
    let checked = catch_unwind(AssertUnwindSafe(|| {
        let database = Builder::new().set_cache_size(CACHE_BYTES).open_read_only_with_backend(disk).ok()?;
        Some(check_format(&database.begin_read().ok()?, path))
    }));
    match checked {
        Ok(Some(Err(error))) if matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::Unsupported) => {
            Err(error)
        }
        _ => Ok(()),
    }
}

fn check_format(transaction: &redb::ReadTransaction, path: &str) -> Result<()> {
    let format = match transaction.open_table(META) {
        Ok(meta) => {
            let format = meta.get(FORMAT_NAME).map_err(|error| describe(path, error.into()))?;
            format.map(|format| format.value())
        }
        Err(TableError::TableDoesNotExist(_) | TableError::TableTypeMismatch { .. }) => None,
        Err(error) => return Err(describe(path, error.into())),
    };
    match format {
        Some(1..=FORMAT) => Ok(()),
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

fn load(database: &impl ReadableDatabase, path: &str) -> Result<State> {
    let describe = |error: redb::Error| describe(path, error);
    let transaction = database.begin_read().map_err(|error| describe(error.into()))?;
    check_format(&transaction, path)?;
    let records = transaction.open_table(RECORDS).map_err(|error| match error {
        TableError::TableDoesNotExist(_) | TableError::TableTypeMismatch { .. } => damaged(path),
        error => describe(error.into()),
    })?;
    let mut state = State::default();
    for record in records.iter().map_err(|error| describe(error.into()))? {
        let (key, value) = record.map_err(|error| describe(error.into()))?;
        state.load(key.value(), value.value())?;
    }
    let leases = match transaction.open_table(LEASES) {
        Ok(leases) => leases,
        Err(TableError::TableDoesNotExist(_)) => return Ok(state),
        Err(TableError::TableTypeMismatch { .. }) => return Err(damaged(path)),
        Err(error) => return Err(describe(error.into())),
    };
    for lease in leases.iter().map_err(|error| describe(error.into()))? {
        let (name, value) = lease.map_err(|error| describe(error.into()))?;
        state.load_lease(name.value(), value.value());
    }
    Ok(state)
}

fn put(transaction: &redb::WriteTransaction, writes: &Writes) -> Result<(), redb::Error> {
    for (table, writes) in [(RECORDS, &writes.records), (LEASES, &writes.leases)] {
        if !writes.is_empty() {
            put_in(transaction, table, writes)?;
        }
    }
    Ok(())
}

fn put_in(
    transaction: &redb::WriteTransaction,
    table: TableDefinition<'_, &[u8], &[u8]>,
    writes: &TableWrites,
) -> Result<(), redb::Error> {
    let mut records = transaction.open_table(table)?;
    for (key, value) in writes {
        match value {
            Some(value) => records.insert(key.as_slice(), value.as_slice())?,
            None => records.remove(key.as_slice())?,
        };
    }
    Ok(())
}

#[cold]
fn damaged(path: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the store in {path} is damaged; restore it from an export"))
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

/// An error of a store that is being written.
#[cold]
fn not_written(error: redb::Error) -> Error {
    let message = "the store can't be written";
    match error {
        redb::Error::Io(error) => {
            let code = error.raw_os_error().map(|code| format!("os error {code}"));
            let failed = Error::new(ErrorKind::Unavailable, message).with_source(error);
            code.into_iter().fold(failed, Error::with_code)
        }
        error @ redb::Error::Corrupted(_) => Error::new(ErrorKind::Corrupt, message).with_source(error),
        error => Error::new(ErrorKind::Unavailable, message).with_source(error),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        io,
        sync::{
            Arc, Mutex,
            atomic::{AtomicBool, AtomicUsize, Ordering},
        },
    };

    use serde_json::json;

    use super::*;
    use crate::{ConfigValue, Credential, Key, backend::file::state::Draft};

    /// The position and data of a write.
    type UnsyncedWrite = (usize, Vec<u8>);

    /// A disk in memory that can be read, changed, and made to fail.
    #[derive(Clone, Debug, Default)]
    pub(in crate::backend::file) struct Disk {
        bytes: Arc<Mutex<Vec<u8>>>,
        pub(in crate::backend::file) full: Arc<AtomicBool>,
        pub(in crate::backend::file) cannot_sync: Arc<AtomicBool>,
        /// The bytes at the last sync, and the writes since then, any of which may survive power loss.
        synced: Arc<Mutex<(Vec<u8>, Vec<UnsyncedWrite>)>>,
        /// The number of syncs.
        pub(in crate::backend::file) syncs: Arc<AtomicUsize>,
        /// A sync waits while this is set.
        pub(in crate::backend::file) stalled: Arc<AtomicBool>,
        /// Whether a sync waits.
        waits: Arc<AtomicBool>,
    }

    impl Disk {
        fn holding(bytes: Vec<u8>) -> Self {
            Self { bytes: Arc::new(Mutex::new(bytes)), ..Self::default() }
        }

        /// A new store on this disk.
        pub(in crate::backend::file) fn store(&self) -> (Engine, State) {
            let new = database(self.clone(), "test").unwrap();
            initialize(&new).unwrap();
            new.close().unwrap();
            Engine::on(self.clone(), "test").unwrap()
        }

        /// A new store as if its file were the open one of this directory.
        pub(in crate::backend::file) fn store_in(&self, directory: Directory) -> (Engine, State) {
            let (mut engine, state) = self.store();
            engine.directory = Some(directory);
            (engine, state)
        }
    }

    impl Engine {
        /// Until this is dropped, the engine refuses to compact.
        pub(in crate::backend::file) fn reader(&self) -> impl Send + use<> {
            self.database.begin_read().unwrap()
        }
    }

    impl Disk {
        /// Returns once a sync waits: the committer has begun with a write and can begin no other.
        pub(in crate::backend::file) async fn stalls(&self) {
            while !self.waits.load(Ordering::SeqCst) {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        }

        /// The disk after power loss: of the writes since the last sync, those that `survives` picks.
        fn after_power_loss(&self, mut survives: impl FnMut() -> bool) -> Self {
            let (mut bytes, unsynced) = self.synced.lock().unwrap().clone();
            for (from, data) in unsynced.into_iter().filter(|_| survives()) {
                let to = from + data.len();
                if bytes.len() < to {
                    bytes.resize(to, 0);
                }
                bytes[from..to].copy_from_slice(&data);
            }
            Self::holding(bytes)
        }
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            Ok(self.bytes.lock().unwrap().len() as u64)
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            let bytes = self.bytes.lock().unwrap();
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            let found = from.checked_add(out.len()).and_then(|to| bytes.get(from..to));
            out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }

        fn set_len(&self, length: u64) -> io::Result<()> {
            let mut bytes = self.bytes.lock().unwrap();
            let length = usize::try_from(length).unwrap();
            if length > bytes.len() && self.full.load(Ordering::SeqCst) {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            bytes.resize(length, 0);
            Ok(())
        }

        fn sync_data(&self) -> io::Result<()> {
            while self.stalled.load(Ordering::SeqCst) {
                self.waits.store(true, Ordering::SeqCst);
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            self.waits.store(false, Ordering::SeqCst);
            self.syncs.fetch_add(1, Ordering::SeqCst);
            *self.synced.lock().unwrap() = (self.bytes.lock().unwrap().clone(), Vec::new());
            if self.cannot_sync.load(Ordering::SeqCst) {
                Err(io::Error::from_raw_os_error(libc::EIO))
            } else {
                Ok(())
            }
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            let mut bytes = self.bytes.lock().unwrap();
            let from = usize::try_from(offset).unwrap();
            let to = from + data.len();
            bytes.get_mut(from..to).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
            self.synced.lock().unwrap().1.push((from, data.to_vec()));
            Ok(())
        }
    }

    /// The bytes and records of a closed store with a few commits.
    fn closed_store() -> (Vec<u8>, State) {
        let disk = Disk::default();
        let (mut engine, mut state) = disk.store();
        let key = |name: String| Key::new(&name).unwrap();
        for round in 0..4_i64 {
            let mut draft = Draft::new(state);
            for n in 0..6 {
                let credential =
                    Credential::try_from(json!({ "token": format!("{n}-{round}").repeat(20) })).unwrap();
                draft.put_credential(
                    key(format!("id-{n}")),
                    credential.clone(),
                    credential.to_json().into_bytes(),
                );
            }
            let value = ConfigValue::new(json!({ "round": round })).unwrap();
            draft.put_config(key("config".into()), value.clone(), value.to_json().into_bytes());
            draft.increment(key("usage".into()), key("requests".into()), round).unwrap();
            let (next, writes) = draft.into_parts();
            engine.commit(&writes).unwrap();
            state = next;
        }
        engine.close().unwrap();
        let bytes = disk.bytes.lock().unwrap().clone();
        (bytes, state)
    }

    /// Opens a store of these bytes: `Ok(true)` if it has exactly the expected records.
    fn reopened(bytes: Vec<u8>, expected: &State) -> Result<bool> {
        let (_, state) = Engine::on(Disk::holding(bytes), "test")?;
        state.check(|_| true)?;
        Ok(state.credentials == expected.credentials
            && state.configs == expected.configs
            && state.usage == expected.usage)
    }

    #[test]
    fn any_flipped_byte_of_a_closed_store_is_harmless_or_reported() {
        let (bytes, expected) = closed_store();
        assert!(reopened(bytes.clone(), &expected).unwrap());
        // Thousands of panics of the engine are expected here; those of other tests are still printed.
        let (here, hook) = (std::thread::current().id(), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current().id() != here {
                hook(panic);
            }
        }));
        let (mut reported, mut wrong) = (0, Vec::new());
        // One bit of every byte, and all bits of every byte of the header.
        let flips = (0..bytes.len()).map(|at| (at, 1 << (at % 8))).chain((0..4096).map(|at| (at, 0xff)));
        for (at, bits) in flips {
            let mut damaged = bytes.clone();
            damaged[at] ^= bits;
            match reopened(damaged, &expected) {
                Ok(true) => {}
                Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) => {
                    reported += 1
                }
                Ok(false) => wrong.push(format!("byte {at}: other data, and no error")),
                Err(error) => wrong.push(format!("byte {at}: {error:?}")),
            }
        }
        drop(std::panic::take_hook());
        assert!(wrong.is_empty(), "{} bytes, {wrong:#?}", bytes.len());
        assert!(reported > 1000, "only {reported} flips were noticed");
    }
    #[test]
    fn acknowledged_commits_survive_power_loss() {
        let disk = Disk::default();
        let (mut engine, mut state) = disk.store();
        let mut random = fastrand::Rng::with_seed(7);
        for n in 0..150_i64 {
            let mut draft = Draft::new(state);
            let credential =
                Credential::try_from(json!({ "n": n, "text": "x".repeat(random.usize(..20_000)) })).unwrap();
            let id = Key::new(&format!("id-{}", n % 40)).unwrap();
            draft.put_credential(id, credential.clone(), credential.to_json().into_bytes());
            draft.increment(Key::new("usage").unwrap(), Key::new("requests").unwrap(), 1).unwrap();
            let (next, writes) = draft.into_parts();
            engine.commit(&writes).unwrap();
            state = next;
            for survivors in [0.0, 0.5, 1.0] {
                let lost = disk.after_power_loss(|| random.f64() < survivors);
                let (_, found) = Engine::on(lost, "test").unwrap();
                assert!(found.credentials == state.credentials, "commit {n} was acknowledged and is lost");
                assert!(found.usage == state.usage, "commit {n} was acknowledged and is lost");
            }
        }
    }

    #[test]
    fn creating_a_store_on_a_full_disk_is_reported() {
        let disk = Disk::default();
        disk.full.store(true, Ordering::SeqCst);
        let error = database(disk, "test").map(drop).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Unavailable, Some("os error 28")));
    }
}
