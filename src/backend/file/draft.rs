//! The next state of the store: a write transaction, and what must be known of it once it is committed.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant, SystemTime},
};

use redb::{ReadableTable, Table, WriteTransaction};

use super::{
    directory::Directory,
    held::Held,
    log,
    tables::{CHANGED, EXPIRIES, LEASES, META, RECORDS, not_written},
};
use crate::{
    Error, ErrorKind, Key, Result,
    codec::{PlanRecord, RecordKey, decode_plan, encode_audit, encode_plan, to_millis},
    error::Kind,
    history::DocumentKind,
    model::Within,
    plan::{AuditEntry, MAX_AUDIT_ENTRIES},
};

/// Claims look for leases to forget no more often than this, in microseconds, because they then read all.
const SWEEP_PAUSE: u64 = 60 * 1_000_000;

/// The largest number of plan records that a store keeps: see [`File`](crate::File).
pub const MAX_PLAN_RECORDS: u64 = 10_000;

/// Names of [`META`].
pub(super) const CREDENTIALS: &str = "credentials";
pub(super) const CONFIGS: &str = "configs";
pub(super) const USAGE_RECORDS: &str = "usage_records";
pub(super) const COMMITS: &str = "commits";
pub(super) const STORED_BYTES: &str = "stored_bytes";
pub(super) const PLANS: &str = "plans";
/// When the store was last backed up, in milliseconds since 1970.
pub(super) const LAST_BACKUP: &str = "last_backup";
/// Until when the store is watched, in milliseconds since 1970: until then processes that share it log what
/// they change.
pub(super) const WATCHED: &str = "watched";
/// The round of the compaction that is under way. The first is random, so that it tells compactions apart.
pub(super) const COPYING: &str = "copying";
/// A random number that a store gets with its first compaction, and how often it was compacted since.
pub(super) const ID: &str = "id";
pub(super) const COPIES: &str = "copies";

/// A table, in the first byte of a changed name.
#[derive(Clone, Copy)]
pub(super) enum Part {
    /// The name of an expiry is its time in eight bytes (big-endian), then the key.
    Expiry = b'e' as isize,
    Lease = b'l' as isize,
    Record = b'r' as isize,
}

/// What the committer keeps from one draft to the next.
#[derive(Default)]
pub(super) struct Memory {
    /// When ended leases were removed last, in microseconds since 1970.
    leases_swept: u64,
    /// When a compaction was last looked for.
    copy_seen: Option<Instant>,
    /// The number of this handle in the log.
    writer: u64,
    /// When it was last looked whether the store is watched, and whether it was.
    watched: Option<(Instant, bool)>,
}

impl Memory {
    pub(super) fn of(writer: u64) -> Self {
        Self { writer, ..Self::default() }
    }

    /// Whether the store is watched. It is not looked at each commit, which must cost nothing more.
    fn is_watched(&mut self, transaction: &WriteTransaction) -> Result<bool, redb::Error> {
        if let Some((looked, is_watched)) = self.watched
            && looked.elapsed() < WATCHED_PAUSE
        {
            return Ok(is_watched);
        }
        let is_watched = number(transaction, WATCHED)?.is_some_and(|until| until > millis());
        self.watched = Some((Instant::now(), is_watched));
        Ok(is_watched)
    }
}

/// How often it is looked whether the store is watched.
const WATCHED_PAUSE: Duration = Duration::from_millis(250);

/// Now, in milliseconds since 1970.
pub(super) fn millis() -> u64 {
    to_millis(SystemTime::now()).unsigned_abs()
}

/// How often a compaction is looked for, while the store says that there is one.
const COPY_PAUSE: Duration = Duration::from_secs(60);

type Bytes<'t> = Table<'t, &'static [u8], &'static [u8]>;

/// A write transaction.
///
/// A method that returns [`NotFound`](ErrorKind::NotFound) or another error of its arguments changes nothing,
/// so the other changes of the group are not affected. After an error of the engine nothing of the group is
/// kept.
pub(super) struct Draft<'t> {
    transaction: &'t WriteTransaction,
    memory: &'t mut Memory,
    records: Bytes<'t>,
    counts: Counts,
    /// The first error of the engine.
    failed: Option<Error>,
    changed: Documents,
    is_changed: bool,
    /// Whether the disk has too little space for more than deletes.
    is_full: bool,
    /// While the store is compacted: the round, and what changes in this draft.
    copying: Option<(u64, BTreeSet<Vec<u8>>)>,
}

/// How the numbers of records change.
#[derive(Default)]
struct Counts {
    credentials: i64,
    configs: i64,
    usage_records: i64,
    plans: i64,
    stored_bytes: i64,
}

impl Counts {
    fn each(&self) -> [(&'static str, i64); 5] {
        [
            (CREDENTIALS, self.credentials),
            (CONFIGS, self.configs),
            (USAGE_RECORDS, self.usage_records),
            (PLANS, self.plans),
            (STORED_BYTES, self.stored_bytes),
        ]
    }

    fn add(&mut self, name: &RecordKey, change: i64) {
        match name {
            RecordKey::Credential(_) => self.credentials += change,
            RecordKey::Config(_) => self.configs += change,
            RecordKey::Plan(_) => self.plans += change,
            RecordKey::Usage(..) | RecordKey::Audit(_) => {}
        }
    }
}

impl<'t> Draft<'t> {
    pub(super) fn new(
        transaction: &'t WriteTransaction,
        memory: &'t mut Memory,
        is_full: bool,
    ) -> Result<Self> {
        let records = transaction.open_table(RECORDS).map_err(|error| not_written(error.into()))?;
        Ok(Self {
            transaction,
            memory,
            records,
            counts: Counts::default(),
            failed: None,
            changed: Vec::new(),
            is_changed: false,
            is_full,
            copying: number(transaction, COPYING).map_err(not_written)?.map(|round| (round, BTreeSet::new())),
        })
    }

    /// Ends a compaction whose process was killed.
    pub(super) fn end_dead_copy(&mut self, directory: Option<&Directory>) -> Result<()> {
        let (Some(_), Some(directory)) = (&self.copying, directory) else { return Ok(()) };
        let seen = *self.memory.copy_seen.get_or_insert_with(Instant::now);
        if seen.elapsed() < COPY_PAUSE {
            return Ok(());
        }
        self.memory.copy_seen = None;
        if !directory.remove_dead_copy().unwrap_or(true) {
            self.end_copying()?;
        }
        Ok(())
    }

    /// Begins a compaction with its first round, and gives the store its id if it has none.
    pub(super) fn begin_copying(&mut self, id: u64, first: u64) -> Result<()> {
        self.end_copying()?;
        if self.number(ID)? == 0 {
            self.set_number(ID, id)?;
        }
        self.begin_round(first)
    }

    /// Begins the round after this one, unless the compaction was ended. From now on changed names are noted
    /// for it.
    pub(super) fn next_round(&mut self, round: u64) -> Result<u64> {
        if self.number(COPYING)? != round {
            let message = "the compaction was ended by another process";
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        self.begin_round(round + 1)?;
        Ok(round + 1)
    }

    fn begin_round(&mut self, round: u64) -> Result<()> {
        self.set_number(COPYING, round)?;
        // What this draft has changed so far is noted, too, for the new round.
        let names = self.copying.take().map(|(_, names)| names).unwrap_or_default();
        self.copying = Some((round, names));
        Ok(())
    }

    /// Ends the compaction that has one of these rounds, if it is under way.
    pub(super) fn end_rounds(&mut self, rounds: std::ops::RangeInclusive<u64>) -> Result<()> {
        if rounds.contains(&self.number(COPYING)?) { self.end_copying() } else { Ok(()) }
    }

    /// Ends a compaction.
    pub(super) fn end_copying(&mut self) -> Result<()> {
        self.copying = None;
        self.is_changed = true;
        let ended = end_copying(self.transaction);
        self.noted(ended)
    }

    /// Notes that the store was backed up at this time.
    pub(super) fn backed_up(&mut self, millis: u64) -> Result<()> {
        let last = self.number(LAST_BACKUP)?.max(millis);
        self.set_number(LAST_BACKUP, last)
    }

    /// Has all processes log what they change, until then.
    pub(super) fn watch_until(&mut self, millis: u64) -> Result<()> {
        self.memory.watched = None;
        let until = self.number(WATCHED)?.max(millis);
        self.set_number(WATCHED, until)
    }

    fn set_number(&mut self, name: &str, number: u64) -> Result<()> {
        self.is_changed = true;
        let set = self
            .transaction
            .open_table(META)
            .map_err(redb::Error::from)
            .and_then(|mut meta| Ok(meta.insert(name, number).map(drop)?));
        self.noted(set)
    }

    /// Notes a changed name, if the store is being compacted.
    fn touch(&mut self, part: Part, name: &[u8]) {
        if let Some((_, names)) = &mut self.copying {
            names.insert([&[part as u8], name].concat());
        }
    }

    /// Ends the draft: the documents that it changes, or None if it changes nothing at all. With
    /// `counts_commits` the store counts the commit.
    pub(super) fn finish(self, counts_commits: bool) -> Result<Option<Documents>> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        if !self.is_changed {
            return Ok(None);
        }
        drop(self.records);
        if let Some((round, names)) = self.copying.filter(|(_, names)| !names.is_empty()) {
            note(self.transaction, round, &names).map_err(not_written)?;
        }
        let commit = save(self.transaction, &self.counts, counts_commits).map_err(not_written)?;
        if let Some(commit) = commit
            && self.memory.is_watched(self.transaction).map_err(not_written)?
        {
            log::write(self.transaction, commit, self.memory.writer, &self.changed).map_err(not_written)?;
        }
        Ok(Some(self.changed))
    }

    /// Notes an error of the engine: the group must not be committed.
    fn noted<T>(&mut self, result: Result<T, redb::Error>) -> Result<T> {
        result.map_err(|error| {
            let error = not_written(error);
            self.failed.get_or_insert(error).clone()
        })
    }

    /// Reads a record.
    pub(super) fn get<T>(
        &mut self,
        name: &RecordKey,
        read: impl FnOnce(&[u8]) -> Result<T>,
    ) -> Result<Option<T>> {
        let found =
            self.records.get(name.encode().as_slice()).map(|found| found.map(|bytes| read(bytes.value())));
        self.noted(found.map_err(Into::into))?.transpose()
    }

    fn has(&mut self, name: &RecordKey) -> Result<bool> {
        self.get(name, |_| Ok(())).map(|found| found.is_some())
    }

    /// Fails if the disk has no space for another record.
    fn room(&self) -> Result<()> {
        if self.is_full { Err(full()) } else { Ok(()) }
    }

    /// Stores a record, damaged or not before.
    fn put(&mut self, name: &RecordKey, value: &[u8]) -> Result<()> {
        self.room()?;
        self.is_changed = true;
        let encoded = name.encode();
        self.touch(Part::Record, &encoded);
        let before =
            self.records.insert(encoded.as_slice(), value).map(|old| old.map(|old| old.value().len()));
        let before = self.noted(before.map_err(Into::into))?;
        let old_bytes = before.map_or(0, |length| encoded.len() + length);
        self.counts.stored_bytes += (encoded.len() + value.len()) as i64 - old_bytes as i64;
        if before.is_none() {
            self.counts.add(name, 1);
        }
        Ok(())
    }

    /// Deletes a record, damaged or not. Returns whether there was one.
    fn remove(&mut self, name: &RecordKey) -> Result<bool> {
        let encoded = name.encode();
        let before = self.records.remove(encoded.as_slice()).map(|old| old.map(|old| old.value().len()));
        let Some(length) = self.noted(before.map_err(Into::into))? else { return Ok(false) };
        self.touch(Part::Record, &encoded);
        self.is_changed = true;
        self.counts.stored_bytes -= (encoded.len() + length) as i64;
        self.counts.add(name, -1);
        Ok(true)
    }

    pub(super) fn put_document(&mut self, kind: DocumentKind, key: Key, encoded: &[u8]) -> Result<()> {
        match kind {
            DocumentKind::Credential => self.put_credential(key, encoded),
            DocumentKind::Config => self.put_config(key, encoded),
        }
    }

    pub(super) fn put_credential(&mut self, id: Key, encoded: &[u8]) -> Result<()> {
        self.put(&RecordKey::Credential(id.clone()), encoded)?;
        self.changed.push((DocumentKind::Credential, id));
        Ok(())
    }

    /// Whether the credential exists, damaged or not.
    pub(super) fn has_credential(&mut self, id: &Key) -> Result<bool> {
        self.has(&RecordKey::Credential(id.clone()))
    }

    pub(super) fn delete_credential(&mut self, id: &Key) -> Result<()> {
        let existed = self.remove(&RecordKey::Credential(id.clone()))?;
        self.changed.push((DocumentKind::Credential, id.clone()));
        Error::unless_found(existed, Kind::Credential, id)
    }

    pub(super) fn put_config(&mut self, key: Key, encoded: &[u8]) -> Result<()> {
        self.put(&RecordKey::Config(key.clone()), encoded)?;
        self.changed.push((DocumentKind::Config, key));
        Ok(())
    }

    pub(super) fn delete_config(&mut self, key: &Key) -> Result<()> {
        let existed = self.remove(&RecordKey::Config(key.clone()))?;
        self.changed.push((DocumentKind::Config, key.clone()));
        Error::unless_found(existed, Kind::Config, key)
    }

    pub(super) fn increment(&mut self, key: &Key, field: &Key, delta: i64) -> Result<i64> {
        let name = RecordKey::Usage(key.clone(), field.clone());
        let before = self.get(&name, |bytes| decode_count(key, bytes))?;
        let total = before.unwrap_or(0).checked_add(delta).ok_or_else(|| Error::overflow().with_key(key))?;
        self.put_counter(key, &name, before.is_some(), total)?;
        Ok(total)
    }

    pub(super) fn increment_within(
        &mut self,
        key: &Key,
        field: &Key,
        delta: i64,
        limit: i64,
    ) -> Result<Within> {
        let name = RecordKey::Usage(key.clone(), field.clone());
        let before = self.get(&name, |bytes| decode_count(key, bytes))?;
        let within = Within::decide(key, before.unwrap_or(0), delta, limit)?;
        if let Within::Counted(total) = within {
            self.put_counter(key, &name, before.is_some(), total)?;
        }
        Ok(within)
    }

    pub(super) fn set_counter(&mut self, key: &Key, field: &Key, count: i64) -> Result<()> {
        let name = RecordKey::Usage(key.clone(), field.clone());
        let existed = self.has(&name)?;
        self.put_counter(key, &name, existed, count)
    }

    fn put_counter(&mut self, key: &Key, name: &RecordKey, existed: bool, count: i64) -> Result<()> {
        self.room()?;
        let is_new = !existed && self.first(&RecordKey::counters(key))?.is_none();
        self.put(name, &count.to_be_bytes())?;
        self.counts.usage_records += i64::from(is_new);
        Ok(())
    }

    /// The first of these names that there is.
    fn first(&mut self, names: &std::ops::Range<Vec<u8>>) -> Result<Option<Vec<u8>>> {
        let found =
            self.records.range(names.start.as_slice()..names.end.as_slice()).and_then(|mut records| {
                records.next().map(|record| record.map(|(name, _)| name.value().to_vec())).transpose()
            });
        self.noted(found.map_err(Into::into))
    }

    /// The last of these names that there is.
    fn last(&mut self, names: &std::ops::Range<Vec<u8>>) -> Result<Option<Vec<u8>>> {
        let found =
            self.records.range(names.start.as_slice()..names.end.as_slice()).and_then(|mut records| {
                records.next_back().map(|record| record.map(|(name, _)| name.value().to_vec())).transpose()
            });
        self.noted(found.map_err(Into::into))
    }

    pub(super) fn reset_usage(&mut self, key: &Key) -> Result<()> {
        let removed = self.remove_counters(&RecordKey::counters(key))?;
        Error::unless_found(removed > 0, Kind::Usage, key)
    }

    /// Removes the counters with these names, damaged or not, which must be all of each record. Returns the
    /// number of records.
    pub(super) fn remove_counters(&mut self, names: &std::ops::Range<Vec<u8>>) -> Result<u64> {
        let mut touched = Vec::new();
        let counters = self
            .records
            .extract_from_if::<&[u8], _>(names.start.as_slice()..names.end.as_slice(), |_, _| true);
        let counters = counters.and_then(|counters| {
            counters
                .map(|counter| {
                    let (name, value) = counter?;
                    touched.push(name.value().to_vec());
                    Ok(name.value().len() + value.value().len())
                })
                .try_fold(0_i64, |sum, bytes: redb::Result<_, redb::StorageError>| {
                    bytes.map(|bytes| sum + bytes as i64)
                })
        });
        let bytes = self.noted(counters.map_err(Into::into))?;
        let removed = touched
            .chunk_by(|one, next| RecordKey::without_field(one) == RecordKey::without_field(next))
            .count() as u64;
        for name in touched {
            self.touch(Part::Record, &name);
        }
        if removed > 0 {
            self.is_changed = true;
            self.counts.stored_bytes -= bytes;
            self.counts.usage_records -= removed as i64;
        }
        Ok(removed)
    }

    /// The record of a plan, if any.
    pub(super) fn plan(&mut self, key: &Key) -> Result<Option<PlanRecord>> {
        self.get(&RecordKey::Plan(key.clone()), decode_plan).map_err(|error| error.with_key(key))
    }

    /// Fails if the record of this plan can't be stored. Asked before the plan changes anything.
    pub(super) fn check_plan(&mut self, key: &Key) -> Result<()> {
        self.room()?;
        if !self.has(&RecordKey::Plan(key.clone()))?
            && self.number(PLANS)?.saturating_add_signed(self.counts.plans) >= MAX_PLAN_RECORDS
        {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "the store has the records of {MAX_PLAN_RECORDS} plans, which is its limit: apply plans with a shorter \
                     time to live, or wait until some expire"
                ),
            ));
        }
        Ok(())
    }

    pub(super) fn put_plan(&mut self, key: &Key, record: &PlanRecord) -> Result<()> {
        self.put(&RecordKey::Plan(key.clone()), &encode_plan(record))?;
        self.touch(Part::Expiry, &expiry(record.expires, key.as_str()));
        let added =
            self.transaction.open_table(EXPIRIES).map_err(redb::Error::from).and_then(|mut expiries| {
                Ok(expiries.insert((record.expires, key.as_str()), ()).map(drop)?)
            });
        self.noted(added)
    }

    /// Removes the plans that have expired at `now`.
    pub(super) fn remove_expired_plans(&mut self, now: i64) -> Result<()> {
        let expired = expired(self.transaction, now);
        for (expires, key) in self.noted(expired)? {
            self.touch(Part::Expiry, &expiry(expires, &key));
            // A key that can't be read has no plan.
            let Ok(key) = Key::new(&key) else { continue };
            // The plan may have been applied again since, and then expires later.
            let name = RecordKey::Plan(key);
            let expires = self.get(&name, decode_plan).ok().flatten().map(|record| record.expires);
            if expires.is_none_or(|expires| expires <= now) {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Adds an entry to the audit and removes the oldest beyond the limit.
    pub(super) fn put_audit(&mut self, entry: &AuditEntry) -> Result<()> {
        let names = RecordKey::audit();
        let last = self.last(&names)?.and_then(|name| audit_number(&name));
        let number = last.map_or(0, |last| last + 1);
        self.put(&RecordKey::Audit(number), &encode_audit(entry))?;
        while let Some(oldest) = self.first(&names)?.and_then(|name| audit_number(&name)) {
            if number - oldest < MAX_AUDIT_ENTRIES as u64 {
                break;
            }
            self.remove(&RecordKey::Audit(oldest))?;
        }
        Ok(())
    }

    fn number(&mut self, name: &str) -> Result<u64> {
        let found = number(self.transaction, name);
        self.noted(found).map(Option::unwrap_or_default)
    }

    /// A lease. One that can't be read has ended: no other record must wait for it.
    pub(super) fn lease(&mut self, name: &Key) -> Result<Option<Held>> {
        let found = self.transaction.open_table(LEASES).map_err(redb::Error::from).and_then(|leases| {
            let held = leases.get(name.as_str().as_bytes())?;
            Ok(held.and_then(|held| Held::decode(name.as_str().as_bytes(), held.value()).ok()))
        });
        Ok(self.noted(found)?.map(|(_, held)| held))
    }

    pub(super) fn put_lease(&mut self, name: &Key, held: &Held) -> Result<()> {
        self.room()?;
        self.is_changed = true;
        self.touch(Part::Lease, name.as_str().as_bytes());
        let put = self.transaction.open_table(LEASES).map_err(redb::Error::from).and_then(|mut leases| {
            Ok(leases.insert(name.as_str().as_bytes(), held.encode().as_slice()).map(drop)?)
        });
        self.noted(put)
    }

    /// Removes the leases that ended before this time, unless that was done shortly before `now`.
    pub(super) fn remove_leases(&mut self, before: u64, now: u64) -> Result<()> {
        // A clock that was set back must not put this off.
        if now.abs_diff(self.memory.leases_swept) < SWEEP_PAUSE {
            return Ok(());
        }
        self.memory.leases_swept = now;
        let has_ended = |name: &[u8], bytes: &[u8]| match Held::decode(name, bytes) {
            Ok((_, held)) => held.ends < before,
            Err(_) => true,
        };
        let mut touched = Vec::new();
        let removed =
            self.transaction.open_table(LEASES).map_err(redb::Error::from).and_then(|mut leases| {
                Ok(leases.retain(|name, bytes| {
                    let ended = has_ended(name, bytes);
                    if ended {
                        touched.push(name.to_vec());
                    }
                    !ended
                })?)
            });
        self.noted(removed)?;
        self.is_changed |= !touched.is_empty();
        for name in touched {
            self.touch(Part::Lease, &name);
        }
        Ok(())
    }

    /// The number of leases.
    #[cfg(test)]
    pub(super) fn lease_count(&self) -> u64 {
        use redb::ReadableTableMetadata;
        self.transaction.open_table(LEASES).unwrap().len().unwrap()
    }
}

/// The documents that a commit changes.
pub(super) type Documents = Vec<(DocumentKind, Key)>;

/// Writes the numbers about the store. Returns the number of the commit, if it counts.
fn save(
    transaction: &WriteTransaction,
    counts: &Counts,
    counts_commits: bool,
) -> Result<Option<u64>, redb::Error> {
    let mut meta = transaction.open_table(META)?;
    for (name, change) in counts.each().into_iter().filter(|(_, change)| *change != 0) {
        let before = meta.get(name)?.map_or(0, |number| number.value());
        meta.insert(name, before.saturating_add_signed(change))?;
    }
    if counts_commits {
        let before = meta.get(COMMITS)?.map_or(0, |number| number.value());
        meta.insert(COMMITS, before + 1)?;
        return Ok(Some(before + 1));
    }
    Ok(None)
}

/// A number about the store.
fn number(transaction: &WriteTransaction, name: &str) -> Result<Option<u64>, redb::Error> {
    Ok(transaction.open_table(META)?.get(name)?.map(|number| number.value()))
}

/// Notes the names that a round of a compaction has to copy again.
fn note(transaction: &WriteTransaction, round: u64, names: &BTreeSet<Vec<u8>>) -> Result<(), redb::Error> {
    let mut changed = transaction.open_table(CHANGED)?;
    for name in names {
        changed.insert((round, name.as_slice()), ())?;
    }
    Ok(())
}

/// Ends a compaction in this store: changed names are no longer noted.
pub(super) fn end_copying(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    transaction.open_table(META)?.remove(COPYING)?;
    transaction.delete_table(CHANGED)?;
    Ok(())
}

/// The name of an expiry.
fn expiry(expires: i64, key: &str) -> Vec<u8> {
    [&expires.to_be_bytes()[..], key.as_bytes()].concat()
}

/// Removes the entries of the plans that have expired, and returns them.
fn expired(transaction: &WriteTransaction, now: i64) -> Result<Vec<(i64, String)>, redb::Error> {
    let mut expiries = transaction.open_table(EXPIRIES)?;
    let mut found = Vec::new();
    for entry in expiries.extract_from_if((i64::MIN, "")..(now.saturating_add(1), ""), |_, ()| true)? {
        let name = entry?.0;
        let (expires, key) = name.value();
        found.push((expires, key.to_owned()));
    }
    Ok(found)
}

/// Counts the records of a store that an earlier version made.
pub(super) fn upgrade(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    let (mut counts, mut usage_key) = (Counts::default(), None);
    let records = transaction.open_table(RECORDS)?;
    let mut expiries = transaction.open_table(EXPIRIES)?;
    for record in records.iter()? {
        let (name, value) = record?;
        counts.stored_bytes += (name.value().len() + value.value().len()) as i64;
        // A name that can't be read is reported by the call that comes upon it.
        let Ok(name) = RecordKey::decode(name.value()) else { continue };
        counts.add(&name, 1);
        match name {
            RecordKey::Usage(key, _) if usage_key.as_ref() != Some(&key) => {
                counts.usage_records += 1;
                usage_key = Some(key);
            }
            RecordKey::Plan(key) => {
                if let Ok(record) = decode_plan(value.value()) {
                    expiries.insert((record.expires, key.as_str()), ())?;
                }
            }
            _ => {}
        }
    }
    let mut meta = transaction.open_table(META)?;
    for (name, count) in counts.each() {
        meta.insert(name, count.unsigned_abs())?;
    }
    Ok(())
}

/// Decodes a counter.
pub(super) fn decode_count(key: &Key, bytes: &[u8]) -> Result<i64> {
    let corrupt = |_| Error::new(ErrorKind::Corrupt, "a stored counter can't be read").with_key(key);
    bytes.try_into().map(i64::from_be_bytes).map_err(corrupt)
}

/// The number of an audit entry.
fn audit_number(name: &[u8]) -> Option<u64> {
    match RecordKey::decode(name) {
        Ok(RecordKey::Audit(number)) => Some(number),
        _ => None,
    }
}

#[cold]
fn full() -> Error {
    let message = "the file system is almost full: the store keeps what is left for deletes, so delete records, or make \
                   room on the file system";
    Error::new(ErrorKind::Unavailable, message).with_code("os error 28")
}

#[cfg(test)]
mod tests;
