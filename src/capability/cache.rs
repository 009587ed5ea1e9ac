//! [`CacheStore`]: values that expire.

use std::time::Duration;

use super::batch::{Deadline, READ, WRITE};
use crate::{
    Backend, BatchReport, CacheEntry, Error, ErrorKind, Found, Key, MAX_VALUE_BYTES, Result, capability,
    model,
};

/// The longest time to live of a cache value: 10,000 days.
pub const MAX_CACHE_TTL: Duration = Duration::from_secs(10_000 * 24 * 60 * 60);

/// Caches bytes, each value with a time to live.
#[capability(wrapper = CacheStoreWrapper)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot cache",
    note = "backends that cache: `Memory`, `Redis`"
)]
pub trait CacheStore: Backend {
    /// Reads one value. The default body reads the [entry](CacheStore::get_cache_entry).
    ///
    /// - [`NotFound`](crate::ErrorKind::NotFound) if there is none, or it expired.
    #[operation(read)]
    fn get_cache(&self, key: &Key) -> impl Future<Output = Result<Vec<u8>>> + Send {
        async move { Ok(self.get_cache_entry(key).await?.value) }
    }

    /// Reads one value and the time that it has left, so that the caller can renew it before it expires.
    ///
    /// - The value is that of [`get_cache`](CacheStore::get_cache); the time left is at most the `ttl` of the
    ///   write.
    /// - [`NotFound`](crate::ErrorKind::NotFound) if there is none, or it expired.
    #[operation(read)]
    fn get_cache_entry(&self, key: &Key) -> impl Future<Output = Result<CacheEntry>> + Send;

    /// Stores one value for the time `ttl`, and replaces any value under this key.
    ///
    /// - `ttl` is rounded up to whole milliseconds. Expiry is exact by the store's clock. (That of
    ///   `Memory` is Tokio's, which a test can pause.)
    /// - A `ttl` of zero or over [`MAX_CACHE_TTL`] is [`InvalidValue`](crate::ErrorKind::InvalidValue), and a
    ///   value over [`MAX_VALUE_BYTES`] is [`TooLarge`](crate::ErrorKind::TooLarge).
    #[operation(write, overwrites)]
    fn set_cache(&self, key: &Key, value: &[u8], ttl: Duration) -> impl Future<Output = Result<()>> + Send;

    /// Stores one value for the time `ttl` if there is none under this key. Returns whether it was stored.
    ///
    /// - Of concurrent calls one stores its value: the comparison and the write are one step.
    /// - A value that has expired is none.
    /// - The arguments are checked as by [`set_cache`](CacheStore::set_cache), also if there is a value.
    #[operation(write)]
    fn set_cache_if_absent(
        &self,
        key: &Key,
        value: &[u8],
        ttl: Duration,
    ) -> impl Future<Output = Result<bool>> + Send;

    /// Reads many values. The default body calls [`get_cache`](CacheStore::get_cache) once for each key, one
    /// after another.
    ///
    /// - Returns the values that exist, sorted by key, and a failure for each other key.
    /// - A key that is passed twice is returned once; if it is missing, each mention is a failure.
    #[operation(read, batch = keys)]
    fn get_cache_many(&self, keys: &[Key]) -> impl Future<Output = Result<Found<Vec<u8>>>> + Send {
        async move {
            let deadline = Deadline::of(self);
            deadline.read_each(keys, |key| deadline.run(READ, self.get_cache(key))).await
        }
    }

    /// Stores many values for the time `ttl`. The default body calls [`set_cache`](CacheStore::set_cache) for
    /// each, one after another.
    ///
    /// - A failed item does not stop the others; the report lists each failure. Together they are not a
    ///   transaction.
    /// - Of several items with one key the last one is stored, and all of them count as succeeded.
    #[operation(write, overwrites, batch = values)]
    fn set_cache_many(
        &self,
        values: &[(Key, Vec<u8>)],
        ttl: Duration,
    ) -> impl Future<Output = Result<BatchReport>> + Send {
        async move {
            let deadline = Deadline::of(self);
            deadline.set_each(values, |key, value| deadline.run(WRITE, self.set_cache(key, value, ttl))).await
        }
    }

    /// Deletes one value.
    ///
    /// - [`NotFound`](crate::ErrorKind::NotFound) if there is none, or it expired.
    #[operation(write)]
    fn delete_cache(&self, key: &Key) -> impl Future<Output = Result<()>> + Send;
}

/// Checks the arguments of [`CacheStore::set_cache`] and returns the time to live in milliseconds.
pub(crate) fn check_cache(value: &[u8], ttl: Duration) -> Result<u64> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(model::too_large());
    }
    if ttl.is_zero() || ttl > MAX_CACHE_TTL {
        return Err(Error::new(
            ErrorKind::InvalidValue,
            "a cache value's time to live must be more than zero and at most 10,000 days",
        ));
    }
    let millis = ttl.as_nanos().div_ceil(1_000_000);
    Ok(u64::try_from(millis).expect("10,000 days in milliseconds fit into a u64"))
}
