//! `ConfigStore` for `File`.

use std::collections::BTreeMap;

use super::{
    File,
    work::{FEW, work},
};
use crate::{
    ConfigStore, ConfigValue, Key, Result,
    codec::{RecordKey, encode_config},
};

impl ConfigStore for File {
    async fn get_config(&self, key: &Key) -> Result<ConfigValue> {
        self.state()?.config(key)
    }

    async fn set_config(&self, key: &Key, value: &ConfigValue) -> Result<()> {
        let (key, value, encoded) = (key.clone(), value.clone(), encode_config(value));
        self.write(move |draft| {
            draft.put_config(key, value, encoded);
            Ok(())
        })
        .await
    }

    async fn delete_config(&self, key: &Key) -> Result<()> {
        let key = key.clone();
        self.write(move |draft| draft.delete_config(&key)).await
    }

    async fn list_configs(&self) -> Result<BTreeMap<Key, ConfigValue>> {
        let state = self.snapshot()?;
        work(self.deadline, state.configs.len() <= FEW, move || {
            state.check(|name| matches!(name, RecordKey::Config(_)))?;
            Ok(state.configs.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
        })
        .await
    }
}
