//! `ConfigStore` for `Git`.

use std::collections::BTreeMap;

use super::Git;
use crate::{ConfigStore, ConfigValue, Error, Key, Record, Result, error::Kind, history::DocumentKind};

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

    async fn list_configs(&self) -> Result<BTreeMap<Key, ConfigValue>> {
        Ok(self.state()?.configs.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}
