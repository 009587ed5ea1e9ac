//! Cache values: strings with an expiry time.

use std::time::Duration;

use redis::{Value, cmd};

use super::{Redis, error, layout::Space, reply};
use crate::{
    CacheEntry, CacheStore, Error, Key, Result, backend::remote::Effect, capability::check_cache, error::Kind,
};

/// Reads a value and its time to live in one step: a write in between could change one of them.
const GET_WITH_TTL: &str = "local value = redis.call('GET', KEYS[1]) \
    if value then return {value, redis.call('PTTL', KEYS[1])} end \
    return false";

impl CacheStore for Redis {
    async fn get_cache(&self, key: &Key) -> Result<Vec<u8>> {
        let reply =
            self.call()?.send(Effect::Read, cmd("GET").arg(self.layout.name(Space::Cache, key))).await?;
        reply::bytes(reply)?.ok_or_else(|| Error::not_found(Kind::Cache, key))
    }

    async fn get_cache_entry(&self, key: &Key) -> Result<CacheEntry> {
        let mut eval = cmd("EVAL");
        eval.arg(GET_WITH_TTL).arg(1).arg(self.layout.name(Space::Cache, key));
        let unexpected = || error::unexpected_reply(Effect::Read);
        match self.call()?.send(Effect::Read, &eval).await? {
            Value::Nil => Err(Error::not_found(Kind::Cache, key)),
            Value::Array(found) => {
                let [value, millis]: [Value; 2] = found.try_into().map_err(|_| unexpected())?;
                let value = reply::bytes(value)?.ok_or_else(unexpected)?;
                // A negative number: the value does not expire.
                let ttl = u64::try_from(reply::number(millis)?).ok();
                Ok(CacheEntry::new(value, ttl.map(Duration::from_millis)))
            }
            _ => Err(unexpected()),
        }
    }

    async fn set_cache(&self, key: &Key, value: &[u8], ttl: Duration) -> Result<()> {
        let millis = check_cache(value, ttl)?;
        let mut set = cmd("SET");
        set.arg(self.layout.name(Space::Cache, key)).arg(value).arg("PX").arg(millis);
        reply::done(self.call()?.send(Effect::Write, &set).await?)
    }

    async fn delete_cache(&self, key: &Key) -> Result<()> {
        let name = self.layout.name(Space::Cache, key);
        reply::deleted(Kind::Cache, key, self.call()?.send(Effect::Write, cmd("UNLINK").arg(name)).await?)
    }
}
