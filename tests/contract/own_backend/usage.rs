//! Counters.

use std::collections::BTreeMap;

use gateway_storage::{Error, ErrorKind, Key, Result, UsageRecord, UsageStore, usage::Within};

use super::{Own, documents::missing};

impl UsageStore for Own {
    async fn increment_usage(&self, key: &Key, field: &Key, delta: i64) -> Result<i64> {
        let mut store = self.lock()?;
        let before = store.usage.get(key).and_then(|record| record.get(field.as_str())).unwrap_or(0);
        let total = before.checked_add(delta).ok_or_else(|| {
            Error::new(ErrorKind::Overflow, "the counter would leave the range of i64").with_key(key)
        })?;
        store.usage.entry(key.clone()).or_default().set(field.clone(), total);
        Ok(total)
    }

    async fn increment_within(&self, key: &Key, field: &Key, delta: i64, limit: i64) -> Result<Within> {
        let mut store = self.lock()?;
        let before = store.usage.get(key).and_then(|record| record.get(field.as_str())).unwrap_or(0);
        match before.checked_add(delta) {
            Some(total) if total <= limit => {
                store.usage.entry(key.clone()).or_default().set(field.clone(), total);
                Ok(Within::Counted(total))
            }
            None if delta < 0 => {
                Err(Error::new(ErrorKind::Overflow, "the counter would leave the range of i64").with_key(key))
            }
            _ => Ok(Within::Refused(before)),
        }
    }

    async fn get_usage(&self, key: &Key) -> Result<UsageRecord> {
        self.lock()?.usage.get(key).cloned().ok_or_else(|| missing(key))
    }

    async fn reset_usage(&self, key: &Key) -> Result<()> {
        self.lock()?.usage.remove(key).map(drop).ok_or_else(|| missing(key))
    }

    async fn list_usage(&self) -> Result<BTreeMap<Key, UsageRecord>> {
        Ok(self.lock()?.usage.clone())
    }
}
