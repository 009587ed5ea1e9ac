//! Cache values: strings with an expiry time.

use std::time::Duration;

use redis::{Cmd, Value, cmd};

use super::{
    Redis, error,
    layout::Space,
    many::{self, in_chunks},
    reply,
    server::Call,
};
use crate::{
    BatchReport, CacheEntry, CacheStore, Error, Found, Key, Result, backend::remote::Effect,
    capability::check_cache, error::Kind,
};

/// Reads a value and its time to live in one step: a write in between could change one of them.
const GET_WITH_TTL: &str = "local value = redis.call('GET', KEYS[1]) \
    if value then return {value, redis.call('PTTL', KEYS[1])} end \
    return false";

impl Redis {
    fn get_cached(&self, key: &Key) -> Cmd {
        cmd("GET").arg(self.layout.name(Space::Cache, key)).take()
    }

    fn set_cached(&self, key: &Key, value: &[u8], millis: u64) -> Cmd {
        cmd("SET").arg(self.layout.name(Space::Cache, key)).arg(value).arg("PX").arg(millis).take()
    }

    /// One pipeline, also where MGET would do: that replies nil for a key of another type, so each missing
    /// value, which a cache has often, would need a second look.
    async fn get_cache_chunk(&self, call: &Call<'_>, keys: &[Key]) -> Vec<Result<Vec<u8>>> {
        let gets = keys.iter().map(|key| self.get_cached(key)).collect();
        let replies = call.send_all(Effect::Read, gets).await;
        keys.iter().zip(replies).map(|(key, reply)| cached(key, reply?)).collect()
    }

    /// One pipeline.
    async fn set_cache_chunk(&self, call: &Call<'_>, items: &[(&Key, &[u8], u64)]) -> Vec<Result<()>> {
        let sets = items.iter().map(|(key, value, millis)| self.set_cached(key, value, *millis)).collect();
        let replies = call.send_all(Effect::Write, sets).await.into_iter();
        replies.map(|reply| reply.and_then(reply::done)).collect()
    }
}

fn cached(key: &Key, reply: Value) -> Result<Vec<u8>> {
    reply::bytes(reply)?.ok_or_else(|| Error::not_found(Kind::Cache, key))
}

impl CacheStore for Redis {
    async fn get_cache(&self, key: &Key) -> Result<Vec<u8>> {
        cached(key, self.call()?.send(Effect::Read, &self.get_cached(key)).await?)
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
        reply::done(self.call()?.send(Effect::Write, &self.set_cached(key, value, millis)).await?)
    }

    async fn set_cache_if_absent(&self, key: &Key, value: &[u8], ttl: Duration) -> Result<bool> {
        let millis = check_cache(value, ttl)?;
        let set = self.set_cached(key, value, millis).arg("NX").take();
        match self.call()?.send(Effect::Write, &set).await? {
            Value::Nil => Ok(false),
            reply => reply::done(reply).map(|()| true),
        }
    }

    async fn get_cache_many(&self, keys: &[Key]) -> Result<Found<Vec<u8>>> {
        let (call, distinct) = (self.call()?, many::distinct(keys));
        let results = in_chunks(&distinct, |_| 0, |chunk| self.get_cache_chunk(&call, chunk)).await;
        many::found(keys, &distinct, results)
    }

    async fn set_cache_many(&self, values: &[(Key, Vec<u8>)], ttl: Duration) -> Result<BatchReport> {
        let call = self.call()?;
        let (mut items, mut refused) = (Vec::new(), Vec::new());
        for (key, value) in many::last(values) {
            match check_cache(value, ttl) {
                Ok(millis) => items.push((key, value.as_slice(), millis)),
                Err(error) => refused.push((key, Err(error))),
            }
        }
        let set = |chunk| self.set_cache_chunk(&call, chunk);
        let results = in_chunks(&items, |(_, value, _)| value.len(), set).await;
        let sent = items.iter().map(|(key, ..)| *key).zip(results);
        many::report(values.iter().map(|(key, _)| key), sent.chain(refused))
    }

    async fn delete_cache(&self, key: &Key) -> Result<()> {
        let name = self.layout.name(Space::Cache, key);
        reply::deleted(Kind::Cache, key, self.call()?.send(Effect::Write, cmd("UNLINK").arg(name)).await?)
    }
}
