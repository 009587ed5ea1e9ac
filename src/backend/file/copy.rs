//! A copy of the store in a file of its own: for a backup, and for a compaction.

use std::panic::{AssertUnwindSafe, catch_unwind};

use redb::{
    ReadTransaction, ReadableTable, ReadableTableMetadata, TableDefinition, TableError, TableHandle,
    WriteTransaction,
};

use super::{
    draft::{COPIES, COPYING, ID, Part},
    snapshot::Snapshot,
    tables::{CHANGED, EXPIRIES, LEASES, META, RECORDS, not_read},
};
use crate::{Error, ErrorKind, Result};

/// The tables that a copy has, or leaves out.
const KNOWN: [&str; 5] = ["changed", "leases", "meta", "plan_expiries", "records"];

/// A copy is written in commits of about this many bytes: the system then writes a little at a time, and the
/// syncs of the store, on the same disk, do not wait for all of it.
const PIECE_BYTES: usize = 16 << 20;

/// A copy looks this often, in records, whether it is still wanted.
const LOOK_EVERY: usize = 1024;

/// The numbers of the store that differ in its copy.
#[derive(Clone, Copy)]
pub(super) enum Lineage {
    /// A store of its own.
    New,
    /// The store that takes the place of this one.
    Successor,
}

/// What can fail: reading the store, or writing the copy.
enum Failed {
    Read(redb::Error),
    Write(redb::Error),
    Stopped,
}

impl Failed {
    fn read(error: impl Into<redb::Error>) -> Self {
        Self::Read(error.into())
    }

    fn write(error: impl Into<redb::Error>) -> Self {
        Self::Write(error.into())
    }
}

/// Copies all tables of the store. `is_wanted`: false ends the copy with an error.
pub(super) fn copy_all(
    source: &Snapshot,
    target: &redb::Database,
    lineage: Lineage,
    is_wanted: &dyn Fn() -> bool,
) -> Result<()> {
    check_tables(source)?;
    guarded(|| {
        let from = source.transaction();
        copy_table(from, target, RECORDS, |(name, value)| name.len() + value.len(), is_wanted)?;
        copy_table(from, target, LEASES, |(name, value)| name.len() + value.len(), is_wanted)?;
        copy_table(from, target, EXPIRIES, |((_, key), ())| key.len() + size_of::<i64>(), is_wanted)?;
        let to = target.begin_write().map_err(Failed::write)?;
        copy_numbers(from, &to, lineage)?;
        to.commit().map_err(Failed::write)
    })
}

/// Copies what has changed in this round of the compaction. Returns the number of names.
pub(super) fn copy_changed(source: &Snapshot, target: &redb::Database, round: u64) -> Result<u64> {
    guarded(|| {
        let from = source.transaction();
        let Some(changed) = existing(from, CHANGED)? else { return Ok(0) };
        let to = target.begin_write().map_err(Failed::write)?;
        let mut names = 0;
        {
            let (records, leases) = (existing(from, RECORDS)?, existing(from, LEASES)?);
            let expiries = existing(from, EXPIRIES)?;
            let mut new_records = to.open_table(RECORDS).map_err(Failed::write)?;
            let mut new_expiries = to.open_table(EXPIRIES).map_err(Failed::write)?;
            for entry in changed.range((round, &[][..])..(round + 1, &[][..])).map_err(Failed::read)? {
                let name = entry.map_err(Failed::read)?.0;
                names += 1;
                match name.value().1.split_first() {
                    Some((part, name)) if *part == Part::Record as u8 => {
                        copy_one(records.as_ref(), &mut new_records, name)?;
                    }
                    Some((part, name)) if *part == Part::Lease as u8 => {
                        // Opened only here: a store without leases has no table of them.
                        let mut new_leases = to.open_table(LEASES).map_err(Failed::write)?;
                        copy_one(leases.as_ref(), &mut new_leases, name)?;
                    }
                    Some((part, name)) if *part == Part::Expiry as u8 => {
                        let Some((expires, key)) = expiry(name) else { continue };
                        let is_there = match &expiries {
                            Some(expiries) => expiries.get((expires, key)).map_err(Failed::read)?.is_some(),
                            None => false,
                        };
                        match is_there {
                            true => new_expiries.insert((expires, key), ()).map(drop),
                            false => new_expiries.remove((expires, key)).map(drop),
                        }
                        .map_err(Failed::write)?;
                    }
                    _ => {}
                }
            }
        }
        copy_numbers(from, &to, Lineage::Successor)?;
        to.commit().map_err(Failed::write)?;
        Ok(names)
    })
}

/// Fails unless the copy has as many entries in each table as the store.
pub(super) fn check_lengths(source: &Snapshot, copy: &ReadTransaction) -> Result<u64> {
    let lengths = |from: &ReadTransaction| {
        let length = |table: Option<u64>| table.unwrap_or(0);
        let of = |table: TableDefinition<'_, &'static [u8], &'static [u8]>| {
            existing(from, table)?.map(|table| table.len().map_err(Failed::read)).transpose()
        };
        let expiries =
            existing(from, EXPIRIES)?.map(|table| table.len().map_err(Failed::read)).transpose()?;
        Ok([length(of(RECORDS)?), length(of(LEASES)?), length(expiries)])
    };
    let (wanted, found) = (guarded(|| lengths(source.transaction()))?, guarded(|| lengths(copy))?);
    match wanted == found {
        true => Ok(found[0]),
        false => Err(Error::new(ErrorKind::Internal, "the copy does not have all records of the store")),
    }
}

/// Fails if the store has tables of a later version, which can't be copied.
fn check_tables(source: &Snapshot) -> Result<()> {
    let mut tables = source.transaction().list_tables().map_err(|error| not_read(error.into()))?;
    match tables.find(|table| !KNOWN.contains(&table.name())) {
        None => Ok(()),
        Some(table) => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the store has the table `{}`, which this version can't copy: use the version that made it",
                table.name()
            ),
        )),
    }
}

type Table<K, V> = redb::ReadOnlyTable<K, V>;

/// A table, if the store has it.
fn existing<K: redb::Key + 'static, V: redb::Value + 'static>(
    from: &ReadTransaction,
    table: TableDefinition<'_, K, V>,
) -> Result<Option<Table<K, V>>, Failed> {
    match from.open_table(table) {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(Failed::read(error)),
    }
}

/// Copies a table in the order of its keys, which fills the pages of the copy. `bytes` is the size of an
/// entry.
fn copy_table<K, V>(
    from: &ReadTransaction,
    target: &redb::Database,
    table: TableDefinition<'_, K, V>,
    bytes: impl Fn((K::SelfType<'_>, V::SelfType<'_>)) -> usize,
    is_wanted: &dyn Fn() -> bool,
) -> Result<(), Failed>
where
    K: redb::Key + 'static,
    V: redb::Value + 'static,
{
    let Some(entries) = existing(from, table)? else { return Ok(()) };
    let mut entries = entries.iter().map_err(Failed::read)?.peekable();
    loop {
        let to = target.begin_write().map_err(Failed::write)?;
        {
            let mut copy = to.open_table(table).map_err(Failed::write)?;
            let (mut piece, mut count) = (0, 0_usize);
            while piece < PIECE_BYTES
                && let Some(entry) = entries.next()
            {
                let (name, value) = entry.map_err(Failed::read)?;
                copy.insert(name.value(), value.value()).map_err(Failed::write)?;
                piece += bytes((name.value(), value.value()));
                count += 1;
                if count.is_multiple_of(LOOK_EVERY) && !is_wanted() {
                    return Err(Failed::Stopped);
                }
            }
        }
        to.commit().map_err(Failed::write)?;
        if entries.peek().is_none() {
            return Ok(());
        }
    }
}

/// Copies the current value of a name.
fn copy_one(
    from: Option<&Table<&'static [u8], &'static [u8]>>,
    to: &mut redb::Table<'_, &'static [u8], &'static [u8]>,
    name: &[u8],
) -> Result<(), Failed> {
    match from.map(|from| from.get(name)).transpose().map_err(Failed::read)?.flatten() {
        Some(value) => to.insert(name, value.value()).map(drop),
        None => to.remove(name).map(drop),
    }
    .map_err(Failed::write)
}

/// Copies the numbers of the store.
fn copy_numbers(from: &ReadTransaction, to: &WriteTransaction, lineage: Lineage) -> Result<(), Failed> {
    let Some(numbers) = existing(from, META)? else { return Ok(()) };
    let mut copy = to.open_table(META).map_err(Failed::write)?;
    for entry in numbers.iter().map_err(Failed::read)? {
        let (name, number) = entry.map_err(Failed::read)?;
        let number = match (name.value(), lineage) {
            (COPYING, _) | (ID | COPIES, Lineage::New) => continue,
            (COPIES, Lineage::Successor) => continue,
            _ => number.value(),
        };
        copy.insert(name.value(), number).map_err(Failed::write)?;
    }
    if let Lineage::Successor = lineage {
        let copies = numbers.get(COPIES).map_err(Failed::read)?.map_or(0, |copies| copies.value());
        copy.insert(COPIES, copies + 1).map_err(Failed::write)?;
    }
    Ok(())
}

/// The time and the key in the name of an expiry.
fn expiry(name: &[u8]) -> Option<(i64, &str)> {
    let (expires, key) = name.split_first_chunk()?;
    Some((i64::from_be_bytes(*expires), std::str::from_utf8(key).ok()?))
}

/// Reports a panic as damage: some assertions of the engine fail on damaged pages.
fn guarded<T>(work: impl FnOnce() -> Result<T, Failed>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(Failed::Read(error))) => Err(not_read(error)),
        Ok(Err(Failed::Write(error))) => Err(not_copied(error)),
        Ok(Err(Failed::Stopped)) => {
            Err(Error::new(ErrorKind::Unavailable, "the copy of the store was given up"))
        }
        Err(_) => {
            Err(Error::new(ErrorKind::Corrupt, "the store is damaged; restore it from a backup or an export"))
        }
    }
}

/// An error of the copy's file.
#[cold]
pub(super) fn not_copied(error: redb::Error) -> Error {
    match error {
        redb::Error::Io(error) => Error::io("the copy of the store can't be written", error),
        error => {
            Error::new(ErrorKind::Unavailable, "the copy of the store can't be written").with_source(error)
        }
    }
}
