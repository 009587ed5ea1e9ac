//! Configuration.

use std::collections::BTreeMap;

use gateway_storage::{ConfigStore, ConfigValue, Key, Result, history::DocumentKind};

use super::Own;

impl ConfigStore for Own {
    async fn get_config(&self, key: &Key) -> Result<ConfigValue> {
        ConfigValue::from_json(&*self.get(DocumentKind::Config, key)?)
    }

    async fn set_config(&self, key: &Key, value: &ConfigValue) -> Result<()> {
        self.set(DocumentKind::Config, key, &value.to_json())
    }

    async fn delete_config(&self, key: &Key) -> Result<()> {
        self.delete(DocumentKind::Config, key)
    }

    async fn list_configs(&self) -> Result<BTreeMap<Key, ConfigValue>> {
        let store = self.lock()?;
        let values = store.documents.of(DocumentKind::Config);
        values.map(|(key, text)| Ok((key.clone(), ConfigValue::from_json(&**text)?))).collect()
    }
}
