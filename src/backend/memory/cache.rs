//! Cache values and when they expire.

use std::time::Duration;

// Tokio's clock, so that an application's test can pause it.
use tokio::time::Instant;

use super::Memory;
use crate::{CacheEntry, CacheStore, Error, Key, Result, capability::check_cache, error::Kind};

pub(super) struct CachedValue {
    bytes: Vec<u8>,
    expires: Instant,
}

impl CachedValue {
    fn is_alive(&self) -> bool {
        Instant::now() < self.expires
    }
}

fn missing(key: &Key) -> Error {
    Error::not_found(Kind::Cache, key)
}

impl CacheStore for Memory {
    async fn get_cache(&self, key: &Key) -> Result<Vec<u8>> {
        self.lock(|store| {
            store
                .cache
                .get(key)
                .filter(|value| value.is_alive())
                .map(|value| value.bytes.clone())
                .ok_or_else(|| missing(key))
        })
    }

    async fn get_cache_entry(&self, key: &Key) -> Result<CacheEntry> {
        self.lock(|store| {
            let value = store.cache.get(key).filter(|value| value.is_alive()).ok_or_else(|| missing(key))?;
            let left = value.expires.saturating_duration_since(Instant::now()).as_millis();
            let left = Duration::from_millis(left.try_into().unwrap_or(u64::MAX));
            Ok(CacheEntry::new(&*value.bytes, Some(left)))
        })
    }

    async fn set_cache(&self, key: &Key, value: &[u8], ttl: Duration) -> Result<()> {
        let ttl = Duration::from_millis(check_cache(value, ttl)?);
        let value = CachedValue { bytes: value.to_vec(), expires: Instant::now() + ttl };
        self.lock(|store| {
            store.cache.retain(|_, value| value.is_alive());
            store.cache.insert(key.clone(), value);
            Ok(())
        })
    }

    async fn delete_cache(&self, key: &Key) -> Result<()> {
        self.lock(|store| {
            store.cache.remove(key).filter(CachedValue::is_alive).map(drop).ok_or_else(|| missing(key))
        })
    }
}
