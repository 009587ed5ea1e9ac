//! Config values: JSON in one hash.

use std::collections::BTreeMap;

use futures_core::Stream;
use redis::{Cmd, cmd};

use super::{
    Redis, error,
    keys::{Keys, Part},
    many::{self, in_chunks},
    reply,
    server::Call,
};
use crate::{
    BatchReport, ConfigStore, ConfigValue, Error, Found, Key, Result,
    backend::remote::Effect,
    codec::{decode_config_or_word, decode_key, encode_config},
    error::Kind,
    model::{KeyRange, ListOptions},
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

    /// The keys in a range of keys with this prefix, sorted.
    pub(super) async fn config_keys(
        &self,
        call: &Call<'_>,
        prefix: &str,
        range: Option<KeyRange>,
    ) -> Result<Vec<Key>> {
        let (Some(range), names) = (range, self.config_names(call).await?) else { return Ok(Vec::new()) };
        let named = names.iter().filter(|name| name.starts_with(prefix.as_bytes()));
        let mut keys = named.map(|name| decode_key(name)).collect::<Result<Vec<_>>>()?;
        keys.retain(|key| range.contains(key));
        keys.sort_unstable();
        Ok(keys)
    }

    pub(super) async fn config_texts(&self, call: &Call<'_>, keys: &[Key]) -> Result<Vec<Option<Vec<u8>>>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let texts = call.send(Effect::Read, &query(&self.layout.config(), keys)).await?;
        let texts = reply::list(texts)?;
        if texts.len() != keys.len() {
            return Err(error::unexpected_reply(Effect::Read));
        }
        texts.into_iter().map(reply::bytes).collect()
    }

    /// One HMGET.
    async fn get_config_chunk(&self, call: &Call<'_>, keys: &[Key]) -> Vec<Result<ConfigValue>> {
        match self.config_texts(call, keys).await {
            Ok(texts) => keys.iter().zip(texts).map(|(key, text)| read_some(key, text)).collect(),
            Err(error) => vec![Err(error); keys.len()],
        }
    }

    /// One HSET.
    async fn set_config_chunk(&self, call: &Call<'_>, items: &[(&Key, Vec<u8>)]) -> Vec<Result<()>> {
        let mut set = cmd("HSET");
        set.arg(self.layout.config());
        for (key, text) in items {
            set.arg(key.as_str()).arg(text);
        }
        let reply = call.send(Effect::Write, &set).await;
        vec![reply.and_then(reply::number).map(drop); items.len()]
    }
}

fn read_some(key: &Key, text: Option<Vec<u8>>) -> Result<ConfigValue> {
    read(key, &text.ok_or_else(|| Error::not_found(Kind::Config, key))?)
}

impl ConfigStore for Redis {
    async fn get_config(&self, key: &Key) -> Result<ConfigValue> {
        let mut get = cmd("HGET");
        get.arg(self.layout.config()).arg(key.as_str());
        let reply = self.call()?.send(Effect::Read, &get).await?;
        read_some(key, reply::bytes(reply)?)
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

    async fn get_configs(&self, keys: &[Key]) -> Result<Found<ConfigValue>> {
        let (call, distinct) = (self.call()?, many::distinct(keys));
        let results = in_chunks(&distinct, |_| 0, |chunk| self.get_config_chunk(&call, chunk)).await;
        many::found(keys, &distinct, results)
    }

    async fn set_configs(&self, values: &[(Key, ConfigValue)]) -> Result<BatchReport> {
        let call = self.call()?;
        let items = many::last(values).into_iter().map(|(key, value)| (key, encode_config(value)));
        let items: Vec<_> = items.collect();
        let set = |chunk| self.set_config_chunk(&call, chunk);
        let results = in_chunks(&items, |(_, text)| text.len(), set).await;
        many::report(values.iter().map(|(key, _)| key), items.iter().map(|(key, _)| *key).zip(results))
    }

    /// Holds the keys of all config values, and 100 values.
    fn stream_configs(&self, options: ListOptions) -> impl Stream<Item = Result<(Key, ConfigValue)>> + Send {
        let keys = Keys::new(self, Part::Configs, options);
        keys.stream(|redis, keys| async move { redis.get_configs(&keys).await })
    }
}
