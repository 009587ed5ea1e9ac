//! Optimistic transactions: a snapshot and a set of reads and writes, compared and applied at commit.

use std::{collections::BTreeMap, sync::Arc};

use super::{Data, Memory};
use crate::{
    ConfigValue, Credential, Error, ErrorKind, Key, Result, Transaction, Transactional,
    backend::feed::Change, error::Kind, history::DocumentKind,
};

/// A serializable transaction of [`Memory`].
pub struct MemoryTransaction {
    memory: Memory,
    snapshot: Arc<Data>,
    credentials: Changes<Credential>,
    configs: Changes<ConfigValue>,
}

/// The keys that a transaction has read (`None`) or written (`Some`; `Some(None)` is a delete).
///
/// At commit each of these keys must have the same value as in the snapshot. That makes the transaction
/// serializable, because at that moment it would read the same values again.
struct Changes<V>(BTreeMap<Key, Option<Option<V>>>);

impl<V: Clone> Changes<V> {
    fn get(&mut self, key: &Key, snapshot: &BTreeMap<Key, V>) -> Option<V> {
        match self.0.entry(key.clone()).or_default() {
            Some(written) => written.clone(),
            None => snapshot.get(key).cloned(),
        }
    }

    fn set(&mut self, key: &Key, value: Option<V>) {
        self.0.insert(key.clone(), Some(value));
    }

    fn delete(&mut self, key: &Key, snapshot: &BTreeMap<Key, V>, kind: Kind) -> Result<()> {
        self.get(key, snapshot).ok_or_else(|| Error::not_found(kind, key))?;
        self.set(key, None);
        Ok(())
    }

    /// Whether all keys still have their old values. `same` compares identity, since 0.0 equals -0.0.
    fn unchanged(&self, old: &BTreeMap<Key, V>, new: &BTreeMap<Key, V>, same: fn(&V, &V) -> bool) -> bool {
        self.0.keys().all(|key| match (old.get(key), new.get(key)) {
            (None, None) => true,
            (Some(old), Some(new)) => same(old, new),
            _ => false,
        })
    }

    fn has_writes(&self) -> bool {
        self.0.values().any(Option::is_some)
    }

    /// The keys of the changed records.
    fn written(&self, kind: DocumentKind) -> impl Iterator<Item = Change> {
        let written = self.0.iter().filter(|(_, change)| change.is_some());
        written.map(move |(key, _)| (kind, Some(key.clone())))
    }

    fn apply(self, to: &mut BTreeMap<Key, V>) {
        for (key, change) in self.0 {
            match change {
                Some(Some(value)) => drop(to.insert(key, value)),
                Some(None) => drop(to.remove(&key)),
                None => {}
            }
        }
    }
}

impl std::fmt::Debug for MemoryTransaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemoryTransaction")
    }
}

impl Transactional for Memory {
    type Transaction = MemoryTransaction;

    async fn begin(&self) -> Result<MemoryTransaction> {
        self.lock(|store| {
            Ok(MemoryTransaction {
                memory: self.clone(),
                snapshot: store.data.clone(),
                credentials: Changes(BTreeMap::new()),
                configs: Changes(BTreeMap::new()),
            })
        })
    }
}

impl Transaction for MemoryTransaction {
    async fn get_credential(&mut self, id: &Key) -> Result<Credential> {
        self.credentials
            .get(id, &self.snapshot.credentials)
            .ok_or_else(|| Error::not_found(Kind::Credential, id))
    }

    async fn set_credential(&mut self, id: &Key, credential: &Credential) -> Result<()> {
        self.credentials.set(id, Some(credential.clone()));
        Ok(())
    }

    async fn delete_credential(&mut self, id: &Key) -> Result<()> {
        self.credentials.delete(id, &self.snapshot.credentials, Kind::Credential)
    }

    async fn get_config(&mut self, key: &Key) -> Result<ConfigValue> {
        self.configs.get(key, &self.snapshot.configs).ok_or_else(|| Error::not_found(Kind::Config, key))
    }

    async fn set_config(&mut self, key: &Key, value: &ConfigValue) -> Result<()> {
        self.configs.set(key, Some(value.clone()));
        Ok(())
    }

    async fn delete_config(&mut self, key: &Key) -> Result<()> {
        self.configs.delete(key, &self.snapshot.configs, Kind::Config)
    }

    async fn commit(self) -> Result<()> {
        let Self { memory, snapshot, credentials, configs } = self;
        memory.lock(|store| {
            let data = &store.data;
            if !credentials.unchanged(&snapshot.credentials, &data.credentials, Credential::is_clone_of)
                || !configs.unchanged(&snapshot.configs, &data.configs, ConfigValue::is_clone_of)
            {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    "a concurrent change conflicts with the transaction; retry it from the start",
                ));
            }
            if credentials.has_writes() || configs.has_writes() {
                // Without the snapshot, `changed` need not copy the data.
                drop(snapshot);
                let told = credentials
                    .written(DocumentKind::Credential)
                    .chain(configs.written(DocumentKind::Config));
                memory.feed.tell(|| told);
                let data = store.changed();
                credentials.apply(&mut data.credentials);
                configs.apply(&mut data.configs);
            }
            Ok(())
        })
    }
}
