//! `ConfigStore` for `Git`.

use std::collections::BTreeMap;

use futures_core::Stream;

use super::Git;
use crate::{
    BatchReport, ConfigStore, ConfigValue, Error, Found, Key, Record, Result, error::Kind,
    history::DocumentKind, model::ListOptions,
};

impl ConfigStore for Git {
    async fn get_config(&self, key: &Key) -> Result<ConfigValue> {
        self.state()?.configs.get(key).cloned().ok_or_else(|| Error::not_found(Kind::Config, key))
    }

    async fn set_config(&self, key: &Key, value: &ConfigValue) -> Result<()> {
        let (key, value) = (key.clone(), value.clone());
        self.commit("", move |draft| draft.put(Record::Config { key: key.clone(), value: value.clone() }))
            .await
    }

    async fn delete_config(&self, key: &Key) -> Result<()> {
        let key = key.clone();
        self.commit("", move |draft| draft.delete(DocumentKind::Config, &key)).await
    }

    async fn get_configs(&self, keys: &[Key]) -> Result<Found<ConfigValue>> {
        let state = self.state()?;
        Ok(Found::collect(keys, |key| {
            state.configs.get(key).cloned().ok_or_else(|| Error::not_found(Kind::Config, key))
        }))
    }

    async fn set_configs(&self, values: &[(Key, ConfigValue)]) -> Result<BatchReport> {
        let values = values.to_vec();
        self.commit("set config values", move |draft| {
            for (key, value) in values.iter().cloned() {
                draft.put(Record::Config { key, value })?;
            }
            Ok(BatchReport { succeeded: values.len(), failures: Vec::new() })
        })
        .await
    }

    /// A snapshot of the time of the call, as an export.
    fn stream_configs(&self, options: ListOptions) -> impl Stream<Item = Result<(Key, ConfigValue)>> + Send {
        self.stream(options, |state| &state.configs)
    }

    async fn list_configs(&self) -> Result<BTreeMap<Key, ConfigValue>> {
        Ok(self.state()?.configs.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}
