//! The seam to the disk: load, commit, compact. Only this file knows redb.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use redb::{
    Builder, Database, ReadableDatabase, ReadableTable, TableDefinition, TableError, backends::FileBackend,
};

use super::{
    directory::{Directory, io_error},
    state::State,
};
use crate::{Error, ErrorKind, Outcome, Result};

/// The version of what is written here. A store with a higher one is refused.
pub(super) const FORMAT: u64 = 1;

/// Every record, by `RecordKey`: JSON for documents, eight bytes (big-endian) for a counter.
const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FORMAT_NAME: &str = "format";

/// Everything is read from memory, so the engine needs only the pages it is about to write.
const CACHE_BYTES: usize = 8 << 20;

/// What a commit writes: a record's bytes, or `None` to delete it.
pub(super) type Writes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// The open store.
pub(super) struct Engine {
    // Dropped in this order: the file is closed before the lock is released.
    database: Database,
    _directory: Option<Directory>,
}

impl Engine {
    /// Opens or makes the store in this directory, verifies all of it, and loads it.
    pub(super) fn open(directory: Directory) -> Result<(Self, State)> {
        let place = directory.path().display().to_string();
        if !directory.has_store() {
            let database = database(directory.new_store()?, &place)?;
            initialize(&database).map_err(|error| describe(&place, error))?;
            // Closed before it is renamed, so that what gets the name is whole and on disk.
            database.close().map_err(|error| describe(&place, error.into()))?;
            directory.finish()?;
        }
        let database = database(directory.open_store()?, &place)?;
        let state = unpanicked(&place, || load(&database, &place))?;
        Ok((Self { database, _directory: Some(directory) }, state))
    }

    /// A new store on any disk: for tests that break it.
    #[cfg(test)]
    pub(super) fn on(disk: impl redb::StorageBackend) -> Result<Self> {
        let database =
            Builder::new().create_with_backend(disk).map_err(|error| describe("test", error.into()))?;
        initialize(&database).map_err(|error| describe("test", error))?;
        Ok(Self { database, _directory: None })
    }

    /// Makes all these writes durable together, with one fsync. An error before the commit itself has changed nothing.
    pub(super) fn commit(&mut self, writes: &Writes) -> Result<()> {
        let transaction = self.database.begin_write().map_err(|error| not_written(error.into()))?;
        put(&transaction, writes).map_err(not_written)?;
        transaction.commit().map_err(|error| not_written(error.into()).with_outcome(Outcome::Unknown))
    }

    /// Moves the free space to the end of the file and cuts it off.
    pub(super) fn compact(&mut self) -> Result<()> {
        self.database.compact().map(drop).map_err(|error| not_written(error.into()))
    }

    /// Closes the store properly, so that opening it needs no repair.
    pub(super) fn close(self) -> Result<()> {
        self.database.close().map_err(|error| not_written(error.into()))
    }
}

fn database(file: std::fs::File, place: &str) -> Result<Database> {
    let disk = FileBackend::new(file).map_err(|error| describe(place, error.into()))?;
    unpanicked(place, || {
        Builder::new()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .create_with_backend(disk)
            .map_err(|error| describe(place, error.into()))
    })
}

/// The engine asserts what it finds in damaged pages, here and there.
fn unpanicked<T>(place: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(damaged(place)))
}

fn initialize(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(RECORDS)?;
    transaction.open_table(META)?.insert(FORMAT_NAME, FORMAT)?;
    Ok(transaction.commit()?)
}

fn load(database: &Database, place: &str) -> Result<State> {
    let describe = |error: redb::Error| describe(place, error);
    let transaction = database.begin_read().map_err(|error| describe(error.into()))?;
    let foreign = || {
        Error::new(
            ErrorKind::InvalidValue,
            format!("the file in {place} is a redb database, but not a store of ours"),
        )
    };
    let format = match transaction.open_table(META) {
        Ok(meta) => {
            meta.get(FORMAT_NAME).map_err(|error| describe(error.into()))?.map(|format| format.value())
        }
        Err(TableError::TableDoesNotExist(_) | TableError::TableTypeMismatch { .. }) => None,
        Err(error) => return Err(describe(error.into())),
    };
    match format {
        Some(FORMAT) => {}
        Some(newer) => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the store in {place} has format {newer}, this version reads format {FORMAT}"),
            ));
        }
        None => return Err(foreign()),
    }
    let records = match transaction.open_table(RECORDS) {
        Ok(records) => records,
        Err(TableError::TableDoesNotExist(_) | TableError::TableTypeMismatch { .. }) => return Err(foreign()),
        Err(error) => return Err(describe(error.into())),
    };
    let mut state = State::default();
    for record in records.iter().map_err(|error| describe(error.into()))? {
        let (key, value) = record.map_err(|error| describe(error.into()))?;
        state.load(key.value(), value.value())?;
    }
    Ok(state)
}

fn put(transaction: &redb::WriteTransaction, writes: &Writes) -> Result<(), redb::Error> {
    let mut records = transaction.open_table(RECORDS)?;
    for (key, value) in writes {
        match value {
            Some(value) => records.insert(key.as_slice(), value.as_slice())?,
            None => records.remove(key.as_slice())?,
        };
    }
    Ok(())
}

#[cold]
fn damaged(place: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the store in {place} is damaged; restore it from an export"))
}

/// An error of a store that is being opened.
#[cold]
fn describe(place: &str, error: redb::Error) -> Error {
    use redb::Error::{
        Corrupted, DatabaseAlreadyOpen, Io, LockProtocolMismatch, RepairAborted, UpgradeRequired,
    };
    match error {
        // redb's word for "there is no magic number at the start of this file".
        Io(error) if error.kind() == std::io::ErrorKind::InvalidData => damaged(place).with_source(error),
        Io(error) => io_error(format!("the store in {place} can't be opened"), error),
        DatabaseAlreadyOpen | LockProtocolMismatch => {
            Error::new(ErrorKind::Busy, format!("the store in {place} is open in another process"))
        }
        UpgradeRequired(version) => Error::new(
            ErrorKind::Unsupported,
            format!(
                "the store in {place} is a redb file of version {version}, which this version does not read"
            ),
        ),
        error @ (Corrupted(_) | RepairAborted) => damaged(place).with_source(error),
        error => Error::new(ErrorKind::Internal, format!("the store in {place} can't be opened"))
            .with_source(error),
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
