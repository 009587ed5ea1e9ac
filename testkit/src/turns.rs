//! [`Turns`]: several handles to one store as one backend, whose calls take turns among them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::Stream;
use gateway_storage::{
    Backend, BatchReport, ConfigBatch, ConfigStore, ConfigValue, Credential, CredentialStore, Exportable,
    Found, Increment, Key, Record, Result, StorageStats, UsageRecord, UsageStore,
    history::DocumentKind,
    lease::{Claim, Holder, Lease, LeaseState, Leases},
    list::ListOptions,
    plan::{Applied, ApplyOptions, AuditEntry, AuditFilter, Plan, Rollback, RollbackOptions},
    revision::{Condition, Conditional, Revision, Wake},
    usage::{Totals, Within},
    watch::{Event, Watch, WatchOptions},
};

/// Each call goes to the handle after that of the call before: what one has written, another one reads.
#[derive(Clone)]
pub struct Turns<B> {
    handles: Vec<B>,
    next: Arc<AtomicUsize>,
}

impl<B> Turns<B> {
    /// Handles to one store.
    #[must_use]
    pub fn new(handles: Vec<B>) -> Self {
        Self { handles, next: Arc::default() }
    }

    fn next(&self) -> &B {
        &self.handles[self.next.fetch_add(1, Ordering::Relaxed) % self.handles.len()]
    }
}

#[deny(clippy::missing_trait_methods)]
impl<B: Backend> Backend for Turns<B> {
    fn label(&self) -> &'static str {
        self.handles[0].label()
    }

    fn namespace(&self) -> Option<&str> {
        self.handles[0].namespace()
    }

    fn max_key_bytes(&self) -> usize {
        self.handles[0].max_key_bytes()
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.handles.iter_mut().for_each(|handle| handle.set_deadline(deadline));
    }

    fn deadline(&self) -> Duration {
        self.handles[0].deadline()
    }

    async fn health(&self) -> Result<()> {
        self.next().health().await
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.next().stats().await
    }

    async fn close(&self) -> Result<()> {
        for handle in &self.handles {
            handle.close().await?;
        }
        Ok(())
    }
}

#[deny(clippy::missing_trait_methods)]
impl<B: CredentialStore> CredentialStore for Turns<B> {
    async fn get_credential(&self, id: &Key) -> Result<Credential> {
        self.next().get_credential(id).await
    }

    async fn set_credential(&self, id: &Key, credential: &Credential) -> Result<()> {
        self.next().set_credential(id, credential).await
    }

    async fn delete_credential(&self, id: &Key) -> Result<()> {
        self.next().delete_credential(id).await
    }

    async fn list_credentials(&self) -> Result<Vec<Key>> {
        self.next().list_credentials().await
    }

    async fn get_credentials(&self, ids: &[Key]) -> Result<Found<Credential>> {
        self.next().get_credentials(ids).await
    }

    async fn set_credentials(&self, credentials: &[(Key, Credential)]) -> Result<BatchReport> {
        self.next().set_credentials(credentials).await
    }

    async fn delete_credentials(&self, ids: &[Key]) -> Result<BatchReport> {
        self.next().delete_credentials(ids).await
    }

    fn stream_credentials(
        &self,
        options: ListOptions,
    ) -> impl Stream<Item = Result<(Key, Credential)>> + Send {
        self.next().stream_credentials(options)
    }
}

#[deny(clippy::missing_trait_methods)]
impl<B: ConfigStore> ConfigStore for Turns<B> {
    async fn get_config(&self, key: &Key) -> Result<ConfigValue> {
        self.next().get_config(key).await
    }

    async fn set_config(&self, key: &Key, value: &ConfigValue) -> Result<()> {
        self.next().set_config(key, value).await
    }

    async fn delete_config(&self, key: &Key) -> Result<()> {
        self.next().delete_config(key).await
    }

    async fn list_configs(&self) -> Result<BTreeMap<Key, ConfigValue>> {
        self.next().list_configs().await
    }

    async fn get_configs(&self, keys: &[Key]) -> Result<Found<ConfigValue>> {
        self.next().get_configs(keys).await
    }

    async fn set_configs(&self, values: &[(Key, ConfigValue)]) -> Result<BatchReport> {
        self.next().set_configs(values).await
    }

    fn stream_configs(&self, options: ListOptions) -> impl Stream<Item = Result<(Key, ConfigValue)>> + Send {
        self.next().stream_configs(options)
    }
}

#[deny(clippy::missing_trait_methods)]
impl<B: Conditional> Conditional for Turns<B> {
    async fn get_with_revision(&self, kind: DocumentKind, key: &Key) -> Result<(Record, Revision)> {
        self.next().get_with_revision(kind, key).await
    }

    async fn set_if(&self, record: &Record, condition: Condition) -> Result<Revision> {
        self.next().set_if(record, condition).await
    }

    async fn delete_if(&self, kind: DocumentKind, key: &Key, revision: Revision) -> Result<()> {
        self.next().delete_if(kind, key, revision).await
    }

    fn next_change(&self, kind: DocumentKind, key: &Key) -> Option<Wake> {
        self.next().next_change(kind, key)
    }
}

#[deny(clippy::missing_trait_methods)]
impl<B: Leases> Leases for Turns<B> {
    async fn claim_lease(&self, name: &Key, holder: &Holder, ttl: Duration) -> Result<Claim> {
        self.next().claim_lease(name, holder, ttl).await
    }

    async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<Lease> {
        self.next().renew_lease(lease, ttl).await
    }

    async fn release_lease(&self, lease: &Lease, rest: Duration) -> Result<()> {
        self.next().release_lease(lease, rest).await
    }

    async fn list_leases(&self) -> Result<Vec<LeaseState>> {
        self.next().list_leases().await
    }
}

#[deny(clippy::missing_trait_methods)]
impl<B: ConfigBatch> ConfigBatch for Turns<B> {
    async fn apply_plan(&self, key: &Key, plan: &Plan, options: &ApplyOptions) -> Result<Applied> {
        self.next().apply_plan(key, plan, options).await
    }

    async fn rollback_plan(&self, key: &Key, options: &RollbackOptions) -> Result<Rollback> {
        self.next().rollback_plan(key, options).await
    }

    fn audit_plans(&self, filter: AuditFilter) -> impl Stream<Item = Result<AuditEntry>> + Send {
        self.next().audit_plans(filter)
    }
}

#[deny(clippy::missing_trait_methods)]
impl<B: Watch> Watch for Turns<B> {
    fn watch(&self, options: WatchOptions) -> impl Stream<Item = Result<Event>> + Send {
        self.next().watch(options)
    }
}

#[deny(clippy::missing_trait_methods)]
impl<B: UsageStore> UsageStore for Turns<B> {
    async fn increment_usage(&self, key: &Key, field: &Key, delta: i64) -> Result<i64> {
        self.next().increment_usage(key, field, delta).await
    }

    async fn increment_within(&self, key: &Key, field: &Key, delta: i64, limit: i64) -> Result<Within> {
        self.next().increment_within(key, field, delta, limit).await
    }

    async fn increment_many(&self, increments: &[Increment]) -> Result<Totals> {
        self.next().increment_many(increments).await
    }

    async fn get_usage(&self, key: &Key) -> Result<UsageRecord> {
        self.next().get_usage(key).await
    }

    async fn get_counter(&self, key: &Key, field: &Key) -> Result<i64> {
        self.next().get_counter(key, field).await
    }

    async fn get_usages(&self, keys: &[Key]) -> Result<Found<UsageRecord>> {
        self.next().get_usages(keys).await
    }

    async fn reset_usage_prefix(&self, prefix: &Key) -> Result<u64> {
        self.next().reset_usage_prefix(prefix).await
    }

    fn stream_usage(&self, options: ListOptions) -> impl Stream<Item = Result<(Key, UsageRecord)>> + Send {
        self.next().stream_usage(options)
    }

    async fn reset_usage(&self, key: &Key) -> Result<()> {
        self.next().reset_usage(key).await
    }

    async fn list_usage(&self) -> Result<BTreeMap<Key, UsageRecord>> {
        self.next().list_usage().await
    }
}

#[deny(clippy::missing_trait_methods)]
impl<B: Exportable> Exportable for Turns<B> {
    fn export(&self) -> impl Stream<Item = Result<Record>> + Send {
        self.next().export()
    }

    fn export_prefix(&self, prefix: String) -> impl Stream<Item = Result<Record>> + Send {
        self.next().export_prefix(prefix)
    }

    fn exports_snapshot(&self) -> bool {
        self.handles[0].exports_snapshot()
    }

    fn imports(&self, kind: gateway_storage::RecordKind) -> bool {
        self.handles[0].imports(kind)
    }

    fn imports_while_exporting(&self) -> bool {
        self.handles[0].imports_while_exporting()
    }

    async fn import(&self, records: &[Record]) -> Result<BatchReport> {
        self.next().import(records).await
    }
}
