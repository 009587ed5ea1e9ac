//! Cache values: strings that the server lets expire.

use std::time::Duration;

use redis::cmd;

use super::{Redis, layout::Space, reply, server::Effect};
use crate::{CacheStore, Error, Key, Result, capability::check_cache, error::Kind};

fn missing() -> Error {
    Error::not_found(Kind::Cache)
}

impl CacheStore for Redis {
    async fn get_cache(&self, key: &Key) -> Result<Vec<u8>> {
        let mut get = cmd("GET");
        get.arg(self.layout.name(Space::Cache, key));
        reply::bytes(self.call()?.send(Effect::Read, &get).await?)?.ok_or_else(missing)
    }

    async fn set_cache(&self, key: &Key, value: &[u8], ttl: Duration) -> Result<()> {
        let millis = check_cache(value, ttl)?;
        let mut set = cmd("SET");
        set.arg(self.layout.name(Space::Cache, key)).arg(value).arg("PX").arg(millis);
        reply::done(self.call()?.send(Effect::Write, &set).await?)
    }

    async fn delete_cache(&self, key: &Key) -> Result<()> {
        let mut unlink = cmd("UNLINK");
        unlink.arg(self.layout.name(Space::Cache, key));
        match reply::number(self.call()?.send(Effect::Write, &unlink).await?)? {
            0 => Err(missing()),
            _ => Ok(()),
        }
    }
}
