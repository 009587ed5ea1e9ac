//! [`Memory`]: the simplest correct backend, which serves as the specification of the others.

mod cache;
mod conditional;
mod config;
mod credential;
mod export;
mod lease;
mod plan;
mod transaction;
mod usage;
mod watch;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cache::Cache;
use lease::LeaseMap;
use plan::Plans;
use serde::Deserialize;
pub use transaction::MemoryTransaction;

use crate::{
    Backend, ConfigValue, Credential, DEFAULT_DEADLINE, Error, Key, Open, Result, StorageStats, UsageRecord,
    backend::feed::Feed,
    codec::{Location, UrlOptions, from_texts, invalid},
    error::Kind,
};

#[doc = include_str!("docs.md")]
#[derive(Clone)]
pub struct Memory {
    store: Arc<Mutex<Store>>,
    feed: Feed,
    /// For the layers: see [`Backend::deadline`].
    deadline: Duration,
}

#[derive(Default)]
struct Store {
    data: Arc<Data>,
    cache: Cache,
    plans: Plans,
    leases: LeaseMap,
    closed: bool,
}

impl Store {
    /// The data, for a write. Copies all of it if a snapshot is held, so call this only if something changes.
    fn changed(&mut self) -> &mut Data {
        Arc::make_mut(&mut self.data)
    }
}

/// The data of which exports and transactions hold snapshots.
#[derive(Clone, Default)]
struct Data {
    credentials: BTreeMap<Key, Credential>,
    configs: BTreeMap<Key, ConfigValue>,
    usage: BTreeMap<Key, UsageRecord>,
}

const LABEL: &str = "memory";

impl Memory {
    fn lock<T>(&self, work: impl FnOnce(&mut Store) -> Result<T>) -> Result<T> {
        // The code under the lock clones, compares, inserts and removes, which does not panic. If it did,
        // other calls would still be answered from the current data.
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        if store.closed { Err(Error::closed()) } else { work(&mut store) }
    }

    fn read<T>(&self, work: impl FnOnce(&Data) -> Result<T>) -> Result<T> {
        self.lock(|store| work(&store.data))
    }

    fn write<T>(&self, work: impl FnOnce(&mut Data) -> T) -> Result<T> {
        self.lock(|store| Ok(work(store.changed())))
    }

    /// Applies the change if the check succeeds, and returns the result of the check.
    fn write_checked<T>(
        &self,
        check: impl FnOnce(&Data) -> Result<T>,
        change: impl FnOnce(&mut Data),
    ) -> Result<T> {
        self.lock(|store| {
            let found = check(&store.data)?;
            change(store.changed());
            Ok(found)
        })
    }
}

/// The value of a key in one of the maps.
fn find<'m, V>(map: &'m BTreeMap<Key, V>, kind: Kind, key: &Key) -> Result<&'m V> {
    map.get(key).ok_or_else(|| Error::not_found(kind, key))
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory")
    }
}

impl Backend for Memory {
    fn label(&self) -> &'static str {
        LABEL
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    async fn health(&self) -> Result<()> {
        self.lock(|_| Ok(()))
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.read(|data| {
            Ok(StorageStats {
                credential_count: data.credentials.len() as u64,
                config_count: data.configs.len() as u64,
                usage_record_count: data.usage.len() as u64,
                ..StorageStats::new(self.label())
            })
        })
    }

    async fn close(&self) -> Result<()> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        *store = Store { closed: true, ..Store::default() };
        drop(store);
        self.feed.close();
        Ok(())
    }
}

/// The options of [`Memory`], of which there are none.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MemoryOptions {}

from_texts!(MemoryOptions);

impl TryFrom<&str> for MemoryOptions {
    type Error = Error;

    fn try_from(url: &str) -> Result<Self> {
        let location = Location::parse(url, Memory::SCHEMES)?;
        if !location.rest.is_empty() {
            return Err(invalid("the only memory URL is `memory:`"));
        }
        let mut options = UrlOptions::of::<Self>(&[]);
        location.options().try_for_each(|option| options.add(option?))?;
        options.read()
    }
}

impl Open for Memory {
    type Options = MemoryOptions;
    const SCHEMES: &'static [&'static str] = &["memory"];

    async fn open(_: MemoryOptions) -> Result<Self> {
        Ok(Self { store: Arc::default(), feed: Feed::new(LABEL), deadline: DEFAULT_DEADLINE })
    }
}
