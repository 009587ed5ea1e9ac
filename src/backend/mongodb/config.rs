//! Config values, one document each.

use std::collections::BTreeMap;

use mongodb::bson::{RawDocument, doc};

use super::{
    MongoDb,
    credential::{delete, set},
    document,
    pool::Permit,
    scan::collect,
};
use crate::{ConfigStore, ConfigValue, Error, Key, Result, error::Kind};

pub(super) fn missing(key: &Key) -> Error {
    Error::not_found(Kind::Config, key)
}

impl ConfigStore for MongoDb {
    async fn get_config(&self, key: &Key) -> Result<ConfigValue> {
        let call = self.call()?;
        let find =
            |permit: Permit| async move { permit.configs.find_one(doc! { "_id": key.as_str() }).await };
        let found = call.read(find).await?;
        document::config(key, &found.ok_or_else(|| missing(key))?)
    }

    async fn set_config(&self, key: &Key, value: &ConfigValue) -> Result<()> {
        set(&self.call()?, |pool| &pool.configs, key, || document::from_config(value)).await
    }

    async fn delete_config(&self, key: &Key) -> Result<()> {
        match delete(&self.call()?, |pool| &pool.configs, key).await? {
            true => Ok(()),
            false => Err(missing(key)),
        }
    }

    async fn list_configs(&self) -> Result<BTreeMap<Key, ConfigValue>> {
        let call = self.call()?;
        let read = |document: &RawDocument| {
            let key = document::key(document)?;
            let value = document::config(&key, document)?;
            Ok((key, value))
        };
        let list = |permit: Permit| async move {
            collect(&permit, permit.configs.find(doc! {}).batch_size(1000), read).await
        };
        Ok(call.read(list).await??.into_iter().collect())
    }
}
