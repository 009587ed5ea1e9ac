//! Configuration in a map.

use std::collections::BTreeMap;

use super::{Memory, find};
use crate::{ConfigStore, ConfigValue, Key, Result, error::Kind};

impl ConfigStore for Memory {
    async fn get_config(&self, key: &Key) -> Result<ConfigValue> {
        self.read(|data| find(&data.configs, Kind::Config, key).cloned())
    }

    async fn set_config(&self, key: &Key, value: &ConfigValue) -> Result<()> {
        self.write(|data| drop(data.configs.insert(key.clone(), value.clone())))
    }

    async fn delete_config(&self, key: &Key) -> Result<()> {
        self.write_checked(
            |data| find(&data.configs, Kind::Config, key).map(drop),
            |data| drop(data.configs.remove(key)),
        )
    }

    async fn list_configs(&self) -> Result<BTreeMap<Key, ConfigValue>> {
        self.read(|data| Ok(data.configs.clone()))
    }
}
