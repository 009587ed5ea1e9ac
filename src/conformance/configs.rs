//! The contract of [`ConfigStore`]: the contract of documents, for any JSON value, and a list with values.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use serde_json::{Value, json};

use super::{
    batches::{batches, fill},
    documents::{Documents, clear, documents},
    fails, hostile_keys, hostile_values, identical, key, must, ok, same, same_keys, sorted,
    streams::{Streamed, streams},
};
use crate::{
    BatchFailure, BatchReport, ConfigStore, ConfigValue, ErrorKind, Found, Key, Result, Storage,
    StorageStats, model::ListOptions,
};

/// Asserts the contract of [`ConfigStore`].
///
/// # Panics
///
/// At the first violated bullet.
pub async fn configs<B: ConfigStore>(storage: &Storage<B>) {
    documents::<Configs, B>(storage).await;
    batches::<Configs, B>(storage).await;
    streams::<Configs, B>(storage).await;
    must("get_config: a stored null is a value", null(storage.clone())).await;
    must("list_configs: all values, equal to what was stored, sorted by key", lists(storage.clone())).await;
    must("the kit leaves nothing", is_empty(storage.clone())).await;
}

pub(super) struct Configs;

impl<B: ConfigStore> Documents<B> for Configs {
    const NAME: &'static str = "config";

    async fn get(storage: &Storage<B>, key: &Key) -> Result<Value> {
        storage.get_config(key).await.map(|value| value.value().clone())
    }

    async fn set(storage: &Storage<B>, key: &Key, value: Value) -> Result<()> {
        storage.set_config(key, value).await
    }

    async fn delete(storage: &Storage<B>, key: &Key) -> Result<()> {
        storage.delete_config(key).await
    }

    async fn get_many(
        storage: &Storage<B>,
        keys: &[Key],
    ) -> Result<(BTreeMap<Key, Value>, Vec<BatchFailure>)> {
        let Found { values, failures } = storage.get_configs(keys).await?;
        Ok((values.into_iter().map(|(key, value)| (key, value.value().clone())).collect(), failures))
    }

    async fn set_many(storage: &Storage<B>, items: Vec<(Key, Value)>) -> Result<BatchReport> {
        storage.set_configs(items).await
    }

    async fn list(storage: &Storage<B>) -> Result<Vec<Key>> {
        storage.list_configs().await.map(|configs| configs.into_keys().collect())
    }

    fn count(stats: &StorageStats) -> u64 {
        stats.config_count
    }

    fn hostile_values() -> Vec<Value> {
        hostile_values()
    }
}

impl<B: ConfigStore> Streamed<B> for Configs {
    const NAME: &'static str = "configs";

    async fn put(storage: &Storage<B>, keys: &[Key]) {
        fill::<Self, B>(storage, keys).await;
    }

    async fn remove(storage: &Storage<B>, key: &Key) -> Result<()> {
        storage.delete_config(key).await
    }

    async fn stream(storage: &Storage<B>, options: ListOptions) -> Result<Vec<(Key, bool)>> {
        let records: Vec<(Key, ConfigValue)> = storage.stream_configs(options).try_collect().await?;
        let is_whole = |key: &Key, value: &ConfigValue| *value.value() == json!({ "key": key.as_str() });
        Ok(records.into_iter().map(|(key, value)| (key.clone(), is_whole(&key, &value))).collect())
    }
}

async fn is_empty<B: ConfigStore>(storage: Storage<B>) {
    same("keys", 0, ok("list", storage.list_configs().await).len());
}

async fn null<B: ConfigStore>(storage: Storage<B>) {
    let key = key("null");
    ok("set", storage.set_config(&key, Value::Null).await);
    same("the value", &Value::Null, ok("get", storage.get_config(&key).await).value());
    same_keys("keys", std::slice::from_ref(&key), ok("list", storage.list_configs().await).into_keys());
    ok("delete", storage.delete_config(&key).await);
    fails("get after delete", ErrorKind::NotFound, storage.get_config(&key).await);
}

async fn lists<B: ConfigStore>(storage: Storage<B>) {
    let values = hostile_values().into_iter().filter(|value| value.to_string().len() < 1_000);
    let stored: Vec<(Key, Value)> =
        hostile_keys(storage.backend().max_key_bytes()).into_iter().zip(values.cycle()).collect();
    for (key, value) in &stored {
        ok("set", storage.set_config(key, value.clone()).await);
    }
    let found = ok("list_configs", storage.list_configs().await);
    let keys = stored.iter().map(|(key, _)| key.clone()).collect();
    same_keys("keys", &sorted(keys), found.keys().cloned());
    for (key, value) in &stored {
        let found = &found[key];
        assert!(identical(value, found), "{:?}: {value} became {}", key.as_str(), found.to_json());
    }
    ok("set", storage.set_config("x", json!("changed")).await);
    same("a changed value", json!("changed"), ok("list", storage.list_configs().await)["x"].value().clone());
    clear::<Configs, B>(&storage).await;
}
