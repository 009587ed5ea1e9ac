//! Counters in a map of maps.

use std::collections::BTreeMap;

use super::{Memory, Store, find};
use crate::{BatchReport, Error, Increment, Key, Result, UsageRecord, UsageStore, error::Kind};

impl Store {
    fn increment(&mut self, key: &Key, field: &Key, delta: i64) -> Result<i64> {
        let before = self.data.usage.get(key).and_then(|record| record.get(field.as_str())).unwrap_or(0);
        let total = before.checked_add(delta).ok_or_else(|| Error::overflow().with_key(key))?;
        self.changed().usage.entry(key.clone()).or_default().set(field.clone(), total);
        Ok(total)
    }
}

impl UsageStore for Memory {
    async fn increment_usage(&self, key: &Key, field: &Key, delta: i64) -> Result<i64> {
        self.lock(|store| store.increment(key, field, delta))
    }

    async fn increment_many(&self, increments: &[Increment]) -> Result<BatchReport> {
        self.lock(|store| {
            let results = increments
                .iter()
                .map(|Increment { key, field, delta }| (key, store.increment(key, field, *delta)));
            Ok(BatchReport::collect(results))
        })
    }

    async fn get_usage(&self, key: &Key) -> Result<UsageRecord> {
        self.read(|data| find(&data.usage, Kind::Usage, key).cloned())
    }

    async fn reset_usage(&self, key: &Key) -> Result<()> {
        self.write_checked(
            |data| find(&data.usage, Kind::Usage, key).map(drop),
            |data| drop(data.usage.remove(key)),
        )
    }

    async fn list_usage(&self) -> Result<BTreeMap<Key, UsageRecord>> {
        self.read(|data| Ok(data.usage.clone()))
    }
}
