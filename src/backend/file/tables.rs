//! The tables of the file, and the errors of reading and writing them.

use redb::TableDefinition;

use crate::{Error, ErrorKind};

/// Every record, by `RecordKey`: JSON for documents, eight bytes (big-endian) for a counter.
pub(super) const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");

/// The leases, by name. A store that a version without leases made gets the table with its first lease.
pub(super) const LEASES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("leases");

/// The keys of plans by the time when their records expire, in milliseconds since 1970.
pub(super) const EXPIRIES: TableDefinition<'_, (i64, &str), ()> = TableDefinition::new("plan_expiries");

/// Numbers about the store, by name.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// While the store is compacted: the names that a round of it has to copy again, by the number of the round.
/// The first byte of a name is its table: see `draft`.
pub(super) const CHANGED: TableDefinition<'_, (u64, &[u8]), ()> = TableDefinition::new("changed");

/// An error of a store that is being written.
#[cold]
pub(super) fn not_written(error: redb::Error) -> Error {
    failed("the store can't be written", error)
}

/// An error of a store that is being read.
#[cold]
pub(super) fn not_read(error: redb::Error) -> Error {
    failed("the store can't be read", error)
}

fn failed(message: &'static str, error: redb::Error) -> Error {
    match error {
        redb::Error::Io(error) => {
            let code = error.raw_os_error().map(|code| format!("os error {code}"));
            let failed = Error::new(ErrorKind::Unavailable, message).with_source(error);
            code.into_iter().fold(failed, Error::with_code)
        }
        redb::Error::DatabaseClosed => Error::closed(),
        error @ redb::Error::Corrupted(_) => Error::new(ErrorKind::Corrupt, message).with_source(error),
        error => Error::new(ErrorKind::Unavailable, message).with_source(error),
    }
}
