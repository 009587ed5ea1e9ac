//! Configuration in a map.

use std::collections::BTreeMap;

use super::Memory;
use crate::{ConfigStore, ConfigValue, Error, Key, Result, error::Kind};

fn missing(key: &Key) -> Error {
    Error::not_found(Kind::Config, key)
}

impl ConfigStore for Memory {
    async fn get_config(&self, key: &Key) -> Result<ConfigValue> {
        self.read(|data| data.configs.get(key).cloned().ok_or_else(|| missing(key)))
    }

    async fn set_config(&self, key: &Key, value: &ConfigValue) -> Result<()> {
        self.write(|data| drop(data.configs.insert(key.clone(), value.clone())))
    }

    async fn delete_config(&self, key: &Key) -> Result<()> {
        self.write_checked(
            |data| data.configs.get(key).map(drop).ok_or_else(|| missing(key)),
            |data| drop(data.configs.remove(key)),
        )
    }

    async fn list_configs(&self) -> Result<BTreeMap<Key, ConfigValue>> {
        self.read(|data| Ok(data.configs.clone()))
    }
}
