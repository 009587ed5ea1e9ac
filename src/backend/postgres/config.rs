//! Config values: a table of JSON.

use std::collections::BTreeMap;

use futures_core::Stream;

use super::{
    Postgres,
    credential::{get_documents, set_documents},
    statement::{Json, Parameter, Sql, column, key},
};
use crate::{
    BatchReport, ConfigStore, ConfigValue, Error, Found, Key, Result,
    backend::remote::{Effect, batch},
    codec::{decode_config, encode_config},
    error::Kind,
    model::ListOptions,
};

pub(super) fn read(key: &Key, row: &tokio_postgres::Row, at: usize) -> Result<ConfigValue> {
    let Json(text) = column(row, at)?;
    decode_config(text).map_err(|error| error.with_key(key))
}

impl ConfigStore for Postgres {
    async fn get_config(&self, key: &Key) -> Result<ConfigValue> {
        let name = [Parameter::Text(key.as_str())];
        let reply = self.call()?.run(Effect::Read, Sql::GetConfig, &name).await?;
        read(key, reply.rows.first().ok_or_else(|| Error::not_found(Kind::Config, key))?, 0)
    }

    async fn set_config(&self, key: &Key, value: &ConfigValue) -> Result<()> {
        let text = encode_config(value);
        let record = [Parameter::Text(key.as_str()), Parameter::Json(&text)];
        self.call()?.run(Effect::Write, Sql::SetConfig, &record).await.map(drop)
    }

    async fn delete_config(&self, key: &Key) -> Result<()> {
        let name = [Parameter::Text(key.as_str())];
        let deleted = self.call()?.run(Effect::Write, Sql::DeleteConfig, &name).await?;
        Error::unless_found(deleted.count > 0, Kind::Config, key)
    }

    async fn list_configs(&self) -> Result<BTreeMap<Key, ConfigValue>> {
        let reply = self.call()?.run(Effect::Read, Sql::ListConfigs, &[]).await?;
        reply
            .rows
            .iter()
            .map(|row| {
                let key = key(row, 0)?;
                let value = read(&key, row, 1)?;
                Ok((key, value))
            })
            .collect()
    }

    async fn get_configs(&self, keys: &[Key]) -> Result<Found<ConfigValue>> {
        get_documents(&self.call()?, (Kind::Config, Sql::GetConfigs), keys, read).await
    }

    async fn set_configs(&self, values: &[(Key, ConfigValue)]) -> Result<BatchReport> {
        let call = self.call()?;
        let last: BTreeMap<&Key, &ConfigValue> = values.iter().map(|(key, value)| (key, value)).collect();
        let failed = set_documents(&call, Sql::SetConfigs, last, encode_config).await;
        batch::report(values.iter().map(|(key, _)| key), &failed)
    }

    fn stream_configs(&self, options: ListOptions) -> impl Stream<Item = Result<(Key, ConfigValue)>> + Send {
        self.list(options, Self::page_of_configs)
    }
}
