//! The records in memory: an immutable state for readers, and a draft of the next one.

use std::{collections::BTreeMap, sync::Arc};

use imbl::{GenericHashMap, OrdMap, shared_ptr::DefaultSharedPtr};

use super::held::Held;
use crate::{
    ConfigValue, Credential, Error, ErrorKind, Key, Result, UsageRecord,
    codec::{
        PlanRecord, RecordKey, decode_audit, decode_config, decode_credential, decode_plan, encode_audit,
        encode_plan,
    },
    error::Kind,
    plan::{AuditEntry, MAX_AUDIT_ENTRIES},
};

/// Claims look for leases to forget no more often than this, in microseconds, because they then read all.
const SWEEP_PAUSE: u64 = 60 * 1_000_000;

/// The backend's name.
pub(super) const LABEL: &str = "file";

pub(super) type PersistentMap<V> = GenericHashMap<Key, V, foldhash::fast::RandomState, DefaultSharedPtr>;

/// A usage record. Persistent too, because a record may have many fields and a write changes one.
pub(super) type Counters = OrdMap<Key, i64>;

pub(super) fn record_of(counters: &Counters) -> UsageRecord {
    counters.iter().map(|(field, count)| (field.clone(), *count)).collect()
}

/// All acknowledged records. Cloning is O(1).
#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) credentials: PersistentMap<Credential>,
    pub(super) configs: PersistentMap<ConfigValue>,
    pub(super) usage: PersistentMap<Counters>,
    pub(super) plans: PersistentMap<Arc<PlanRecord>>,
    /// By number, in the order of time.
    pub(super) audit: OrdMap<u64, Arc<AuditEntry>>,
    /// Leases, also ended ones for a while.
    pub(super) leases: OrdMap<Key, Held>,
    /// When ended leases were removed last, in microseconds since 1970.
    leases_swept: u64,
    /// Records on disk that can't be read, with the error that their keys return until they are written or
    /// deleted.
    damaged: OrdMap<RecordKey, Error>,
    closed: bool,
}

impl State {
    /// The state of a closed store.
    pub(super) fn closed() -> Self {
        Self { closed: true, ..Self::default() }
    }

    pub(super) const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Loads one record from disk.
    pub(super) fn load(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let name = RecordKey::decode(key)?;
        if let Err(why) = self.decode(name.clone(), value) {
            self.damaged.insert(name, why);
        }
        Ok(())
    }

    /// Loads one lease from disk. One that can't be read has ended: no other record must wait for it.
    pub(super) fn load_lease(&mut self, name: &[u8], value: &[u8]) {
        if let Ok((name, held)) = Held::decode(name, value) {
            self.leases.insert(name, held);
        }
    }

    fn decode(&mut self, name: RecordKey, value: &[u8]) -> Result<()> {
        match name {
            RecordKey::Credential(id) => {
                let credential = decode_credential(value).map_err(|error| error.with_key(&id))?;
                self.credentials.insert(id, credential);
            }
            RecordKey::Config(key) => {
                let value = decode_config(value).map_err(|error| error.with_key(&key))?;
                self.configs.insert(key, value);
            }
            RecordKey::Plan(key) => {
                let record = decode_plan(value).map_err(|error| error.with_key(&key))?;
                self.plans.insert(key, Arc::new(record));
            }
            RecordKey::Audit(number) => {
                self.audit.insert(number, Arc::new(decode_audit(LABEL, value)?));
            }
            RecordKey::Usage(key, field) => {
                let count = value.try_into().map(i64::from_be_bytes).map_err(|_| {
                    Error::new(ErrorKind::Corrupt, "a stored counter can't be read").with_key(&key)
                })?;
                self.set_counter(key, field, count);
            }
        }
        Ok(())
    }

    fn set_counter(&mut self, key: Key, field: Key, count: i64) {
        self.usage.entry(key).or_default().insert(field, count);
    }

    pub(super) fn credential(&self, id: &Key) -> Result<Credential> {
        self.credentials.get(id).cloned().ok_or_else(|| self.missing(Kind::Credential, id))
    }

    pub(super) fn config(&self, key: &Key) -> Result<ConfigValue> {
        self.configs.get(key).cloned().ok_or_else(|| self.missing(Kind::Config, key))
    }

    /// A usage record without damaged counters.
    pub(super) fn usage_record(&self, key: &Key) -> Result<UsageRecord> {
        self.check(|name| matches!(name, RecordKey::Usage(of, _) if of == key))?;
        self.usage.get(key).map(record_of).ok_or_else(|| Error::not_found(Kind::Usage, key))
    }

    /// The record of a plan, if any.
    pub(super) fn plan(&self, key: &Key) -> Result<Option<&Arc<PlanRecord>>> {
        self.check(|name| matches!(name, RecordKey::Plan(of) if of == key))?;
        Ok(self.plans.get(key))
    }

    /// The error for a missing or damaged credential or config value.
    #[cold]
    fn missing(&self, what: Kind, key: &Key) -> Error {
        let name = match what {
            Kind::Credential => RecordKey::Credential(key.clone()),
            _ => RecordKey::Config(key.clone()),
        };
        self.damaged.get(&name).cloned().unwrap_or_else(|| Error::not_found(what, key))
    }

    /// Fails if a matching record is damaged.
    pub(super) fn check(&self, matches: impl Fn(&RecordKey) -> bool) -> Result<()> {
        match self.damaged.iter().find(|(name, _)| matches(name)) {
            Some((_, why)) => Err(why.clone()),
            None => Ok(()),
        }
    }

    /// The records that can't be read.
    pub(super) fn damaged(&self) -> impl Iterator<Item = &RecordKey> {
        self.damaged.keys()
    }
}

/// The writes to a table: a record's bytes, or `None` to delete it.
pub(super) type TableWrites = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// The writes of a commit.
#[derive(Default)]
pub(super) struct Writes {
    pub(super) records: TableWrites,
    pub(super) leases: TableWrites,
}

impl Writes {
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.leases.is_empty()
    }
}

/// The next state, and the writes that must be on disk before it is published.
///
/// A method that returns an error changes nothing, so the other changes of the group are not affected.
pub(super) struct Draft {
    state: State,
    writes: Writes,
}

impl Draft {
    pub(super) fn new(state: State) -> Self {
        Self { state, writes: Writes::default() }
    }

    /// The state with the changes so far.
    pub(super) const fn state(&self) -> &State {
        &self.state
    }

    pub(super) fn into_parts(self) -> (State, Writes) {
        (self.state, self.writes)
    }

    /// Adds a write of a record, damaged or not; `None` deletes it.
    fn write(&mut self, name: &RecordKey, value: Option<Vec<u8>>) {
        self.writes.records.insert(name.encode(), value);
        self.state.damaged.remove(name);
    }

    pub(super) fn put_credential(&mut self, id: Key, credential: Credential, encoded: Vec<u8>) {
        self.write(&RecordKey::Credential(id.clone()), Some(encoded));
        self.state.credentials.insert(id, credential);
    }

    /// Whether the credential exists, damaged or not.
    pub(super) fn has_credential(&self, id: &Key) -> bool {
        self.state.credentials.contains_key(id)
            || self.state.damaged.contains_key(&RecordKey::Credential(id.clone()))
    }

    pub(super) fn delete_credential(&mut self, id: &Key) -> Result<()> {
        if !self.has_credential(id) {
            return Err(Error::not_found(Kind::Credential, id));
        }
        self.state.credentials.remove(id);
        self.write(&RecordKey::Credential(id.clone()), None);
        Ok(())
    }

    pub(super) fn put_config(&mut self, key: Key, value: ConfigValue, encoded: Vec<u8>) {
        self.write(&RecordKey::Config(key.clone()), Some(encoded));
        self.state.configs.insert(key, value);
    }

    pub(super) fn delete_config(&mut self, key: &Key) -> Result<()> {
        let name = RecordKey::Config(key.clone());
        if self.state.configs.remove(key).is_none() && !self.state.damaged.contains_key(&name) {
            return Err(Error::not_found(Kind::Config, key));
        }
        self.write(&name, None);
        Ok(())
    }

    pub(super) fn increment(&mut self, key: Key, field: Key, delta: i64) -> Result<i64> {
        self.state.check(|name| matches!(name, RecordKey::Usage(of, one) if *of == key && *one == field))?;
        let before = self.state.usage.get(&key).and_then(|record| record.get(&field)).copied().unwrap_or(0);
        let total = before.checked_add(delta).ok_or_else(|| Error::overflow().with_key(&key))?;
        self.set_counter(key, field, total);
        Ok(total)
    }

    pub(super) fn set_counter(&mut self, key: Key, field: Key, count: i64) {
        self.write(&RecordKey::Usage(key.clone(), field.clone()), Some(count.to_be_bytes().to_vec()));
        self.state.set_counter(key, field, count);
    }

    pub(super) fn put_plan(&mut self, key: Key, record: PlanRecord) {
        self.write(&RecordKey::Plan(key.clone()), Some(encode_plan(&record)));
        self.state.plans.insert(key, Arc::new(record));
    }

    /// Removes the plans that have expired at `now`.
    pub(super) fn remove_expired_plans(&mut self, now: i64) {
        let expired = self.state.plans.iter().filter(|(_, record)| record.expires <= now);
        for key in expired.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.state.plans.remove(&key);
            self.write(&RecordKey::Plan(key), None);
        }
    }

    /// Adds an entry to the audit and removes the oldest beyond the limit.
    pub(super) fn put_audit(&mut self, entry: AuditEntry) {
        let damaged = self.state.damaged().filter_map(audit_number).max();
        let last = self.state.audit.get_max().map(|(number, _)| *number).max(damaged);
        let number = last.map_or(0, |last| last + 1);
        self.write(&RecordKey::Audit(number), Some(encode_audit(&entry)));
        self.state.audit.insert(number, Arc::new(entry));
        while let Some((oldest, _)) =
            self.state.audit.get_min().filter(|_| self.state.audit.len() > MAX_AUDIT_ENTRIES)
        {
            let oldest = *oldest;
            self.state.audit.remove(&oldest);
            self.write(&RecordKey::Audit(oldest), None);
            let is_older = |number: &u64| *number < oldest;
            for number in self.state.damaged().filter_map(audit_number).filter(is_older).collect::<Vec<_>>() {
                self.write(&RecordKey::Audit(number), None);
            }
        }
    }

    pub(super) fn put_lease(&mut self, name: Key, held: Held) {
        self.writes.leases.insert(name.as_str().as_bytes().to_vec(), Some(held.encode()));
        self.state.leases.insert(name, held);
    }

    /// Removes the leases that ended before this time, unless that was done shortly before `now`.
    pub(super) fn remove_leases(&mut self, before: u64, now: u64) {
        // A clock that was set back must not put this off.
        if now.abs_diff(self.state.leases_swept) < SWEEP_PAUSE {
            return;
        }
        self.state.leases_swept = now;
        let ended = self.state.leases.iter().filter(|(_, held)| held.ends < before);
        for name in ended.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.state.leases.remove(&name);
            self.writes.leases.insert(name.as_str().as_bytes().to_vec(), None);
        }
    }

    pub(super) fn reset_usage(&mut self, key: &Key) -> Result<()> {
        let damaged =
            self.state.damaged().filter(|name| matches!(name, RecordKey::Usage(of, _) if of == key));
        let damaged: Vec<RecordKey> = damaged.cloned().collect();
        let record = self.state.usage.remove(key);
        if record.is_none() && damaged.is_empty() {
            return Err(Error::not_found(Kind::Usage, key));
        }
        for field in record.unwrap_or_default().keys() {
            self.write(&RecordKey::Usage(key.clone(), field.clone()), None);
        }
        for name in damaged {
            self.write(&name, None);
        }
        Ok(())
    }
}

/// The number of an audit entry.
fn audit_number(name: &RecordKey) -> Option<u64> {
    match name {
        RecordKey::Audit(number) => Some(*number),
        _ => None,
    }
}
