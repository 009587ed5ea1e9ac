//! Counters in a map of maps.

use std::collections::BTreeMap;

use futures_core::Stream;

use super::{Data, Memory, Store, find};
use crate::{
    Error, Found, Increment, Key, Result, UsageRecord, UsageStore,
    error::Kind,
    model::{KeyRange, ListOptions, Totals, Within},
};

impl Data {
    fn counter(&self, key: &Key, field: &Key) -> i64 {
        self.usage.get(key).and_then(|record| record.get(field.as_str())).unwrap_or(0)
    }
}

impl Store {
    fn increment(&mut self, key: &Key, field: &Key, delta: i64) -> Result<i64> {
        let total = self.data.counter(key, field).checked_add(delta);
        let total = total.ok_or_else(|| Error::overflow().with_key(key))?;
        self.set_counter(key, field, total);
        Ok(total)
    }

    fn set_counter(&mut self, key: &Key, field: &Key, total: i64) {
        self.changed().usage.entry(key.clone()).or_default().set(field.clone(), total);
    }
}

impl UsageStore for Memory {
    async fn increment_usage(&self, key: &Key, field: &Key, delta: i64) -> Result<i64> {
        self.lock(|store| store.increment(key, field, delta))
    }

    async fn increment_within(&self, key: &Key, field: &Key, delta: i64, limit: i64) -> Result<Within> {
        self.lock(|store| {
            let within = Within::decide(key, store.data.counter(key, field), delta, limit)?;
            if let Within::Counted(total) = within {
                store.set_counter(key, field, total);
            }
            Ok(within)
        })
    }

    async fn increment_many(&self, increments: &[Increment]) -> Result<Totals> {
        self.lock(|store| {
            let results = increments
                .iter()
                .map(|Increment { key, field, delta }| (key, store.increment(key, field, *delta)));
            Ok(Totals::collect(results))
        })
    }

    async fn get_usage(&self, key: &Key) -> Result<UsageRecord> {
        self.read(|data| find(&data.usage, Kind::Usage, key).cloned())
    }

    async fn get_counter(&self, key: &Key, field: &Key) -> Result<i64> {
        self.read(|data| Ok(data.counter(key, field)))
    }

    async fn get_usages(&self, keys: &[Key]) -> Result<Found<UsageRecord>> {
        self.read(|data| Ok(Found::collect(keys, |key| find(&data.usage, Kind::Usage, key).cloned())))
    }

    async fn reset_usage(&self, key: &Key) -> Result<()> {
        self.write_checked(
            |data| find(&data.usage, Kind::Usage, key).map(drop),
            |data| drop(data.usage.remove(key)),
        )
    }

    async fn reset_usage_prefix(&self, prefix: &Key) -> Result<u64> {
        self.lock(|store| {
            let range = KeyRange::of_prefix(prefix.as_str());
            let named = store.data.usage.range::<str, _>(range.bounds()).map(|(key, _)| key.clone());
            let named: Vec<Key> = named.collect();
            if !named.is_empty() {
                let data = store.changed();
                named.iter().for_each(|key| drop(data.usage.remove(key)));
            }
            Ok(named.len() as u64)
        })
    }

    fn stream_usage(&self, options: ListOptions) -> impl Stream<Item = Result<(Key, UsageRecord)>> + Send {
        self.stream(options, |data| &data.usage)
    }

    async fn list_usage(&self) -> Result<BTreeMap<Key, UsageRecord>> {
        self.read(|data| Ok(data.usage.clone()))
    }
}
