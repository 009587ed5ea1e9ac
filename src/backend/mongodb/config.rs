//! Config values, one document each.

use std::collections::BTreeMap;

use futures_core::Stream;
use mongodb::bson::{RawDocument, doc};

use super::{
    MongoDb,
    command::{FindOneAnd, by_id, delete, find_one, find_one_and, set_documents},
    document,
    pool::Permit,
    scan::{collect, get_documents},
};
use crate::{
    BatchReport, ConfigStore, ConfigValue, Found, Key, Result,
    backend::remote::{batch, listing},
    error::Kind,
    model::ListOptions,
};

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

    async fn get_configs(&self, keys: &[Key]) -> Result<Found<ConfigValue>> {
        get_documents(&self.call()?, (Kind::Config, |pool| &pool.configs), keys, document::config).await
    }

    async fn set_configs(&self, values: &[(Key, ConfigValue)]) -> Result<BatchReport> {
        let call = self.call()?;
        let last: BTreeMap<&Key, &ConfigValue> = values.iter().map(|(key, value)| (key, value)).collect();
        let failed = set_documents(&call, |pool| &pool.configs, last, document::from_config).await;
        batch::report(values.iter().map(|(key, _)| key), &failed)
    }

    fn stream_configs(&self, options: ListOptions) -> impl Stream<Item = Result<(Key, ConfigValue)>> + Send {
        listing::list(options, |range, most| self.page(|pool| &pool.configs, range, most, document::config))
    }
}
