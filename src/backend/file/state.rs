//! What is stored, in memory: an immutable state for readers, and a draft of the next one.

use std::sync::Arc;

use imbl::{GenericHashMap, OrdMap, shared_ptr::DefaultSharedPtr};

use super::engine::Writes;
use crate::{
    AuditEntry, ConfigValue, Credential, Error, ErrorKind, Key, MAX_AUDIT_ENTRIES, Result, UsageRecord,
    codec::{
        PlanRecord, RecordKey, decode_audit, decode_config, decode_credential, decode_plan, encode_audit,
        encode_plan,
    },
    error::Kind,
};

/// The backend's name.
pub(super) const LABEL: &str = "file";

pub(super) type PersistentMap<V> = GenericHashMap<Key, V, foldhash::fast::RandomState, DefaultSharedPtr>;

/// A usage record: persistent as well, since a record may have many fields and one of them is changed.
pub(super) type Counters = OrdMap<Key, i64>;

pub(super) fn record_of(counters: &Counters) -> UsageRecord {
    counters.iter().map(|(field, count)| (field.clone(), *count)).collect()
}

/// Everything that is stored and acknowledged. Cloning it is O(1).
#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) credentials: PersistentMap<Credential>,
    pub(super) configs: PersistentMap<ConfigValue>,
    pub(super) usage: PersistentMap<Counters>,
    pub(super) plans: PersistentMap<Arc<PlanRecord>>,
    /// By their numbers, which rise.
    pub(super) audit: OrdMap<u64, Arc<AuditEntry>>,
    closed: bool,
}

impl State {
    /// What readers find after close.
    pub(super) fn closed() -> Self {
        Self { closed: true, ..Self::default() }
    }

    pub(super) const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Takes one record from disk.
    pub(super) fn load(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match RecordKey::decode(key)? {
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
}

/// The next state, and what must be on disk before it is published.
///
/// A method that returns an error has changed nothing: the other changes of its group go on.
pub(super) struct Draft {
    state: State,
    writes: Writes,
}

impl Draft {
    pub(super) fn new(state: State) -> Self {
        Self { state, writes: Writes::new() }
    }

    /// What was stored, with the changes so far.
    pub(super) const fn state(&self) -> &State {
        &self.state
    }

    pub(super) fn into_parts(self) -> (State, Writes) {
        (self.state, self.writes)
    }

    pub(super) fn put_credential(&mut self, id: Key, credential: Credential, encoded: Vec<u8>) {
        self.writes.insert(RecordKey::Credential(id.clone()).encode(), Some(encoded));
        self.state.credentials.insert(id, credential);
    }

    pub(super) fn delete_credential(&mut self, id: &Key) -> Result<()> {
        self.state.credentials.remove(id).ok_or_else(|| Error::not_found(Kind::Credential, id))?;
        self.writes.insert(RecordKey::Credential(id.clone()).encode(), None);
        Ok(())
    }

    pub(super) fn put_config(&mut self, key: Key, value: ConfigValue, encoded: Vec<u8>) {
        self.writes.insert(RecordKey::Config(key.clone()).encode(), Some(encoded));
        self.state.configs.insert(key, value);
    }

    pub(super) fn delete_config(&mut self, key: &Key) -> Result<()> {
        self.state.configs.remove(key).ok_or_else(|| Error::not_found(Kind::Config, key))?;
        self.writes.insert(RecordKey::Config(key.clone()).encode(), None);
        Ok(())
    }

    pub(super) fn increment(&mut self, key: Key, field: Key, delta: i64) -> Result<i64> {
        let before = self.state.usage.get(&key).and_then(|record| record.get(&field)).copied().unwrap_or(0);
        let total = before.checked_add(delta).ok_or_else(|| Error::overflow().with_key(&key))?;
        self.set_counter(key, field, total);
        Ok(total)
    }

    pub(super) fn set_counter(&mut self, key: Key, field: Key, count: i64) {
        let name = RecordKey::Usage(key.clone(), field.clone()).encode();
        self.writes.insert(name, Some(count.to_be_bytes().to_vec()));
        self.state.set_counter(key, field, count);
    }

    pub(super) fn put_plan(&mut self, key: Key, record: PlanRecord) {
        self.writes.insert(RecordKey::Plan(key.clone()).encode(), Some(encode_plan(&record)));
        self.state.plans.insert(key, Arc::new(record));
    }

    /// Forgets the plans that have expired by then.
    pub(super) fn forget_plans(&mut self, now: i64) {
        let expired = self.state.plans.iter().filter(|(_, record)| record.expires <= now);
        for key in expired.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.state.plans.remove(&key);
            self.writes.insert(RecordKey::Plan(key).encode(), None);
        }
    }

    /// Adds an entry to the audit, which forgets its oldest.
    pub(super) fn put_audit(&mut self, entry: AuditEntry) {
        let number = self.state.audit.get_max().map_or(0, |(number, _)| number + 1);
        self.writes.insert(RecordKey::Audit(number).encode(), Some(encode_audit(&entry)));
        self.state.audit.insert(number, Arc::new(entry));
        while let Some((oldest, _)) =
            self.state.audit.get_min().filter(|_| self.state.audit.len() > MAX_AUDIT_ENTRIES)
        {
            let oldest = *oldest;
            self.state.audit.remove(&oldest);
            self.writes.insert(RecordKey::Audit(oldest).encode(), None);
        }
    }

    pub(super) fn reset_usage(&mut self, key: &Key) -> Result<()> {
        let record = self.state.usage.remove(key).ok_or_else(|| Error::not_found(Kind::Usage, key))?;
        for field in record.keys() {
            self.writes.insert(RecordKey::Usage(key.clone(), field.clone()).encode(), None);
        }
        Ok(())
    }
}
