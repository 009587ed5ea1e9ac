//! `ConfigStore` for `Git`.

use std::collections::BTreeMap;

use super::Git;
use crate::{ConfigStore, ConfigValue, Error, Key, Result, error::Kind};

impl ConfigStore for Git {
    async fn get_config(&self, key: &Key) -> Result<ConfigValue> {
        self.state()?.configs.get(key).cloned().ok_or_else(|| Error::not_found(Kind::Config, key))
    }

    async fn set_config(&self, key: &Key, value: &ConfigValue) -> Result<()> {
        let (key, value) = (key.clone(), value.clone());
        self.commit("", move |draft| draft.put_config(&key, &value)).await
    }

    async fn delete_config(&self, key: &Key) -> Result<()> {
        let key = key.clone();
        self.commit("", move |draft| draft.delete_config(&key)).await
    }

    async fn list_configs(&self) -> Result<BTreeMap<Key, ConfigValue>> {
        Ok(self.state()?.configs.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}
