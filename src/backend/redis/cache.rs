//! Cache values: strings that the server lets expire.

use std::time::Duration;

use redis::{Value, cmd};

use super::{Redis, failure, layout::Space, reply, server::Effect};
use crate::{CacheEntry, CacheStore, Error, Key, Result, capability::check_cache, error::Kind};

fn missing() -> Error {
    Error::not_found(Kind::Cache)
}

impl CacheStore for Redis {
    async fn get_cache(&self, key: &Key) -> Result<Vec<u8>> {
        let mut get = cmd("GET");
        get.arg(self.layout.name(Space::Cache, key));
        reply::bytes(self.call()?.send(Effect::Read, &get).await?)?.ok_or_else(missing)
    }

    /// GET and PTTL, sent together.
    async fn get_cache_entry(&self, key: &Key) -> Result<CacheEntry> {
        let name = self.layout.name(Space::Cache, key);
        let commands = ["GET", "PTTL"].map(|command| cmd(command).arg(&name).to_owned());
        let mut replies = self.call()?.send_all(Effect::Read, commands.into()).await.into_iter();
        let mut reply = || replies.next().unwrap_or_else(|| Err(failure::unexpected_reply(Effect::Read)));
        let value = reply::bytes(reply()?)?.ok_or_else(missing)?;
        match reply()? {
            // It expired in between.
            Value::Int(-2) => Err(missing()),
            Value::Int(millis) => {
                Ok(CacheEntry::new(value, u64::try_from(millis).ok().map(Duration::from_millis)))
            }
            _ => Err(failure::unexpected_reply(Effect::Read)),
        }
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
