//! Configuration in a map.

use std::collections::BTreeMap;

use futures_core::Stream;

use super::{Memory, find};
use crate::{
    BatchReport, ConfigStore, ConfigValue, Found, Key, Result, error::Kind, history::DocumentKind,
    model::ListOptions,
};

impl ConfigStore for Memory {
    async fn get_config(&self, key: &Key) -> Result<ConfigValue> {
        self.read(|data| find(&data.configs, Kind::Config, key).cloned())
    }

    async fn set_config(&self, key: &Key, value: &ConfigValue) -> Result<()> {
        self.write(|data| drop(data.configs.insert(key.clone(), value.clone())))?;
        self.tell(DocumentKind::Config, [key]);
        Ok(())
    }

    async fn delete_config(&self, key: &Key) -> Result<()> {
        self.write_checked(
            |data| find(&data.configs, Kind::Config, key).map(drop),
            |data| drop(data.configs.remove(key)),
        )?;
        self.tell(DocumentKind::Config, [key]);
        Ok(())
    }

    async fn list_configs(&self) -> Result<BTreeMap<Key, ConfigValue>> {
        self.read(|data| Ok(data.configs.clone()))
    }

    async fn get_configs(&self, keys: &[Key]) -> Result<Found<ConfigValue>> {
        self.read(|data| Ok(Found::collect(keys, |key| find(&data.configs, Kind::Config, key).cloned())))
    }

    async fn set_configs(&self, values: &[(Key, ConfigValue)]) -> Result<BatchReport> {
        self.lock(|store| {
            if !values.is_empty() {
                store.changed().configs.extend(values.iter().cloned());
            }
            Ok(())
        })?;
        self.tell(DocumentKind::Config, values.iter().map(|(key, _)| key));
        Ok(BatchReport { succeeded: values.len(), failures: Vec::new() })
    }

    fn stream_configs(&self, options: ListOptions) -> impl Stream<Item = Result<(Key, ConfigValue)>> + Send {
        self.stream(options, |data| &data.configs)
    }
}
