//! A consistent state of the store, from which any number of calls read.

use std::{
    collections::BTreeSet,
    ops::{Bound, RangeBounds},
    panic::{AssertUnwindSafe, catch_unwind},
};

use redb::{
    OwnedAccessGuard, OwnedRange, ReadOnlyTable, ReadTransaction, ReadableTableMetadata, TableError,
    TableStats,
};

use super::{
    database::Opened,
    document::Document,
    draft::{CONFIGS, CREDENTIALS, STORED_BYTES, USAGE_RECORDS},
    log,
    tables::{LEASES, META, RECORDS, not_read},
};
use crate::{
    Error, ErrorKind, Key, Result,
    backend::feed::Change,
    codec::{RecordKey, decode_key},
};

/// The state after a commit. Later commits do not change it.
pub(super) struct Snapshot {
    transaction: ReadTransaction,
    records: ReadOnlyTable<&'static [u8], &'static [u8]>,
    // Dropped last.
    opened: Opened,
}

impl Snapshot {
    pub(super) fn new(transaction: ReadTransaction, opened: &Opened) -> Result<Self> {
        let records = transaction.open_table(RECORDS).map_err(|error| not_read(error.into()))?;
        Ok(Self { transaction, records, opened: opened.clone() })
    }

    /// For a copy of all tables.
    pub(super) const fn transaction(&self) -> &ReadTransaction {
        &self.transaction
    }

    /// What the pages of each table hold.
    pub(super) fn tables(&self) -> Result<Vec<TableStats>> {
        guarded(|| {
            let tables = self.transaction.list_tables()?;
            tables.map(|table| Ok(self.transaction.open_untyped_table(table)?.stats()?)).collect()
        })
    }

    /// A number about the store.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>> {
        guarded(|| Ok(self.transaction.open_table(META)?.get(name)?.map(|number| number.value())))
    }

    /// See [`log::read`].
    pub(super) fn logged(&self, then: u64, now: u64, but: u64) -> Result<Option<BTreeSet<Change>>> {
        guarded(|| log::read(&self.transaction, then, now, but))
    }

    /// Whether the store counts its records. One of an older version does once it is opened for writing.
    pub(super) fn has_numbers(&self) -> Result<bool> {
        self.number(STORED_BYTES).map(|number| number.is_some())
    }

    /// A number of records, counted if the store does not have it.
    pub(super) fn counted(&self, name: &str) -> Result<u64> {
        if self.has_numbers()? {
            return Ok(self.number(name)?.unwrap_or(0));
        }
        let names = match name {
            CREDENTIALS => RecordKey::credentials(),
            CONFIGS => RecordKey::configs(),
            USAGE_RECORDS => RecordKey::usage(),
            _ => return self.records(..)?.try_fold(0, |sum, stored| Ok(sum + stored?.bytes())),
        };
        let (mut count, mut last) = (0, None);
        for stored in self.records(names)? {
            let stored = stored?;
            if last.as_deref() != Some(stored.raw_key()) {
                count += 1;
                last = Some(stored.raw_key().to_vec());
            }
        }
        Ok(count)
    }

    /// The bytes of a record.
    pub(super) fn get(&self, name: &RecordKey) -> Result<Option<OwnedAccessGuard<&'static [u8]>>> {
        let name = name.encode();
        guarded(|| Ok(self.records.get_owned(name.as_slice())?))
    }

    /// A document. None: it has more bytes than `most`.
    pub(super) fn document<D: Document>(&self, key: &Key, most: usize) -> Result<Option<D>> {
        let stored = self.get(&D::name(key.clone()))?.ok_or_else(|| D::missing(key))?;
        if stored.value().len() > most {
            return Ok(None);
        }
        D::decode(stored.value()).map(Some).map_err(|error| error.with_key(key))
    }

    /// The records of these names, in order.
    pub(super) fn records(&self, names: impl RangeBounds<Vec<u8>>) -> Result<Records> {
        let names = (bytes(names.start_bound()), bytes(names.end_bound()));
        let range = guarded(|| Ok(self.records.range_owned::<&[u8]>(names)?))?;
        Ok(Records { range, _opened: self.opened.clone() })
    }

    /// All leases, by name.
    pub(super) fn leases(&self) -> Result<Option<Records>> {
        let range = guarded(|| match self.transaction.open_table(LEASES) {
            Ok(leases) => Ok(Some(leases.range_owned::<&[u8]>(..)?)),
            // The store has never had a lease.
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        })?;
        Ok(range.map(|range| Records { range, _opened: self.opened.clone() }))
    }

    /// The number of records of all kinds.
    pub(super) fn len(&self) -> Result<u64> {
        guarded(|| Ok(self.records.len()?))
    }
}

fn bytes(bound: Bound<&Vec<u8>>) -> Bound<&[u8]> {
    bound.map(Vec::as_slice)
}

/// Records in the order of their names, with the bytes of each.
pub(super) struct Records {
    range: OwnedRange<&'static [u8], &'static [u8]>,
    // Dropped last.
    _opened: Opened,
}

impl Records {
    /// The next record in either direction.
    fn taken(
        &mut self,
        next: impl FnOnce(
            &mut OwnedRange<&'static [u8], &'static [u8]>,
        ) -> Option<
            redb::Result<
                (OwnedAccessGuard<&'static [u8]>, OwnedAccessGuard<&'static [u8]>),
                redb::StorageError,
            >,
        >,
    ) -> Option<Result<Stored>> {
        guarded(|| Ok(next(&mut self.range).transpose()?))
            .map(|found| found.map(|(name, value)| Stored { name, value }))
            .transpose()
    }
}

/// A stored record: its name and its bytes.
pub(super) struct Stored {
    name: OwnedAccessGuard<&'static [u8]>,
    value: OwnedAccessGuard<&'static [u8]>,
}

impl Stored {
    pub(super) fn name(&self) -> Result<RecordKey> {
        RecordKey::decode(self.name.value())
    }

    /// The key of a credential, a config value or a plan.
    pub(super) fn key(&self) -> Result<Key> {
        decode_key(self.name.value().get(1..).unwrap_or_default())
    }

    /// The key and the document.
    pub(super) fn document<D: Document>(&self) -> Result<(Key, D)> {
        let key = self.key()?;
        let document = D::decode(self.value()).map_err(|error| error.with_key(&key))?;
        Ok((key, document))
    }

    /// The number of bytes of name and value.
    pub(super) fn bytes(&self) -> u64 {
        (self.name.value().len() + self.value.value().len()) as u64
    }

    /// The bytes of the name.
    pub(super) fn raw_name(&self) -> &[u8] {
        self.name.value()
    }

    /// The bytes of the name up to the field of a counter.
    pub(super) fn raw_key(&self) -> &[u8] {
        RecordKey::without_field(self.raw_name())
    }

    /// The key and the field of a counter.
    pub(super) fn counter_name(&self) -> Result<(Key, Key)> {
        match self.name()? {
            RecordKey::Usage(key, field) => Ok((key, field)),
            _ => Err(Error::new(ErrorKind::Corrupt, "the name of a stored record can't be read")),
        }
    }

    pub(super) fn value(&self) -> &[u8] {
        self.value.value()
    }
}

impl Iterator for Records {
    type Item = Result<Stored>;

    fn next(&mut self) -> Option<Self::Item> {
        self.taken(Iterator::next)
    }
}

impl DoubleEndedIterator for Records {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.taken(DoubleEndedIterator::next_back)
    }
}

/// Reads, and reports a panic as damage: some assertions of the engine fail on damaged pages.
fn guarded<T>(read: impl FnOnce() -> Result<T, redb::Error>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(read) => read.map_err(not_read),
        Err(_) => {
            Err(Error::new(ErrorKind::Corrupt, "the store is damaged; restore it from a backup or an export"))
        }
    }
}
