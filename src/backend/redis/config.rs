//! Configuration: one hash of JSON.

use std::collections::BTreeMap;

use redis::cmd;

use super::{Redis, layout, reply};
use crate::{
    ConfigStore, ConfigValue, Error, Key, Result,
    backend::remote::Effect,
    codec::{decode_loose_config, encode_config},
    error::Kind,
};

fn missing() -> Error {
    Error::not_found(Kind::Config)
}

/// A value that we or another program stored.
pub(super) fn read(key: &Key, text: &[u8]) -> Result<ConfigValue> {
    decode_loose_config(text).map_err(|error| error.with_key(key))
}

impl ConfigStore for Redis {
    async fn get_config(&self, key: &Key) -> Result<ConfigValue> {
        let mut get = cmd("HGET");
        get.arg(self.layout.config()).arg(key.as_str());
        let reply = self.call()?.send(Effect::Read, &get).await?;
        read(key, &reply::bytes(reply)?.ok_or_else(missing)?)
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
            0 => Err(missing()),
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn value(text: &[u8]) -> Option<Value> {
        read(&Key::new("k").unwrap(), text).ok().map(|value| value.value().clone())
    }

    #[test]
    fn bare_words_are_strings_and_damage_is_not() {
        assert_eq!(value(b"127.0.0.1:8317"), Some(json!("127.0.0.1:8317")));
        assert_eq!(value(b""), Some(json!("")));
        assert_eq!(value(b"debug"), Some(json!("debug")));
        assert_eq!(value(b"007"), Some(json!("007")));
        assert_eq!(value(b"\"debug\""), Some(json!("debug")));
        assert_eq!(value(b"5"), Some(json!(5)));
        assert_eq!(value(b"true"), Some(json!(true)));
        assert_eq!(value(b"[1,2]"), Some(json!([1, 2])));
        for damaged in [&b"{\"a\":"[..], b"[1,", b"\"open", b" {", b"\xff"] {
            assert_eq!(value(damaged), None);
        }
    }
}
