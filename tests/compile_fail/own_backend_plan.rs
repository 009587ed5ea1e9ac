//~ error[E0277]: `Mine` cannot apply config batches
//~ backends that can: `File`, `Memory`
use std::{collections::BTreeMap, time::Duration};

use gateway_storage::{layer::Count, plan::{ApplyOptions, Plan}, Backend, ConfigStore, ConfigValue, Key, Memory, Result, Storage, StorageStats};

#[derive(Clone)]
struct Mine(Memory);

impl Backend for Mine {
    fn label(&self) -> &'static str {
        "mine"
    }

    fn set_deadline(&mut self, _: Duration) {}

    async fn health(&self) -> Result<()> {
        self.0.health().await
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.0.stats().await
    }

    async fn close(&self) -> Result<()> {
        self.0.close().await
    }
}

impl ConfigStore for Mine {
    async fn get_config(&self, key: &Key) -> Result<ConfigValue> {
        self.0.get_config(key).await
    }

    async fn set_config(&self, key: &Key, value: &ConfigValue) -> Result<()> {
        self.0.set_config(key, value).await
    }

    async fn delete_config(&self, key: &Key) -> Result<()> {
        self.0.delete_config(key).await
    }

    async fn list_configs(&self) -> Result<BTreeMap<Key, ConfigValue>> {
        self.0.list_configs().await
    }
}

async fn apply(storage: Storage<Mine>, plan: &Plan) {
    let _ = storage.layer(Count::default()).apply_plan("k", plan, &ApplyOptions::default()).await;
}

fn main() {}
