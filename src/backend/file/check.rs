//! [`File::check`]: reads every record.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    File, LABEL,
    document::Document,
    draft::{CONFIGS, CREDENTIALS, PLANS, STORED_BYTES, USAGE_RECORDS, decode_count},
    held::Held,
    snapshot::{Snapshot, Stored},
};
use crate::{
    ConfigValue, Credential, Error, ErrorKind, Key, Result,
    codec::{RecordKey, decode_audit, decode_plan},
};

/// No more keys than this are listed of each kind.
const LISTED: usize = 20;

/// What [`File::check`] found.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct CheckReport {
    /// Whether the checksums of the whole file were verified when this handle opened the store. Opening does
    /// so unless [`Verify::Unclean`](crate::Verify::Unclean) is set, or another process has the store open.
    pub checksums_verified: bool,
    /// The records by kind: `credentials`, `configs`, `counters`, `plans`, `audit`, `leases`, and `unknown`.
    pub records: BTreeMap<&'static str, CheckedRecords>,
    /// Numbers of the store that differ from what it has.
    pub miscounts: Vec<Miscount>,
    /// The size of the file in bytes, if the system reports it.
    pub file_bytes: Option<u64>,
    /// The bytes of names and values.
    pub stored_bytes: u64,
    /// The bytes of the pages that hold them.
    pub allocated_bytes: u64,
    /// The bytes of these pages that hold nothing.
    pub fragmented_bytes: u64,
    /// The bytes of the file that hold nothing or are about to be free. [`compact`](File::compact) returns
    /// them to the file system.
    pub free_bytes: Option<u64>,
}

/// The records of one kind.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct CheckedRecords {
    /// The number of records.
    pub count: u64,
    /// How many of them can't be read.
    pub unreadable: u64,
    /// The keys of the first of these, if they have readable keys.
    pub unreadable_keys: Vec<Key>,
}

/// A number that the store keeps and that is wrong.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Miscount {
    /// Its name.
    pub name: &'static str,
    /// What the store says.
    pub stored: u64,
    /// What it has.
    pub found: u64,
}

impl CheckReport {
    /// Whether no damage was found.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.unreadable() == 0 && self.miscounts.is_empty()
    }

    /// The number of unreadable records of all kinds.
    #[must_use]
    pub fn unreadable(&self) -> u64 {
        self.records.values().map(|checked| checked.unreadable).sum()
    }

    fn add(&mut self, kind: &'static str, read: Result<(), Option<Key>>) {
        let checked = self.records.entry(kind).or_default();
        checked.count += 1;
        if let Err(key) = read {
            checked.unreadable += 1;
            if checked.unreadable_keys.len() < LISTED {
                checked.unreadable_keys.extend(key);
            }
        }
    }
}

impl File {
    /// Reads and decodes every record of one state of the store, and compares the numbers that the store
    /// keeps with what it has. Changes nothing. Neither reads nor writes wait.
    ///
    /// There is no deadline: it takes about as long as an export.
    ///
    /// # Errors
    ///
    /// [`Corrupt`](ErrorKind::Corrupt) if the file itself can't be read to its end. Unreadable records are
    /// not an error: they are in the report.
    pub async fn check(&self) -> Result<CheckReport> {
        let engine = self.store.reader.newest()?.engine.clone();
        let checked = tokio::task::spawn_blocking(move || {
            let snapshot = engine.snapshot()?;
            let size = engine.directory().and_then(super::Directory::size);
            let mut report = CheckReport {
                checksums_verified: engine.is_verified(),
                file_bytes: size,
                ..CheckReport::default()
            };
            read_all(&snapshot, &mut report)?;
            compare(&snapshot, &mut report)?;
            measure(&snapshot, &mut report)?;
            Ok(report)
        });
        checked.await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Corrupt, "the store is damaged; restore it from a backup or an export"))
        })
    }
}

fn read_all(snapshot: &Snapshot, report: &mut CheckReport) -> Result<()> {
    let mut usage_key = None;
    let mut usage_records = 0;
    for kind in ["credentials", "configs", "counters", "plans", "audit", "leases"] {
        report.records.insert(kind, CheckedRecords::default());
    }
    for stored in snapshot.records(..)? {
        let stored = stored?;
        report.stored_bytes += stored.bytes();
        let Ok(name) = stored.name() else {
            report.add("unknown", Err(None));
            continue;
        };
        if let RecordKey::Usage(key, _) = &name
            && usage_key.as_ref() != Some(key)
        {
            usage_records += 1;
            usage_key = Some(key.clone());
        }
        let (kind, key, read) = decoded(name, &stored);
        report.add(kind, read.map_err(|_| key));
    }
    for stored in snapshot.leases()?.into_iter().flatten() {
        let stored = stored?;
        let key = std::str::from_utf8(stored.raw_name()).ok().and_then(|name| Key::new(name).ok());
        let read = Held::decode(stored.raw_name(), stored.value()).map(drop);
        report.add("leases", read.map_err(|_| key));
    }
    compare_one(snapshot, report, USAGE_RECORDS, usage_records)
}

/// Decodes a record. Returns its kind and its key, too.
fn decoded(name: RecordKey, stored: &Stored) -> (&'static str, Option<Key>, Result<()>) {
    let bytes = stored.value();
    match name {
        RecordKey::Credential(key) => ("credentials", Some(key), Credential::decode(bytes).map(drop)),
        RecordKey::Config(key) => ("configs", Some(key), ConfigValue::decode(bytes).map(drop)),
        RecordKey::Usage(key, _) => {
            let read = decode_count(&key, bytes).map(drop);
            ("counters", Some(key), read)
        }
        RecordKey::Plan(key) => ("plans", Some(key), decode_plan(bytes).map(drop)),
        RecordKey::Audit(_) => ("audit", None, decode_audit(LABEL, bytes).map(drop)),
    }
}

fn compare(snapshot: &Snapshot, report: &mut CheckReport) -> Result<()> {
    for (name, kind) in [(CREDENTIALS, "credentials"), (CONFIGS, "configs"), (PLANS, "plans")] {
        let found = report.records[kind].count;
        compare_one(snapshot, report, name, found)?;
    }
    let found = report.stored_bytes;
    compare_one(snapshot, report, STORED_BYTES, found)
}

fn compare_one(snapshot: &Snapshot, report: &mut CheckReport, name: &'static str, found: u64) -> Result<()> {
    // A store of an older version has no numbers until it is opened for writing.
    if snapshot.has_numbers()? {
        let stored = snapshot.number(name)?.unwrap_or(0);
        report.miscounts.extend((stored != found).then_some(Miscount { name, stored, found }));
    }
    Ok(())
}

/// Adds up the pages of the tables.
fn measure(snapshot: &Snapshot, report: &mut CheckReport) -> Result<()> {
    for stats in snapshot.tables()? {
        report.allocated_bytes += stats.stored_bytes() + stats.metadata_bytes() + stats.fragmented_bytes();
        report.fragmented_bytes += stats.fragmented_bytes();
    }
    report.free_bytes = report.file_bytes.map(|size| size.saturating_sub(report.allocated_bytes));
    Ok(())
}
