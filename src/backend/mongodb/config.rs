//! Config values, one document each.

use std::collections::BTreeMap;

use mongodb::bson::{RawDocument, doc};

use super::{
    MongoDb,
    command::{FindOneAnd, by_id, delete, find_one, find_one_and},
    document,
    pool::Permit,
    scan::collect,
};
use crate::{ConfigStore, ConfigValue, Key, Result, error::Kind};

impl ConfigStore for MongoDb {
    async fn get_config(&self, key: &Key) -> Result<ConfigValue> {
        let found = find_one(&self.call()?, |pool| &pool.configs, Kind::Config, key).await?;
        document::config(key, &found)
    }

    async fn set_config(&self, key: &Key, value: &ConfigValue) -> Result<()> {
        let replace = || FindOneAnd::Replace(document::from_config(value));
        find_one_and(&self.call()?, |pool| &pool.configs, &by_id(key), replace).await.map(drop)
    }

    async fn delete_config(&self, key: &Key) -> Result<()> {
        delete(&self.call()?, |pool| &pool.configs, Kind::Config, key).await
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
