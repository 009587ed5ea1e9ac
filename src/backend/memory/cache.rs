//! Cache values with their expiry.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

// Tokio's clock, so that an application's test can pause it.
use tokio::time::Instant;

use super::Memory;
use crate::{CacheEntry, CacheStore, Error, Found, Key, Result, capability::check_cache, error::Kind};

/// Values by key, and in the order in which they expire.
#[derive(Default)]
pub(super) struct Cache {
    values: BTreeMap<Key, CachedValue>,
    expiry: BTreeSet<(Instant, Key)>,
}

struct CachedValue {
    bytes: Vec<u8>,
    expires: Instant,
}

impl Cache {
    fn get(&self, key: &Key, now: Instant) -> Result<&CachedValue> {
        self.values.get(key).filter(|value| now < value.expires).ok_or_else(|| missing(key))
    }

    /// Inserts or replaces a value, and removes expired ones.
    fn set(&mut self, key: &Key, value: CachedValue, now: Instant) {
        while let Some((expires, _)) = self.expiry.first()
            && *expires <= now
            && let Some((_, expired)) = self.expiry.pop_first()
        {
            self.values.remove(&expired);
        }
        self.remove(key);
        self.expiry.insert((value.expires, key.clone()));
        self.values.insert(key.clone(), value);
    }

    fn remove(&mut self, key: &Key) {
        if let Some(value) = self.values.remove(key) {
            self.expiry.remove(&(value.expires, key.clone()));
        }
    }
}

fn missing(key: &Key) -> Error {
    Error::not_found(Kind::Cache, key)
}

impl CacheStore for Memory {
    async fn get_cache(&self, key: &Key) -> Result<Vec<u8>> {
        self.lock(|store| store.cache.get(key, Instant::now()).map(|value| value.bytes.clone()))
    }

    async fn get_cache_entry(&self, key: &Key) -> Result<CacheEntry> {
        self.lock(|store| {
            let now = Instant::now();
            let value = store.cache.get(key, now)?;
            let left = value.expires.saturating_duration_since(now).as_millis();
            let left = Duration::from_millis(left.try_into().unwrap_or(u64::MAX));
            Ok(CacheEntry::new(&*value.bytes, Some(left)))
        })
    }

    async fn set_cache(&self, key: &Key, value: &[u8], ttl: Duration) -> Result<()> {
        let ttl = Duration::from_millis(check_cache(value, ttl)?);
        let now = Instant::now();
        let value = CachedValue { bytes: value.to_vec(), expires: now + ttl };
        self.lock(|store| {
            store.cache.set(key, value, now);
            Ok(())
        })
    }

    async fn set_cache_if_absent(&self, key: &Key, value: &[u8], ttl: Duration) -> Result<bool> {
        let ttl = Duration::from_millis(check_cache(value, ttl)?);
        self.lock(|store| {
            let now = Instant::now();
            let is_absent = store.cache.get(key, now).is_err();
            if is_absent {
                store.cache.set(key, CachedValue { bytes: value.to_vec(), expires: now + ttl }, now);
            }
            Ok(is_absent)
        })
    }

    async fn get_cache_many(&self, keys: &[Key]) -> Result<Found<Vec<u8>>> {
        let now = Instant::now();
        self.lock(|store| {
            Ok(Found::collect(keys, |key| store.cache.get(key, now).map(|value| value.bytes.clone())))
        })
    }

    async fn delete_cache(&self, key: &Key) -> Result<()> {
        self.lock(|store| {
            let found = store.cache.get(key, Instant::now()).map(drop);
            store.cache.remove(key);
            found
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryOptions, Open};

    #[tokio::test(start_paused = true)]
    async fn overwritten_deleted_and_expired_values_are_removed() {
        let memory = Memory::open(MemoryOptions::default()).await.unwrap();
        let key = |n: u64| Key::new(&n.to_string()).unwrap();
        let sizes = || memory.lock(|store| Ok((store.cache.values.len(), store.cache.expiry.len()))).unwrap();
        for n in 0..100 {
            memory.set_cache(&key(n % 10), b"x", Duration::from_secs(10 + n)).await.unwrap();
        }
        assert_eq!(sizes(), (10, 10));
        memory.delete_cache(&key(9)).await.unwrap();
        assert_eq!(sizes(), (9, 9));
        // Now the values 0 to 4 have expired.
        tokio::time::advance(Duration::from_secs(104)).await;
        memory.get_cache(&key(4)).await.unwrap_err();
        memory.get_cache(&key(5)).await.unwrap();
        memory.delete_cache(&key(0)).await.unwrap_err();
        assert_eq!(sizes(), (8, 8));
        memory.set_cache(&key(5), b"y", Duration::from_secs(1)).await.unwrap();
        assert_eq!(sizes(), (4, 4));
    }
}
