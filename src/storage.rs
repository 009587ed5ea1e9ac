//! [`Storage`]: what an application holds.

// A stated `Send` is what lets a task be generic over the backend, whatever it takes for a key.
#![expect(clippy::manual_async_fn)]

use std::{borrow::Borrow, collections::BTreeMap, fmt, pin::pin, time::Duration};

use futures_core::Stream;
use futures_util::StreamExt;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use tokio::task::consume_budget;

use crate::{
    Applied, ApplyOptions, AsKey, AuditEntry, AuditFilter, Backend, BatchReport, CacheEntry, CacheStore,
    ConfigBatch, ConfigStore, ConfigValue, Credential, CredentialStore, Error, Exportable, Found, Increment,
    Instrument, Key, Layer, Layered, Open, Outcome, POOL_INTERVAL, Plan, PoolStats, Pooled, Record,
    RecordKind, Result, Rollback, RollbackOptions, StorageStats, Transactional, UsageRecord, UsageStore,
};

/// How many records [`Storage::import`] hands to the backend at a time. Fewer, where they have four megabytes before.
pub const IMPORT_CHUNK: usize = 500;

/// A chunk ends when its records have this many bytes.
const CHUNK_BYTES: usize = 4 << 20;

/// The records that one call of [`Exportable::import`] takes.
#[derive(Default)]
pub(crate) struct Chunk {
    pub(crate) records: Vec<Record>,
    bytes: usize,
}

impl Chunk {
    /// Whether it takes no more.
    pub(crate) fn is_full(&self, most: usize) -> bool {
        self.records.len() >= most || self.bytes >= CHUNK_BYTES
    }

    pub(crate) fn push(&mut self, record: Record) {
        self.bytes += record.size();
        self.records.push(record);
    }
}

/// A store, by the type of its backend: what an application holds, clones and passes around.
///
/// Every method says in its bounds what the backend must be able to do. A method that it can't do does not compile, and
/// the compiler's message says which backends can:
///
/// ```compile_fail
/// # use gateway_storage::{File, Storage};
/// # async fn f(storage: Storage<File>) {
/// storage.get_cache("models").await; // error: `File` cannot cache; backends that cache: ...
/// # }
/// ```
///
/// A generic application asks for what it needs:
///
/// ```
/// use gateway_storage::{CredentialStore, Result, Storage, UsageStore};
///
/// async fn serve<B: CredentialStore + UsageStore>(storage: Storage<B>) -> Result<()> {
///     for id in storage.list_credentials().await? {
///         storage.increment_usage(&id, "requests", 1).await?;
///     }
///     Ok(())
/// }
/// ```
///
/// Keys are a [`Key`](crate::Key), or a string that is checked first. What an operation promises, its errors and its
/// order are written once, at the trait: [`CredentialStore`], [`ConfigStore`], [`UsageStore`], [`CacheStore`],
/// [`Transactional`], [`ConfigBatch`], [`Exportable`], [`Pooled`], and for all of them [`Backend`]. Any method that takes a string may
/// also fail with [`InvalidKey`](crate::ErrorKind::InvalidKey), any that takes a value with
/// [`TooLarge`](crate::ErrorKind::TooLarge) or [`InvalidValue`](crate::ErrorKind::InvalidValue).
///
/// Clones share the store. Operations need a Tokio runtime with time enabled.
#[derive(Clone)]
pub struct Storage<B> {
    backend: B,
}

/// Opening, layers, life.
impl<B> Storage<B> {
    /// Opens a store from a URL (`file:./data`), or from the backend's typed configuration. White space at the ends of a URL, as a
    /// mounted secret's line feed, is no part of it; within, a control character is refused.
    ///
    /// # Errors
    ///
    /// What the backend says of what it finds there; see its page.
    pub async fn open<C>(config: C) -> Result<Self>
    where
        B: Open,
        C: TryInto<B::Config>,
        Error: From<C::Error>,
    {
        Ok(Self::new(B::open(config.try_into()?).await?))
    }

    /// A storage on a backend that is open already.
    #[inline]
    pub const fn new(backend: B) -> Self {
        Self { backend }
    }

    /// The backend, for what only it can do.
    #[inline]
    pub const fn backend(&self) -> &B {
        &self.backend
    }

    /// Puts a layer around every operation. The last one added is the outermost. It is told the handle's
    /// [deadline](Backend::deadline), and takes it for its own if it was given none.
    #[must_use]
    pub fn layer<L>(self, mut layer: L) -> Storage<Layered<L, B>>
    where
        L: Layer,
        B: Backend,
    {
        layer.put_on(self.backend.deadline());
        Storage { backend: Layered::new(layer, self.backend) }
    }

    /// Tells `tracing` and `metrics` of every operation, and knows the store's recent
    /// [performance](StorageStats::performance): see [`Instrument`].
    #[must_use]
    pub fn instrumented(self) -> Storage<Layered<Instrument, B>>
    where
        B: Backend,
    {
        let instrument = Instrument::new(&self.backend);
        self.layer(instrument)
    }

    /// The same, and the pool's gauges, every [`POOL_INTERVAL`]. A task sees to them until the storage is closed or its
    /// last handle is dropped: see [`Instrument::sample_pool`] for another interval.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime.
    #[must_use]
    pub fn instrumented_pool(self) -> Storage<Layered<Instrument, B>>
    where
        B: Pooled,
    {
        let instrument = Instrument::new(&self.backend).sample_pool(&self.backend, POOL_INTERVAL);
        self.layer(instrument)
    }

    /// A handle on the same store whose calls may take this long instead of
    /// [`DEFAULT_DEADLINE`](crate::DEFAULT_DEADLINE). For one call: `storage.with_deadline(d).get_config("k")`.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self
    where
        B: Backend,
    {
        let mut backend = self.backend.clone();
        backend.set_deadline(deadline);
        Self { backend }
    }

    /// The backend's name: `"file"`, `"memory"`.
    pub fn label(&self) -> &'static str
    where
        B: Backend,
    {
        self.backend.label()
    }

    /// Says whether the storage can serve reads and writes now. See [`Backend::health`].
    pub async fn health(&self) -> Result<()>
    where
        B: Backend,
    {
        self.backend.health().await
    }

    /// Counts what is stored and describes the store. See [`Backend::stats`].
    pub async fn stats(&self) -> Result<StorageStats>
    where
        B: Backend,
    {
        self.backend.stats().await
    }

    /// Finishes what is under way and releases files, locks and connections. Other handles are
    /// [`Closed`](crate::ErrorKind::Closed) from then on. See [`Backend::close`].
    pub async fn close(self) -> Result<()>
    where
        B: Backend,
    {
        self.backend.close().await
    }
}

/// Credentials. See [`CredentialStore`].
impl<B> Storage<B> {
    /// Reads one credential. See [`CredentialStore::get_credential`].
    #[inline]
    pub fn get_credential(&self, id: impl AsKey) -> impl Future<Output = Result<Credential>> + Send
    where
        B: CredentialStore,
    {
        async move { self.backend.get_credential(id.as_key()?.borrow()).await }
    }

    /// Stores one credential: a [`Credential`], or a JSON object. See [`CredentialStore::set_credential`].
    pub fn set_credential<C>(&self, id: impl AsKey, credential: C) -> impl Future<Output = Result<()>> + Send
    where
        B: CredentialStore,
        C: TryInto<Credential>,
        Error: From<C::Error>,
    {
        let credential = credential.try_into().map_err(Error::from);
        async move { self.backend.set_credential(id.as_key()?.borrow(), &credential?).await }
    }

    /// Deletes one credential. See [`CredentialStore::delete_credential`].
    pub fn delete_credential(&self, id: impl AsKey) -> impl Future<Output = Result<()>> + Send
    where
        B: CredentialStore,
    {
        async move { self.backend.delete_credential(id.as_key()?.borrow()).await }
    }

    /// Lists all ids, sorted. See [`CredentialStore::list_credentials`].
    pub async fn list_credentials(&self) -> Result<Vec<Key>>
    where
        B: CredentialStore,
    {
        self.backend.list_credentials().await
    }

    /// Reads many credentials. See [`CredentialStore::get_credentials`].
    pub async fn get_credentials(&self, ids: &[Key]) -> Result<Found>
    where
        B: CredentialStore,
    {
        self.backend.get_credentials(ids).await
    }

    /// Stores many credentials. See [`CredentialStore::set_credentials`].
    pub async fn set_credentials(&self, credentials: &[(Key, Credential)]) -> Result<BatchReport>
    where
        B: CredentialStore,
    {
        self.backend.set_credentials(credentials).await
    }

    /// Deletes many credentials. See [`CredentialStore::delete_credentials`].
    pub async fn delete_credentials(&self, ids: &[Key]) -> Result<BatchReport>
    where
        B: CredentialStore,
    {
        self.backend.delete_credentials(ids).await
    }

    /// Reads one credential as a type of yours.
    ///
    /// # Errors
    ///
    /// [`InvalidValue`](crate::ErrorKind::InvalidValue); [`Error::path`] says which field does not fit.
    pub async fn get_credential_as<T: DeserializeOwned>(&self, id: impl AsKey) -> Result<T>
    where
        B: CredentialStore,
    {
        self.get_credential(id).await?.to_typed()
    }

    /// Stores a type of yours as one credential, in place of all fields that were there: see
    /// [`update_credential_as`](Storage::update_credential_as) to keep those that `T` does not know.
    pub async fn set_credential_as<T: Serialize + ?Sized>(&self, id: impl AsKey, value: &T) -> Result<()>
    where
        B: CredentialStore,
    {
        let credential = Credential::from_typed(value)?;
        self.set_credential(id, credential).await
    }

    /// Reads one credential as a type of yours, changes it and stores it, and keeps the fields that `T` does not know.
    ///
    /// A field that `T` wrote before the change and does not write after it is removed; one that `T` reads by a serde
    /// `alias` is not among those that it writes, and stays beside the new one. This is a read and a write, not
    /// one step, on every backend.
    ///
    /// # What is not safe
    ///
    /// Two updates of one credential at once, also of different fields, also by two tasks of one process: both read, and the one
    /// that writes last undoes the other. An operator's `disabled: true` can be lost to a refresh that runs at the same time.
    /// Within one process, hold a lock for the credential around all that changes it, as the gateway in `examples/` does. No lock of
    /// this crate reaches from one process to another: in a fleet, let one process refresh.
    ///
    /// [`transact!`](crate::transact) does not make a refresh safe either: of several processes each asks the provider, and
    /// spends the refresh token, before one of them commits. It is not there for `File`, `Redis` and `Git`.
    ///
    /// ```
    /// # use gateway_storage::{Memory, Storage};
    /// # use serde::{Deserialize, Serialize};
    /// # use serde_json::json;
    /// #[derive(Deserialize, Serialize)]
    /// struct Token { access_token: String }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
    /// let storage = Storage::<Memory>::open("memory:").await?;
    /// storage.set_credential("a", json!({ "access_token": "old", "project_id": "p-1" })).await?;
    /// storage.update_credential_as("a", |token: &mut Token| token.access_token = "new".into()).await?;
    /// let stored = storage.get_credential("a").await?;
    /// assert_eq!(stored, json!({ "access_token": "new", "project_id": "p-1" }).try_into()?);
    /// # Ok(()) }
    /// ```
    pub async fn update_credential_as<T>(&self, id: impl AsKey, change: impl FnOnce(&mut T)) -> Result<T>
    where
        B: CredentialStore,
        T: Serialize + DeserializeOwned,
    {
        let id: Key = id.as_key()?.borrow().clone();
        let stored = self.backend.get_credential(&id).await?;
        let mut value: T = stored.to_typed()?;
        let known = object_of(&value)?;
        change(&mut value);
        let mut fields = stored.fields().clone();
        fields.retain(|name, _| !known.contains_key(name));
        fields.extend(object_of(&value)?);
        self.backend.set_credential(&id, &Credential::new(fields)?).await?;
        Ok(value)
    }
}

fn object_of<T: Serialize>(value: &T) -> Result<Map<String, Value>> {
    Credential::from_typed(value).map(|credential| credential.fields().clone())
}

/// Configuration. See [`ConfigStore`].
impl<B> Storage<B> {
    /// Reads one value. See [`ConfigStore::get_config`].
    #[inline]
    pub fn get_config(&self, key: impl AsKey) -> impl Future<Output = Result<ConfigValue>> + Send
    where
        B: ConfigStore,
    {
        async move { self.backend.get_config(key.as_key()?.borrow()).await }
    }

    /// Stores one value: a [`ConfigValue`], or JSON. See [`ConfigStore::set_config`].
    pub fn set_config<V>(&self, key: impl AsKey, value: V) -> impl Future<Output = Result<()>> + Send
    where
        B: ConfigStore,
        V: TryInto<ConfigValue>,
        Error: From<V::Error>,
    {
        let value = value.try_into().map_err(Error::from);
        async move { self.backend.set_config(key.as_key()?.borrow(), &value?).await }
    }

    /// Deletes one value. See [`ConfigStore::delete_config`].
    pub fn delete_config(&self, key: impl AsKey) -> impl Future<Output = Result<()>> + Send
    where
        B: ConfigStore,
    {
        async move { self.backend.delete_config(key.as_key()?.borrow()).await }
    }

    /// Reads all values, sorted by key. See [`ConfigStore::list_configs`].
    pub async fn list_configs(&self) -> Result<BTreeMap<Key, ConfigValue>>
    where
        B: ConfigStore,
    {
        self.backend.list_configs().await
    }

    /// Reads one value as a type of yours.
    ///
    /// # Errors
    ///
    /// [`InvalidValue`](crate::ErrorKind::InvalidValue); [`Error::path`] says which part does not fit.
    pub async fn get_config_as<T: DeserializeOwned>(&self, key: impl AsKey) -> Result<T>
    where
        B: ConfigStore,
    {
        self.get_config(key).await?.to_typed()
    }

    /// Stores a type of yours as one value.
    pub async fn set_config_as<T: Serialize + ?Sized>(&self, key: impl AsKey, value: &T) -> Result<()>
    where
        B: ConfigStore,
    {
        let value = ConfigValue::from_typed(value)?;
        self.set_config(key, value).await
    }
}

/// Config batches. See [`ConfigBatch`].
impl<B> Storage<B> {
    /// Applies a plan under a key, once. See [`ConfigBatch::apply_plan`].
    ///
    /// ```
    /// # use gateway_storage::{Applied, ApplyOptions, Memory, Plan, Storage};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
    /// let storage = Storage::<Memory>::open("memory:").await?;
    /// let plan = Plan::from_json(r#"[{ "set": "retries", "value": 3, "expect_absent": true }]"#)?;
    /// let options = ApplyOptions::default().with_stage("canary");
    /// assert_eq!(storage.apply_plan("release-42", &plan, &options).await?, Applied::Applied);
    /// assert_eq!(storage.apply_plan("release-42", &plan, &options).await?, Applied::Replayed);
    /// # Ok(()) }
    /// ```
    pub fn apply_plan(
        &self,
        key: impl AsKey,
        plan: &Plan,
        options: &ApplyOptions,
    ) -> impl Future<Output = Result<Applied>> + Send
    where
        B: ConfigBatch,
    {
        async move { self.backend.apply_plan(key.as_key()?.borrow(), plan, options).await }
    }

    /// Puts back what a plan replaced. See [`ConfigBatch::rollback_plan`].
    pub fn rollback_plan(
        &self,
        key: impl AsKey,
        options: &RollbackOptions,
    ) -> impl Future<Output = Result<Rollback>> + Send
    where
        B: ConfigBatch,
    {
        async move { self.backend.rollback_plan(key.as_key()?.borrow(), options).await }
    }

    /// Streams the audit of plans, newest first. See [`ConfigBatch::audit_plans`].
    pub fn audit_plans(&self, filter: AuditFilter) -> impl Stream<Item = Result<AuditEntry>> + Send
    where
        B: ConfigBatch,
    {
        self.backend.audit_plans(filter)
    }
}

/// Counters. See [`UsageStore`].
impl<B> Storage<B> {
    /// Adds to one counter and returns the new total. See [`UsageStore::increment_usage`].
    #[inline]
    pub fn increment_usage(
        &self,
        key: impl AsKey,
        field: impl AsKey,
        delta: i64,
    ) -> impl Future<Output = Result<i64>> + Send
    where
        B: UsageStore,
    {
        async move { self.backend.increment_usage(key.as_key()?.borrow(), field.as_key()?.borrow(), delta).await }
    }

    /// Adds to many counters in one round trip. See [`UsageStore::increment_many`].
    pub async fn increment_many(&self, increments: &[Increment]) -> Result<BatchReport>
    where
        B: UsageStore,
    {
        self.backend.increment_many(increments).await
    }

    /// Reads one record. See [`UsageStore::get_usage`].
    pub fn get_usage(&self, key: impl AsKey) -> impl Future<Output = Result<UsageRecord>> + Send
    where
        B: UsageStore,
    {
        async move { self.backend.get_usage(key.as_key()?.borrow()).await }
    }

    /// Removes one record with all its counters. See [`UsageStore::reset_usage`].
    pub fn reset_usage(&self, key: impl AsKey) -> impl Future<Output = Result<()>> + Send
    where
        B: UsageStore,
    {
        async move { self.backend.reset_usage(key.as_key()?.borrow()).await }
    }

    /// Reads all records, sorted by key. See [`UsageStore::list_usage`].
    pub async fn list_usage(&self) -> Result<BTreeMap<Key, UsageRecord>>
    where
        B: UsageStore,
    {
        self.backend.list_usage().await
    }
}

/// Cache. See [`CacheStore`].
impl<B> Storage<B> {
    /// Reads one value. See [`CacheStore::get_cache`].
    pub fn get_cache(&self, key: impl AsKey) -> impl Future<Output = Result<Vec<u8>>> + Send
    where
        B: CacheStore,
    {
        async move { self.backend.get_cache(key.as_key()?.borrow()).await }
    }

    /// Reads one value, and how long it has to live. See [`CacheStore::get_cache_entry`].
    pub fn get_cache_entry(&self, key: impl AsKey) -> impl Future<Output = Result<CacheEntry>> + Send
    where
        B: CacheStore,
    {
        async move { self.backend.get_cache_entry(key.as_key()?.borrow()).await }
    }

    /// Stores one value for as long as `ttl` says. See [`CacheStore::set_cache`].
    pub fn set_cache(
        &self,
        key: impl AsKey,
        value: impl AsRef<[u8]> + Send,
        ttl: Duration,
    ) -> impl Future<Output = Result<()>> + Send
    where
        B: CacheStore,
    {
        async move { self.backend.set_cache(key.as_key()?.borrow(), value.as_ref(), ttl).await }
    }

    /// Deletes one value. See [`CacheStore::delete_cache`].
    pub fn delete_cache(&self, key: impl AsKey) -> impl Future<Output = Result<()>> + Send
    where
        B: CacheStore,
    {
        async move { self.backend.delete_cache(key.as_key()?.borrow()).await }
    }
}

/// Transactions, export and import, connections.
impl<B> Storage<B> {
    /// Begins a transaction. See [`Transactional::begin`], and [`transact!`](crate::transact), which retries conflicts.
    pub async fn begin(&self) -> Result<B::Transaction>
    where
        B: Transactional,
    {
        self.backend.begin().await
    }

    /// Streams all records out. See [`Exportable::export`].
    pub fn export(&self) -> impl Stream<Item = Result<Record>> + Send
    where
        B: Exportable,
    {
        self.backend.export()
    }

    /// Whether an export is one state of the store. See [`Exportable::exports_snapshot`].
    #[must_use]
    pub fn exports_snapshot(&self) -> bool
    where
        B: Exportable,
    {
        self.backend.exports_snapshot()
    }

    /// Whether it has a place for records of this kind. See [`Exportable::imports`].
    #[must_use]
    pub fn imports(&self, kind: RecordKind) -> bool
    where
        B: Exportable,
    {
        self.backend.imports(kind)
    }

    /// Whether records can be imported while an export is under way. See [`Exportable::imports_while_exporting`].
    #[must_use]
    pub fn imports_while_exporting(&self) -> bool
    where
        B: Exportable,
    {
        self.backend.imports_while_exporting()
    }

    /// Takes a stream of records in, [`IMPORT_CHUNK`] at a time, or fewer if they are large. See [`Exportable::import`].
    ///
    /// # Errors
    ///
    /// The stream's own error, or that of a whole chunk, ends it, whichever comes first. All that the stream gave before its error is
    /// imported, and what was imported stays: the error's outcome is [`Unknown`](Outcome::Unknown) then, and which records failed is not
    /// told. Importing again is harmless; [`migrate::copy`](crate::migrate::copy()) counts what it did.
    pub async fn import(&self, records: impl Stream<Item = Result<Record>> + Send) -> Result<BatchReport>
    where
        B: Exportable,
    {
        let mut records = pin!(records);
        let (mut report, mut offset) = (BatchReport::default(), 0);
        loop {
            let (mut chunk, mut end) = (Chunk::default(), None);
            while end.is_none() && !chunk.is_full(IMPORT_CHUNK) {
                // A stream that is always ready would keep others from their turn.
                consume_budget().await;
                match records.next().await {
                    Some(Ok(record)) => chunk.push(record),
                    Some(Err(error)) => end = Some(Err(error)),
                    None => end = Some(Ok(())),
                }
            }
            let ends =
                |error: Error, offset| if offset > 0 { error.with_outcome(Outcome::Unknown) } else { error };
            if !chunk.records.is_empty() {
                let imported = self.backend.import(&chunk.records).await;
                report.append(offset, imported.map_err(|error| ends(error, offset))?);
                offset += chunk.records.len();
            }
            match end {
                None => {}
                Some(Ok(())) => return Ok(report),
                Some(Err(error)) => return Err(ends(error, offset)),
            }
        }
    }

    /// Counts the pool's connections. See [`Pooled::pool_stats`].
    pub async fn pool_stats(&self) -> Result<PoolStats>
    where
        B: Pooled,
    {
        self.backend.pool_stats().await
    }

    /// Sets the most connections that the pool may hold. See [`Pooled::resize_pool`].
    pub async fn resize_pool(&self, max: u32) -> Result<()>
    where
        B: Pooled,
    {
        self.backend.resize_pool(max).await
    }
}

impl<B: Backend> fmt::Debug for Storage<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Storage({})", self.backend.label())
    }
}
