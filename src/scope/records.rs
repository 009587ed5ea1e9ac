//! Records in a scope: credentials, configuration, usage, cache, conditional writes, export.

use std::{collections::BTreeMap, future::ready, mem, time::Duration};

use futures_core::Stream;
use futures_util::StreamExt;

use super::Scope;
use crate::{
    BatchReport, CacheEntry, CacheStore, ConfigStore, ConfigValue, Credential, CredentialStore, Exportable,
    Found, Increment, Key, Pooled, Record, RecordKind, Result, UsageRecord, UsageStore,
    capability::{Conditional, Wake},
    history::DocumentKind,
    model::{Condition, ListOptions, Revision, Totals, Within},
    wrap::{
        CacheStoreWrapper, ConditionalWrapper, ConfigStoreWrapper, CredentialStoreWrapper, ExportableWrapper,
        PooledWrapper, UsageStoreWrapper,
    },
};

impl Scope {
    /// The entries of this scope.
    fn own<T>(&self, all: BTreeMap<Key, T>) -> BTreeMap<Key, T> {
        all.into_iter().filter_map(|(key, value)| Some((self.inner(&key)?, value))).collect()
    }

    fn own_found<T>(&self, found: Result<Found<T>>) -> Result<Found<T>> {
        found.map(|mut found| {
            found.values = self.own(mem::take(&mut found.values));
            found
        })
    }

    /// The options for the store, of those for this scope.
    fn outer_options(&self, options: ListOptions) -> ListOptions {
        ListOptions {
            prefix: format!("{}{}", self.prefix, options.prefix),
            after: options.after.map(|after| after.prefixed(&self.prefix)),
            ..options
        }
    }

    /// The records of a stream whose keys are those of the store.
    fn own_stream<T: Send>(
        &self,
        records: impl Stream<Item = Result<(Key, T)>> + Send,
    ) -> impl Stream<Item = Result<(Key, T)>> + Send {
        records.filter_map(|record| {
            ready(match record {
                Ok((key, value)) => self.inner(&key).map(|key| Ok((key, value))),
                Err(error) => Some(Err(self.error(error))),
            })
        })
    }
}

#[deny(clippy::missing_trait_methods)]
impl<B: CredentialStore> CredentialStoreWrapper<B> for Scope {
    async fn get_credential(&self, inner: &B, id: &Key) -> Result<Credential> {
        self.result(inner.get_credential(&self.outer(id)?).await)
    }

    async fn set_credential(&self, inner: &B, id: &Key, credential: &Credential) -> Result<()> {
        self.result(inner.set_credential(&self.outer(id)?, credential).await)
    }

    async fn delete_credential(&self, inner: &B, id: &Key) -> Result<()> {
        self.result(inner.delete_credential(&self.outer(id)?).await)
    }

    async fn list_credentials(&self, inner: &B) -> Result<Vec<Key>> {
        let all = self.result(inner.list_credentials().await)?;
        Ok(all.iter().filter_map(|id| self.inner(id)).collect())
    }

    async fn get_credentials(&self, inner: &B, ids: &[Key]) -> Result<Found<Credential>> {
        let batch = self.batch(ids, |id| id, |_, id| id);
        let found = inner.get_credentials(&batch.items).await;
        self.own_found(batch.settle(found))
    }

    async fn set_credentials(&self, inner: &B, credentials: &[(Key, Credential)]) -> Result<BatchReport> {
        let batch = self.batch(credentials, |(id, _)| id, |(_, credential), id| (id, credential.clone()));
        let report = inner.set_credentials(&batch.items).await;
        batch.settle(report)
    }

    async fn delete_credentials(&self, inner: &B, ids: &[Key]) -> Result<BatchReport> {
        let batch = self.batch(ids, |id| id, |_, id| id);
        let report = inner.delete_credentials(&batch.items).await;
        batch.settle(report)
    }

    fn stream_credentials(
        &self,
        inner: &B,
        options: ListOptions,
    ) -> impl Stream<Item = Result<(Key, Credential)>> + Send {
        self.own_stream(inner.stream_credentials(self.outer_options(options)))
    }
}

#[deny(clippy::missing_trait_methods)]
impl<B: ConfigStore> ConfigStoreWrapper<B> for Scope {
    async fn get_config(&self, inner: &B, key: &Key) -> Result<ConfigValue> {
        self.result(inner.get_config(&self.outer(key)?).await)
    }

    async fn set_config(&self, inner: &B, key: &Key, value: &ConfigValue) -> Result<()> {
        self.result(inner.set_config(&self.outer(key)?, value).await)
    }

    async fn delete_config(&self, inner: &B, key: &Key) -> Result<()> {
        self.result(inner.delete_config(&self.outer(key)?).await)
    }

    async fn list_configs(&self, inner: &B) -> Result<BTreeMap<Key, ConfigValue>> {
        Ok(self.own(self.result(inner.list_configs().await)?))
    }

    async fn get_configs(&self, inner: &B, keys: &[Key]) -> Result<Found<ConfigValue>> {
        let batch = self.batch(keys, |key| key, |_, key| key);
        let found = inner.get_configs(&batch.items).await;
        self.own_found(batch.settle(found))
    }

    async fn set_configs(&self, inner: &B, values: &[(Key, ConfigValue)]) -> Result<BatchReport> {
        let batch = self.batch(values, |(key, _)| key, |(_, value), key| (key, value.clone()));
        let report = inner.set_configs(&batch.items).await;
        batch.settle(report)
    }

    fn stream_configs(
        &self,
        inner: &B,
        options: ListOptions,
    ) -> impl Stream<Item = Result<(Key, ConfigValue)>> + Send {
        self.own_stream(inner.stream_configs(self.outer_options(options)))
    }
}

#[deny(clippy::missing_trait_methods)]
impl<B: Conditional> ConditionalWrapper<B> for Scope {
    async fn get_with_revision(
        &self,
        inner: &B,
        kind: DocumentKind,
        key: &Key,
    ) -> Result<(Record, Revision)> {
        let (record, revision) = self.result(inner.get_with_revision(kind, &self.outer(key)?).await)?;
        Ok((Self::rename(&record, key.clone()), revision))
    }

    async fn set_if(&self, inner: &B, record: &Record, condition: Condition) -> Result<Revision> {
        self.result(inner.set_if(&self.outer_record(record)?, condition).await)
    }

    async fn delete_if(&self, inner: &B, kind: DocumentKind, key: &Key, revision: Revision) -> Result<()> {
        self.result(inner.delete_if(kind, &self.outer(key)?, revision).await)
    }

    fn next_change(&self, inner: &B, kind: DocumentKind, key: &Key) -> Option<Wake> {
        inner.next_change(kind, &self.outer(key).ok()?)
    }
}

#[deny(clippy::missing_trait_methods)]
impl<B: UsageStore> UsageStoreWrapper<B> for Scope {
    async fn increment_usage(&self, inner: &B, key: &Key, field: &Key, delta: i64) -> Result<i64> {
        self.result(inner.increment_usage(&self.outer(key)?, field, delta).await)
    }

    async fn increment_within(
        &self,
        inner: &B,
        key: &Key,
        field: &Key,
        delta: i64,
        limit: i64,
    ) -> Result<Within> {
        self.result(inner.increment_within(&self.outer(key)?, field, delta, limit).await)
    }

    async fn increment_many(&self, inner: &B, increments: &[Increment]) -> Result<Totals> {
        let rename = |increment: &Increment, key| Increment { key, ..increment.clone() };
        let batch = self.batch(increments, |increment| &increment.key, rename);
        let report = inner.increment_many(&batch.items).await;
        batch.settle(report)
    }

    async fn get_usage(&self, inner: &B, key: &Key) -> Result<UsageRecord> {
        self.result(inner.get_usage(&self.outer(key)?).await)
    }

    async fn get_counter(&self, inner: &B, key: &Key, field: &Key) -> Result<i64> {
        self.result(inner.get_counter(&self.outer(key)?, field).await)
    }

    async fn get_usages(&self, inner: &B, keys: &[Key]) -> Result<Found<UsageRecord>> {
        let batch = self.batch(keys, |key| key, |_, key| key);
        let found = inner.get_usages(&batch.items).await;
        self.own_found(batch.settle(found))
    }

    async fn reset_usage(&self, inner: &B, key: &Key) -> Result<()> {
        self.result(inner.reset_usage(&self.outer(key)?).await)
    }

    async fn reset_usage_prefix(&self, inner: &B, prefix: &Key) -> Result<u64> {
        self.result(inner.reset_usage_prefix(&self.outer(prefix)?).await)
    }

    async fn list_usage(&self, inner: &B) -> Result<BTreeMap<Key, UsageRecord>> {
        Ok(self.own(self.result(inner.list_usage().await)?))
    }

    fn stream_usage(
        &self,
        inner: &B,
        options: ListOptions,
    ) -> impl Stream<Item = Result<(Key, UsageRecord)>> + Send {
        self.own_stream(inner.stream_usage(self.outer_options(options)))
    }
}

#[deny(clippy::missing_trait_methods)]
impl<B: CacheStore> CacheStoreWrapper<B> for Scope {
    async fn get_cache(&self, inner: &B, key: &Key) -> Result<Vec<u8>> {
        self.result(inner.get_cache(&self.outer(key)?).await)
    }

    async fn get_cache_entry(&self, inner: &B, key: &Key) -> Result<CacheEntry> {
        self.result(inner.get_cache_entry(&self.outer(key)?).await)
    }

    async fn set_cache(&self, inner: &B, key: &Key, value: &[u8], ttl: Duration) -> Result<()> {
        self.result(inner.set_cache(&self.outer(key)?, value, ttl).await)
    }

    async fn set_cache_if_absent(&self, inner: &B, key: &Key, value: &[u8], ttl: Duration) -> Result<bool> {
        self.result(inner.set_cache_if_absent(&self.outer(key)?, value, ttl).await)
    }

    async fn get_cache_many(&self, inner: &B, keys: &[Key]) -> Result<Found<Vec<u8>>> {
        let batch = self.batch(keys, |key| key, |_, key| key);
        let found = inner.get_cache_many(&batch.items).await;
        self.own_found(batch.settle(found))
    }

    async fn set_cache_many(
        &self,
        inner: &B,
        values: &[(Key, Vec<u8>)],
        ttl: Duration,
    ) -> Result<BatchReport> {
        let batch = self.batch(values, |(key, _)| key, |(_, value), key| (key, value.clone()));
        let report = inner.set_cache_many(&batch.items, ttl).await;
        batch.settle(report)
    }

    async fn delete_cache(&self, inner: &B, key: &Key) -> Result<()> {
        self.result(inner.delete_cache(&self.outer(key)?).await)
    }
}

#[deny(clippy::missing_trait_methods)]
impl<B: Exportable> ExportableWrapper<B> for Scope {
    /// Not by the `export` of the backend inside, which telemetry would take for a backup of the whole store.
    fn export(&self, inner: &B) -> impl Stream<Item = Result<Record>> + Send {
        self.export_prefix(inner, String::new())
    }

    fn export_prefix(&self, inner: &B, prefix: String) -> impl Stream<Item = Result<Record>> + Send {
        inner.export_prefix(format!("{}{prefix}", self.prefix)).filter_map(|record| {
            ready(match record {
                Ok(record) => self.inner_record(&record).map(Ok),
                Err(error) => Some(Err(self.error(error))),
            })
        })
    }

    fn exports_snapshot(&self, inner: &B) -> bool {
        inner.exports_snapshot()
    }

    fn imports(&self, inner: &B, kind: RecordKind) -> bool {
        inner.imports(kind)
    }

    fn imports_while_exporting(&self, inner: &B) -> bool {
        inner.imports_while_exporting()
    }

    async fn import(&self, inner: &B, records: &[Record]) -> Result<BatchReport> {
        let batch = self.batch(records, Record::key, Self::rename);
        let report = inner.import(&batch.items).await;
        batch.settle(report)
    }
}

impl<B: Pooled> PooledWrapper<B> for Scope {}
