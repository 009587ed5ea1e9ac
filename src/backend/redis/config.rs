//! Config values: JSON in one hash.

use std::collections::BTreeMap;

use redis::{Cmd, cmd};

use super::{Redis, reply, server::Call};
use crate::{
    ConfigStore, ConfigValue, Error, Key, Result,
    backend::remote::Effect,
    codec::{decode_config_or_word, decode_key, encode_config},
    error::Kind,
};

/// Decodes a value that this crate or another program stored.
pub(super) fn read(key: &Key, text: &[u8]) -> Result<ConfigValue> {
    decode_config_or_word(text).map_err(|error| error.with_key(key))
}

/// The query for the texts of config values, in the order of their keys.
pub(super) fn query(config: &str, keys: &[Key]) -> Cmd {
    let mut get = cmd("HMGET");
    get.arg(config);
    for key in keys {
        get.arg(key.as_str());
    }
    get
}

impl Redis {
    /// The names of all config values. Only HKEYS returns fields without their values.
    pub(super) async fn config_names(&self, call: &Call<'_>) -> Result<Vec<Vec<u8>>> {
        let names = call.send_wide(Effect::Read, cmd("HKEYS").arg(self.layout.config())).await?;
        reply::list(names)?.into_iter().map(|name| Ok(reply::bytes(name)?.unwrap_or_default())).collect()
    }

    pub(super) async fn config_texts(&self, call: &Call<'_>, keys: &[Key]) -> Result<Vec<Option<Vec<u8>>>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let texts = call.send(Effect::Read, &query(&self.layout.config(), keys)).await?;
        reply::list(texts)?.into_iter().map(reply::bytes).collect()
    }
}

impl ConfigStore for Redis {
    async fn get_config(&self, key: &Key) -> Result<ConfigValue> {
        let mut get = cmd("HGET");
        get.arg(self.layout.config()).arg(key.as_str());
        let reply = self.call()?.send(Effect::Read, &get).await?;
        read(key, &reply::bytes(reply)?.ok_or_else(|| Error::not_found(Kind::Config, key))?)
    }

    async fn set_config(&self, key: &Key, value: &ConfigValue) -> Result<()> {
        let mut set = cmd("HSET");
        set.arg(self.layout.config()).arg(key.as_str()).arg(encode_config(value));
        reply::number(self.call()?.send(Effect::Write, &set).await?).map(drop)
    }

    async fn delete_config(&self, key: &Key) -> Result<()> {
        let mut delete = cmd("HDEL");
        delete.arg(self.layout.config()).arg(key.as_str());
        reply::deleted(Kind::Config, key, self.call()?.send(Effect::Write, &delete).await?)
    }

    async fn list_configs(&self) -> Result<BTreeMap<Key, ConfigValue>> {
        let reply = self.call()?.send_wide(Effect::Read, cmd("HGETALL").arg(self.layout.config())).await?;
        reply::fields(reply)?
            .into_iter()
            .map(|(name, text)| {
                let key = decode_key(&name)?;
                let value = read(&key, &text)?;
                Ok((key, value))
            })
            .collect()
    }
}
