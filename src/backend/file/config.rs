//! `ConfigStore` for `File`.

use std::collections::BTreeMap;

use super::{File, cache::weight_of, document::Document};
use crate::{
    ConfigStore, ConfigValue, Key, Result,
    codec::{RecordKey, encode_config},
};

impl ConfigStore for File {
    async fn get_config(&self, key: &Key) -> Result<ConfigValue> {
        self.document(key).await
    }

    async fn set_config(&self, key: &Key, value: &ConfigValue) -> Result<()> {
        let admitted = self.admit(1, weight_of(value.value())).await?;
        let (key, encoded) = (key.clone(), encode_config(value));
        self.write_admitted(admitted, move |draft| draft.put_config(key, &encoded)).await
    }

    async fn delete_config(&self, key: &Key) -> Result<()> {
        let key = key.clone();
        self.write(move |draft| draft.delete_config(&key)).await
    }

    async fn list_configs(&self) -> Result<BTreeMap<Key, ConfigValue>> {
        self.read(|snapshot| {
            snapshot
                .records(RecordKey::configs())?
                .map(|stored| {
                    let stored = stored?;
                    let key = stored.key()?;
                    let value = ConfigValue::decode(stored.value()).map_err(|error| error.with_key(&key))?;
                    Ok((key, value))
                })
                .collect()
        })
        .await
    }
}
