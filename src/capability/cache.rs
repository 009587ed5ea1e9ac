//! [`CacheStore`]: bytes that expire.

use std::time::Duration;

use crate::{Backend, CacheEntry, Error, ErrorKind, Key, MAX_VALUE_BYTES, Result, capability, model};

/// The longest time to live of a cache value: 10,000 days.
pub const MAX_CACHE_TTL: Duration = Duration::from_secs(10_000 * 24 * 60 * 60);

/// Caches bytes for a while.
#[capability]
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot cache",
    note = "backends that cache: `Memory`, `Redis`"
)]
pub trait CacheStore: Backend {
    /// Reads one value: the bytes that were stored.
    ///
    /// - [`NotFound`](crate::ErrorKind::NotFound) if there is none, or it expired.
    #[operation(read)]
    fn get_cache(&self, key: &Key) -> impl Future<Output = Result<Vec<u8>>> + Send;

    /// Reads one value, and how long it has to live: for those who renew a value before it expires.
    ///
    /// - What [`get_cache`](CacheStore::get_cache) would return, and at most the `ttl` that it was stored with.
    /// - [`NotFound`](crate::ErrorKind::NotFound) if there is none, or it expired.
    #[operation(read)]
    fn get_cache_entry(&self, key: &Key) -> impl Future<Output = Result<CacheEntry>> + Send;

    /// Stores one value for as long as `ttl` says, in place of any other under this key.
    ///
    /// - `ttl` counts in milliseconds, a part of one rounded up, by the clock of whoever stores it: expiry is exact
    ///   to that clock. Zero is [`InvalidValue`](crate::ErrorKind::InvalidValue), over [`MAX_CACHE_TTL`] too.
    /// - Over [`MAX_VALUE_BYTES`] is [`TooLarge`](crate::ErrorKind::TooLarge).
    #[operation(write, overwrites)]
    fn set_cache(&self, key: &Key, value: &[u8], ttl: Duration) -> impl Future<Output = Result<()>> + Send;

    /// Deletes one value.
    ///
    /// - [`NotFound`](crate::ErrorKind::NotFound) if there is none, or it expired.
    #[operation(write)]
    fn delete_cache(&self, key: &Key) -> impl Future<Output = Result<()>> + Send;
}

/// Checks what [`CacheStore::set_cache`] takes, and gives the time to live in milliseconds.
pub(crate) fn check_cache(value: &[u8], ttl: Duration) -> Result<u64> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(model::too_large());
    }
    if ttl.is_zero() || ttl > MAX_CACHE_TTL {
        return Err(Error::new(
            ErrorKind::InvalidValue,
            "a cache value's time to live is more than zero and at most 10,000 days",
        ));
    }
    let millis = ttl.as_nanos().div_ceil(1_000_000);
    Ok(u64::try_from(millis).expect("10,000 days are few milliseconds"))
}
