//! Cache values with their expiry.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use gateway_storage::{
    CacheEntry, CacheStore, Error, ErrorKind, Key, MAX_CACHE_TTL, MAX_VALUE_BYTES, Result,
};

use super::{Own, documents::missing};

#[derive(Default)]
pub(super) struct Cache(BTreeMap<Key, (Vec<u8>, Instant)>);

impl Cache {
    /// The values that have not expired.
    fn current(&mut self, now: Instant) -> &mut BTreeMap<Key, (Vec<u8>, Instant)> {
        self.0.retain(|_, (_, expires)| now < *expires);
        &mut self.0
    }
}

/// Rounded up to whole milliseconds.
fn checked(value: &[u8], ttl: Duration) -> Result<Duration> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(Error::new(ErrorKind::TooLarge, "a cache value has at most 1 MiB"));
    }
    if ttl.is_zero() || ttl > MAX_CACHE_TTL {
        return Err(Error::new(ErrorKind::InvalidValue, "the time to live is zero or too long"));
    }
    Ok(Duration::from_millis(ttl.as_nanos().div_ceil(1_000_000) as u64))
}

impl CacheStore for Own {
    async fn get_cache_entry(&self, key: &Key) -> Result<CacheEntry> {
        let (now, mut store) = (Instant::now(), self.lock()?);
        let (value, expires) = store.cache.current(now).get(key).ok_or_else(|| missing(key))?;
        let left = Duration::from_millis((*expires - now).as_millis() as u64);
        Ok(CacheEntry::new(&**value, Some(left)))
    }

    async fn set_cache(&self, key: &Key, value: &[u8], ttl: Duration) -> Result<()> {
        let expires = Instant::now() + checked(value, ttl)?;
        self.lock()?.cache.0.insert(key.clone(), (value.to_vec(), expires));
        Ok(())
    }

    async fn set_cache_if_absent(&self, key: &Key, value: &[u8], ttl: Duration) -> Result<bool> {
        let (now, ttl) = (Instant::now(), checked(value, ttl)?);
        let mut store = self.lock()?;
        let current = store.cache.current(now);
        let is_absent = !current.contains_key(key);
        if is_absent {
            current.insert(key.clone(), (value.to_vec(), now + ttl));
        }
        Ok(is_absent)
    }

    async fn delete_cache(&self, key: &Key) -> Result<()> {
        let mut store = self.lock()?;
        store.cache.current(Instant::now()).remove(key).map(drop).ok_or_else(|| missing(key))
    }
}
