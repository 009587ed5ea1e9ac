//! Configuration: a collection of documents.

use std::collections::BTreeMap;

use mongodb::bson::{RawDocument, doc};

use super::{MongoDb, document, scan::collect};
use crate::{ConfigStore, ConfigValue, Error, Key, Result, backend::remote::Effect, error::Kind};

pub(super) fn missing() -> Error {
    Error::not_found(Kind::Config)
}

impl ConfigStore for MongoDb {
    async fn get_config(&self, key: &Key) -> Result<ConfigValue> {
        let call = self.call()?;
        let lane = call.lease().await?;
        let found = call.ask(Effect::Read, lane.configs.find_one(doc! { "_id": key.as_str() })).await?;
        document::config(key, &found.ok_or_else(missing)?)
    }

    async fn set_config(&self, key: &Key, value: &ConfigValue) -> Result<()> {
        let body = document::of_config(value);
        let call = self.call()?;
        let lane = call.lease().await?;
        let set = || lane.configs.replace_one(doc! { "_id": key.as_str() }, &body).upsert(true);
        call.upsert(set).await.map(drop)
    }

    async fn delete_config(&self, key: &Key) -> Result<()> {
        let call = self.call()?;
        let lane = call.lease().await?;
        let delete = lane.configs.delete_one(doc! { "_id": key.as_str() });
        match call.ask(Effect::Write, delete).await?.deleted_count {
            0 => Err(missing()),
            _ => Ok(()),
        }
    }

    async fn list_configs(&self) -> Result<BTreeMap<Key, ConfigValue>> {
        let call = self.call()?;
        let lane = call.lease().await?;
        let read = |document: &RawDocument| {
            let key = document::key(document)?;
            let value = document::config(&key, document)?;
            Ok((key, value))
        };
        let found = std::pin::pin!(collect(&lane, lane.configs.find(doc! {}).batch_size(1000), read));
        Ok(call.ask(Effect::Read, found).await??.into_iter().collect())
    }
}
