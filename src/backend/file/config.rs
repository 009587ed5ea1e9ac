//! `ConfigStore` for `File`.

use std::collections::BTreeMap;

use futures_core::Stream;

use super::{File, document::Document};
use crate::{
    BatchReport, ConfigStore, ConfigValue, Found, Key, Result,
    codec::{RecordKey, encode_config},
    model::ListOptions,
};

impl ConfigStore for File {
    async fn get_config(&self, key: &Key) -> Result<ConfigValue> {
        self.document(key).await
    }

    async fn set_config(&self, key: &Key, value: &ConfigValue) -> Result<()> {
        let admitted = self.admit(1, value.weight()).await?;
        let (key, encoded) = (key.clone(), encode_config(value));
        self.write_admitted(admitted, move |draft| draft.put_config(key, &encoded)).await
    }

    async fn delete_config(&self, key: &Key) -> Result<()> {
        let key = key.clone();
        self.write(move |draft| draft.delete_config(&key)).await
    }

    async fn list_configs(&self) -> Result<BTreeMap<Key, ConfigValue>> {
        self.read(|snapshot| {
            snapshot.records(RecordKey::configs())?.map(|stored| ConfigValue::read(&stored?)).collect()
        })
        .await
    }

    async fn get_configs(&self, keys: &[Key]) -> Result<Found<ConfigValue>> {
        self.documents(keys).await
    }

    async fn set_configs(&self, values: &[(Key, ConfigValue)]) -> Result<BatchReport> {
        self.set_documents(values).await
    }

    /// As [`stream_credentials`](crate::CredentialStore::stream_credentials).
    fn stream_configs(&self, options: ListOptions) -> impl Stream<Item = Result<(Key, ConfigValue)>> + Send {
        self.stream(options)
    }
}
