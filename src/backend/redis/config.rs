//! Config values: JSON in one hash.

use std::collections::BTreeMap;

use redis::cmd;

use super::{Redis, layout, reply};
use crate::{
    ConfigStore, ConfigValue, Error, Key, Result,
    backend::remote::Effect,
    codec::{decode_config_or_word, encode_config},
    error::Kind,
};

fn missing(key: &Key) -> Error {
    Error::not_found(Kind::Config, key)
}

/// Decodes a value that this crate or another program stored.
pub(super) fn read(key: &Key, text: &[u8]) -> Result<ConfigValue> {
    decode_config_or_word(text).map_err(|error| error.with_key(key))
}

impl ConfigStore for Redis {
    async fn get_config(&self, key: &Key) -> Result<ConfigValue> {
        let mut get = cmd("HGET");
        get.arg(self.layout.config()).arg(key.as_str());
        let reply = self.call()?.send(Effect::Read, &get).await?;
        read(key, &reply::bytes(reply)?.ok_or_else(|| missing(key))?)
    }

    async fn set_config(&self, key: &Key, value: &ConfigValue) -> Result<()> {
        let mut set = cmd("HSET");
        set.arg(self.layout.config()).arg(key.as_str()).arg(encode_config(value));
        reply::number(self.call()?.send(Effect::Write, &set).await?).map(drop)
    }

    async fn delete_config(&self, key: &Key) -> Result<()> {
        let mut delete = cmd("HDEL");
        delete.arg(self.layout.config()).arg(key.as_str());
        match reply::number(self.call()?.send(Effect::Write, &delete).await?)? {
            0 => Err(missing(key)),
            _ => Ok(()),
        }
    }

    async fn list_configs(&self) -> Result<BTreeMap<Key, ConfigValue>> {
        let mut all = cmd("HGETALL");
        all.arg(self.layout.config());
        reply::fields(self.call()?.send(Effect::Read, &all).await?)?
            .into_iter()
            .map(|(name, text)| {
                let key = layout::parse_key(&name)?;
                let value = read(&key, &text)?;
                Ok((key, value))
            })
            .collect()
    }
}
