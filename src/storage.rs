//! [`Storage`]: what an application holds.

// With `Send` in the signature, a task can be generic over the backend, whatever type its keys have.
#![expect(clippy::manual_async_fn)]

mod cache;
mod conditional;
mod export;
mod flight;
mod lease;
pub(crate) mod live;
pub(crate) mod refresh;
mod transaction;
mod update;
mod watch;

use std::{borrow::Borrow, collections::BTreeMap, fmt, time::Duration};

pub(crate) use export::Chunk;
pub use export::IMPORT_CHUNK;
use flight::Flights;
use refresh::CLOSE_WAIT;
pub use transaction::StorageTransaction;
pub(crate) use transaction::may_repeat;

use futures_core::Stream;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;

use crate::{
    Backend, BatchItem, BatchReport, CacheEntry, CacheStore, ConfigBatch, ConfigStore, ConfigValue,
    Credential, CredentialStore, Error, Found, IncrementItem, IntoKey, Key, Open, OptionalExt, PoolStats,
    Pooled, Result, StorageStats, Transactional, UsageRecord, UsageStore,
    layer::{Instrument, Layer, Layered, POOL_INTERVAL},
    model::{ListOptions, Totals, Within},
    plan::{Applied, ApplyOptions, AuditEntry, AuditFilter, Plan, Rollback, RollbackOptions},
    scope::{Scope, Scoped},
    wrap::Wrapped,
};

/// A handle to a store, typed by its backend. An application holds it, clones it and passes it around.
///
/// The bounds of each method name the capability that it needs. Calling a method without that capability does
/// not compile, and the compiler's message names the backends that have it:
///
/// ```compile_fail
/// # use gateway_storage::{File, Storage};
/// # async fn f(storage: Storage<File>) {
/// storage.get_cache("models").await; // error: `File` cannot cache; backends that cache: ...
/// # }
/// ```
///
/// A generic application names the capabilities that it needs:
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
/// A key is a [`Key`](crate::Key), or a string that is checked first. The promises and errors of each
/// operation are documented at its trait: [`CredentialStore`], [`ConfigStore`], [`UsageStore`],
/// [`CacheStore`], [`Conditional`](crate::revision::Conditional), [`Leases`](crate::lease::Leases),
/// [`Transactional`], [`ConfigBatch`], [`Exportable`](crate::Exportable) or [`Pooled`], and for all of them at [`Backend`]. A method that takes a string may also fail with
/// [`InvalidKey`](crate::ErrorKind::InvalidKey), one that takes a value with
/// [`TooLarge`](crate::ErrorKind::TooLarge) or [`InvalidValue`](crate::ErrorKind::InvalidValue).
///
/// Clones share the store. Operations need a Tokio runtime with time enabled.
#[derive(Clone)]
pub struct Storage<B> {
    backend: B,
    flights: Flights,
}

/// Opening, layers, health, closing.
impl<B> Storage<B> {
    /// Opens a store from a URL (`file:./data`, a `&str`, `String` or `&String`), from the backend's typed
    /// options, or for `File` and `Git` from a path. With [`one_of!`](crate::one_of) the scheme of the URL
    /// picks the backend. White space around a URL, such as the line feed of a mounted secret, is ignored; a
    /// control character in a URL is an error.
    ///
    /// # Errors
    ///
    /// Those of the backend: see its page.
    pub async fn open<C>(config: C) -> Result<Self>
    where
        B: Open,
        C: TryInto<B::Options>,
        Error: From<C::Error>,
    {
        Ok(Self::new(B::open(config.try_into()?).await?))
    }

    /// Wraps a backend that is already open.
    #[inline]
    pub fn new(backend: B) -> Self {
        Self { backend, flights: Flights::default() }
    }

    /// The backend, for operations that only it has, and for those of your own
    /// [`#[capability]`](macro@crate::capability).
    #[inline]
    pub const fn backend(&self) -> &B {
        &self.backend
    }

    /// Puts a layer around every operation, outside the layers that were added before. The layer receives the
    /// handle's [deadline](Backend::deadline), and uses it unless it was given one of its own.
    #[must_use]
    pub fn layer<L>(self, mut layer: L) -> Storage<Layered<L, B>>
    where
        L: Layer,
        B: Backend,
    {
        layer.put_on(self.backend.deadline());
        Storage { backend: Layered::new(layer, self.backend), flights: self.flights }
    }

    /// Returns a handle to one tenant's records: keys are stored under the prefix `name/`, and lists and
    /// streams have that scope's records only. See [`scope`](crate::scope).
    ///
    /// # Errors
    ///
    /// [`InvalidKey`](crate::ErrorKind::InvalidKey) if the name is no key, has a `/`, or leaves no byte for
    /// keys: it has at most 253 bytes, and fewer in a scope.
    pub fn scoped(&self, name: &str) -> Result<Storage<Scoped<B>>>
    where
        B: Backend,
    {
        let scope = Scope::within(name, self.backend.max_key_bytes())?;
        let flights = self.flights.scoped(scope.prefix());
        Ok(Storage { backend: Wrapped::new(scope, self.backend.clone()), flights })
    }

    /// Reports every operation to `tracing` and `metrics`, and measures the store's recent
    /// [performance](StorageStats::performance): see [`Instrument`].
    #[must_use]
    pub fn instrumented(self) -> Storage<Layered<Instrument, B>>
    where
        B: Backend,
    {
        let instrument = Instrument::new(&self.backend);
        self.layer(instrument)
    }

    /// As [`instrumented`](Storage::instrumented), and updates the pool's gauges every [`POOL_INTERVAL`]. A
    /// task does this until the store is closed or its last handle is dropped. For another interval see
    /// [`Instrument::sample_pool`].
    ///
    /// # Panics
    ///
    /// Panics outside a Tokio runtime.
    #[must_use]
    pub fn instrumented_pool(self) -> Storage<Layered<Instrument, B>>
    where
        B: Pooled,
    {
        let instrument = Instrument::new(&self.backend).sample_pool(&self.backend, POOL_INTERVAL);
        self.layer(instrument)
    }

    /// Returns a handle to the same store whose calls end after `deadline` instead of
    /// [`DEFAULT_DEADLINE`](crate::DEFAULT_DEADLINE). For one call:
    /// `storage.with_deadline(d).get_config("k")`.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self
    where
        B: Backend,
    {
        let mut backend = self.backend.clone();
        backend.set_deadline(deadline);
        Self { backend, flights: self.flights.clone() }
    }

    /// The backend's name: `"file"`, `"memory"`.
    pub fn label(&self) -> &'static str
    where
        B: Backend,
    {
        self.backend.label()
    }

    /// Checks whether the store can serve reads and writes now. See [`Backend::health`].
    pub async fn health(&self) -> Result<()>
    where
        B: Backend,
    {
        self.backend.health().await
    }

    /// Counts the records and describes the store. See [`Backend::stats`].
    pub async fn stats(&self) -> Result<StorageStats>
    where
        B: Backend,
    {
        self.backend.stats().await
    }

    /// Finishes the writes in progress and releases files, locks and connections. Calls on other handles then
    /// return [`Closed`](crate::ErrorKind::Closed). See [`Backend::close`].
    ///
    /// Waits first until the new tokens of running refreshes are stored, at most for
    /// [`CLOSE_WAIT`](crate::refresh::CLOSE_WAIT): see [`refresh_once`](Storage::refresh_once).
    pub async fn close(self) -> Result<()>
    where
        B: Backend,
    {
        // At its end the new tokens that are not stored are lost.
        timeout(CLOSE_WAIT, self.flights.close()).await.unwrap_or_default();
        self.backend.close().await
    }
}

/// Credentials. See [`CredentialStore`].
impl<B> Storage<B> {
    /// Reads one credential. See [`CredentialStore::get_credential`].
    #[inline]
    pub fn get_credential(&self, id: impl IntoKey) -> impl Future<Output = Result<Credential>> + Send
    where
        B: CredentialStore,
    {
        async move { self.backend.get_credential(id.into_key()?.borrow()).await }
    }

    /// Stores one credential: a [`Credential`], or a JSON object. See [`CredentialStore::set_credential`].
    pub fn set_credential<C>(
        &self,
        id: impl IntoKey,
        credential: C,
    ) -> impl Future<Output = Result<()>> + Send
    where
        B: CredentialStore,
        C: TryInto<Credential>,
        Error: From<C::Error>,
    {
        let credential = credential.try_into().map_err(Error::from);
        async move { self.backend.set_credential(id.into_key()?.borrow(), &credential?).await }
    }

    /// Deletes one credential. See [`CredentialStore::delete_credential`].
    pub fn delete_credential(&self, id: impl IntoKey) -> impl Future<Output = Result<()>> + Send
    where
        B: CredentialStore,
    {
        async move { self.backend.delete_credential(id.into_key()?.borrow()).await }
    }

    /// Lists all ids, sorted. See [`CredentialStore::list_credentials`].
    pub async fn list_credentials(&self) -> Result<Vec<Key>>
    where
        B: CredentialStore,
    {
        self.backend.list_credentials().await
    }

    /// Reads many credentials: `&["alice", "bob"]`, `&keys`. An invalid id fails the whole call before it is
    /// sent. See [`CredentialStore::get_credentials`].
    pub fn get_credentials(
        &self,
        ids: impl IntoIterator<Item = impl IntoKey>,
    ) -> impl Future<Output = Result<Found<Credential>>> + Send
    where
        B: CredentialStore,
    {
        let ids = checked(ids);
        async move { self.backend.get_credentials(&ids?).await }
    }

    /// Stores many credentials: pairs of an id and a credential, or references to such pairs. An invalid pair
    /// fails the whole call before it is sent. See [`CredentialStore::set_credentials`].
    ///
    /// ```
    /// # use gateway_storage::{Memory, Storage};
    /// # use serde_json::json;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
    /// let storage = Storage::<Memory>::open("memory:").await?;
    /// let both = [("alice", json!({ "token": "x" })), ("bob", json!({ "token": "y" }))];
    /// assert_eq!(storage.set_credentials(both).await?.complete()?, 2);
    /// assert_eq!(storage.get_credentials(["alice", "bob"]).await?.values.len(), 2);
    /// # Ok(()) }
    /// ```
    pub fn set_credentials(
        &self,
        credentials: impl IntoIterator<Item = impl BatchItem<Credential>>,
    ) -> impl Future<Output = Result<BatchReport>> + Send
    where
        B: CredentialStore,
    {
        let credentials: Result<Vec<_>> = credentials.into_iter().map(BatchItem::into_item).collect();
        async move { self.backend.set_credentials(&credentials?).await }
    }

    /// Deletes many credentials: `&["alice", "bob"]`, `&keys`. An invalid id fails the whole call before it
    /// is sent. See [`CredentialStore::delete_credentials`].
    pub fn delete_credentials(
        &self,
        ids: impl IntoIterator<Item = impl IntoKey>,
    ) -> impl Future<Output = Result<BatchReport>> + Send
    where
        B: CredentialStore,
    {
        let ids = checked(ids);
        async move { self.backend.delete_credentials(&ids?).await }
    }

    /// Streams credentials with their ids, sorted by id. See [`CredentialStore::stream_credentials`].
    pub fn stream_credentials(
        &self,
        options: ListOptions,
    ) -> impl Stream<Item = Result<(Key, Credential)>> + Send
    where
        B: CredentialStore,
    {
        self.backend.stream_credentials(options)
    }

    /// Reads one credential and deserializes it.
    ///
    /// # Errors
    ///
    /// [`InvalidValue`](crate::ErrorKind::InvalidValue) if it does not fit `T`; [`Error::path`] says which
    /// field.
    pub async fn get_credential_as<T: DeserializeOwned>(&self, id: impl IntoKey) -> Result<T>
    where
        B: CredentialStore,
    {
        self.get_credential(id).await?.to_typed()
    }

    /// Serializes a value and stores it as one credential, and replaces all its fields. To keep fields that
    /// `T` does not have, use [`update_credential_as`](Storage::update_credential_as).
    pub async fn set_credential_as<T: Serialize + ?Sized>(&self, id: impl IntoKey, value: &T) -> Result<()>
    where
        B: CredentialStore,
    {
        let credential = Credential::from_typed(value)?;
        self.set_credential(id, credential).await
    }
}

/// Configuration. See [`ConfigStore`].
impl<B> Storage<B> {
    /// Reads one value. See [`ConfigStore::get_config`].
    #[inline]
    pub fn get_config(&self, key: impl IntoKey) -> impl Future<Output = Result<ConfigValue>> + Send
    where
        B: ConfigStore,
    {
        async move { self.backend.get_config(key.into_key()?.borrow()).await }
    }

    /// Stores one value: a [`ConfigValue`], or JSON. See [`ConfigStore::set_config`].
    pub fn set_config<V>(&self, key: impl IntoKey, value: V) -> impl Future<Output = Result<()>> + Send
    where
        B: ConfigStore,
        V: TryInto<ConfigValue>,
        Error: From<V::Error>,
    {
        let value = value.try_into().map_err(Error::from);
        async move { self.backend.set_config(key.into_key()?.borrow(), &value?).await }
    }

    /// Deletes one value. See [`ConfigStore::delete_config`].
    pub fn delete_config(&self, key: impl IntoKey) -> impl Future<Output = Result<()>> + Send
    where
        B: ConfigStore,
    {
        async move { self.backend.delete_config(key.into_key()?.borrow()).await }
    }

    /// Reads all values, sorted by key. See [`ConfigStore::list_configs`].
    pub async fn list_configs(&self) -> Result<BTreeMap<Key, ConfigValue>>
    where
        B: ConfigStore,
    {
        self.backend.list_configs().await
    }

    /// Streams values with their keys, sorted by key. See [`ConfigStore::stream_configs`].
    pub fn stream_configs(
        &self,
        options: ListOptions,
    ) -> impl Stream<Item = Result<(Key, ConfigValue)>> + Send
    where
        B: ConfigStore,
    {
        self.backend.stream_configs(options)
    }

    /// Reads many values: `&["retries", "models"]`, `&keys`. An invalid key fails the whole call before it is
    /// sent. See [`ConfigStore::get_configs`].
    pub fn get_configs(
        &self,
        keys: impl IntoIterator<Item = impl IntoKey>,
    ) -> impl Future<Output = Result<Found<ConfigValue>>> + Send
    where
        B: ConfigStore,
    {
        let keys = checked(keys);
        async move { self.backend.get_configs(&keys?).await }
    }

    /// Stores many values: pairs of a key and a value, or references to such pairs. An invalid pair fails the
    /// whole call before it is sent. See [`ConfigStore::set_configs`].
    ///
    /// ```
    /// # use gateway_storage::{Memory, Storage};
    /// # use serde_json::json;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
    /// let storage = Storage::<Memory>::open("memory:").await?;
    /// storage.set_configs([("retries", json!(3)), ("models", json!(["a", "b"]))]).await?.complete()?;
    /// assert_eq!(storage.get_configs(["models", "retries"]).await?.complete()?.len(), 2);
    /// # Ok(()) }
    /// ```
    pub fn set_configs(
        &self,
        values: impl IntoIterator<Item = impl BatchItem<ConfigValue>>,
    ) -> impl Future<Output = Result<BatchReport>> + Send
    where
        B: ConfigStore,
    {
        let values: Result<Vec<_>> = values.into_iter().map(BatchItem::into_item).collect();
        async move { self.backend.set_configs(&values?).await }
    }

    /// Reads one value and deserializes it.
    ///
    /// # Errors
    ///
    /// [`InvalidValue`](crate::ErrorKind::InvalidValue) if it does not fit `T`; [`Error::path`] says which
    /// part.
    pub async fn get_config_as<T: DeserializeOwned>(&self, key: impl IntoKey) -> Result<T>
    where
        B: ConfigStore,
    {
        self.get_config(key).await?.to_typed()
    }

    /// As [`get_config_as`](Storage::get_config_as), and the default if there is no value under this key. A
    /// value that does not fit `T` is an error and not the default.
    ///
    /// ```
    /// # use gateway_storage::{Memory, Storage};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
    /// let storage = Storage::<Memory>::open("memory:").await?;
    /// assert_eq!(storage.get_config_or("retries", 3).await?, 3);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`get_config_as`](Storage::get_config_as) but [`NotFound`](crate::ErrorKind::NotFound).
    pub async fn get_config_or<T: DeserializeOwned>(&self, key: impl IntoKey, default: T) -> Result<T>
    where
        B: ConfigStore,
    {
        Ok(self.get_config_as(key).await.optional()?.unwrap_or(default))
    }

    /// Serializes a value and stores it.
    pub async fn set_config_as<T: Serialize + ?Sized>(&self, key: impl IntoKey, value: &T) -> Result<()>
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
    /// # use gateway_storage::{plan::{Applied, ApplyOptions, Plan}, Memory, Storage};
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
        key: impl IntoKey,
        plan: &Plan,
        options: &ApplyOptions,
    ) -> impl Future<Output = Result<Applied>> + Send
    where
        B: ConfigBatch,
    {
        async move { self.backend.apply_plan(key.into_key()?.borrow(), plan, options).await }
    }

    /// Restores the values that a plan replaced. See [`ConfigBatch::rollback_plan`].
    pub fn rollback_plan(
        &self,
        key: impl IntoKey,
        options: &RollbackOptions,
    ) -> impl Future<Output = Result<Rollback>> + Send
    where
        B: ConfigBatch,
    {
        async move { self.backend.rollback_plan(key.into_key()?.borrow(), options).await }
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
        key: impl IntoKey,
        field: impl IntoKey,
        delta: i64,
    ) -> impl Future<Output = Result<i64>> + Send
    where
        B: UsageStore,
    {
        async move {
            self.backend.increment_usage(key.into_key()?.borrow(), field.into_key()?.borrow(), delta).await
        }
    }

    /// Adds to one counter unless its total would then exceed the limit. See
    /// [`UsageStore::increment_within`].
    ///
    /// ```
    /// # use gateway_storage::{Memory, Storage, usage::Within};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
    /// let storage = Storage::<Memory>::open("memory:").await?;
    /// assert_eq!(storage.increment_within("alice", "tokens", 80, 100).await?, Within::Counted(80));
    /// assert_eq!(storage.increment_within("alice", "tokens", 30, 100).await?, Within::Refused(80));
    /// # Ok(()) }
    /// ```
    pub fn increment_within(
        &self,
        key: impl IntoKey,
        field: impl IntoKey,
        delta: i64,
        limit: i64,
    ) -> impl Future<Output = Result<Within>> + Send
    where
        B: UsageStore,
    {
        async move {
            let (key, field) = (key.into_key()?, field.into_key()?);
            self.backend.increment_within(key.borrow(), field.borrow(), delta, limit).await
        }
    }

    /// Adds to many counters, and returns the new total of each: a slice of
    /// [`Increment`](crate::Increment)s, or of tuples. An invalid key fails the whole call before it is sent.
    /// See [`UsageStore::increment_many`].
    ///
    /// ```
    /// # use gateway_storage::{Memory, Storage};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
    /// let storage = Storage::<Memory>::open("memory:").await?;
    /// let counts = [("alice", "requests", 1), ("alice", "tokens", 250)];
    /// assert_eq!(storage.increment_many(&counts).await?.complete()?, [1, 250]);
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn increment_many<I: IncrementItem>(
        &self,
        increments: &[I],
    ) -> impl Future<Output = Result<Totals>> + Send
    where
        B: UsageStore,
    {
        let increments = I::checked(increments);
        async move {
            // They are borrowed, because the future would store a moved value twice.
            let increments = increments.as_ref().map_err(Error::clone)?;
            self.backend.increment_many(increments.borrow()).await
        }
    }

    /// Reads one record. See [`UsageStore::get_usage`].
    pub fn get_usage(&self, key: impl IntoKey) -> impl Future<Output = Result<UsageRecord>> + Send
    where
        B: UsageStore,
    {
        async move { self.backend.get_usage(key.into_key()?.borrow()).await }
    }

    /// Reads one counter, which is 0 if it is missing. See [`UsageStore::get_counter`].
    pub fn get_counter(
        &self,
        key: impl IntoKey,
        field: impl IntoKey,
    ) -> impl Future<Output = Result<i64>> + Send
    where
        B: UsageStore,
    {
        async move { self.backend.get_counter(key.into_key()?.borrow(), field.into_key()?.borrow()).await }
    }

    /// Reads many records: `&["alice", "bob"]`, `&keys`. An invalid key fails the whole call before it is
    /// sent. See [`UsageStore::get_usages`].
    pub fn get_usages(
        &self,
        keys: impl IntoIterator<Item = impl IntoKey>,
    ) -> impl Future<Output = Result<Found<UsageRecord>>> + Send
    where
        B: UsageStore,
    {
        let keys = checked(keys);
        async move { self.backend.get_usages(&keys?).await }
    }

    /// Deletes one record with all its counters. See [`UsageStore::reset_usage`].
    pub fn reset_usage(&self, key: impl IntoKey) -> impl Future<Output = Result<()>> + Send
    where
        B: UsageStore,
    {
        async move { self.backend.reset_usage(key.into_key()?.borrow()).await }
    }

    /// Deletes the records whose keys begin with a prefix, and returns their number. See
    /// [`UsageStore::reset_usage_prefix`].
    pub fn reset_usage_prefix(&self, prefix: impl IntoKey) -> impl Future<Output = Result<u64>> + Send
    where
        B: UsageStore,
    {
        async move { self.backend.reset_usage_prefix(prefix.into_key()?.borrow()).await }
    }

    /// Streams records with their keys, sorted by key. See [`UsageStore::stream_usage`].
    pub fn stream_usage(&self, options: ListOptions) -> impl Stream<Item = Result<(Key, UsageRecord)>> + Send
    where
        B: UsageStore,
    {
        self.backend.stream_usage(options)
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
    pub fn get_cache(&self, key: impl IntoKey) -> impl Future<Output = Result<Vec<u8>>> + Send
    where
        B: CacheStore,
    {
        async move { self.backend.get_cache(key.into_key()?.borrow()).await }
    }

    /// Reads one value and the time that it has left. See [`CacheStore::get_cache_entry`].
    pub fn get_cache_entry(&self, key: impl IntoKey) -> impl Future<Output = Result<CacheEntry>> + Send
    where
        B: CacheStore,
    {
        async move { self.backend.get_cache_entry(key.into_key()?.borrow()).await }
    }

    /// Stores one value for the time `ttl`. See [`CacheStore::set_cache`].
    pub fn set_cache(
        &self,
        key: impl IntoKey,
        value: impl AsRef<[u8]> + Send,
        ttl: Duration,
    ) -> impl Future<Output = Result<()>> + Send
    where
        B: CacheStore,
    {
        async move { self.backend.set_cache(key.into_key()?.borrow(), value.as_ref(), ttl).await }
    }

    /// Stores one value for the time `ttl` if there is none, and returns whether it was stored. See
    /// [`CacheStore::set_cache_if_absent`].
    pub fn set_cache_if_absent(
        &self,
        key: impl IntoKey,
        value: impl AsRef<[u8]> + Send,
        ttl: Duration,
    ) -> impl Future<Output = Result<bool>> + Send
    where
        B: CacheStore,
    {
        async move { self.backend.set_cache_if_absent(key.into_key()?.borrow(), value.as_ref(), ttl).await }
    }

    /// Reads many values: `&["models", "prices"]`, `&keys`. An invalid key fails the whole call before it is
    /// sent. See [`CacheStore::get_cache_many`].
    pub fn get_cache_many(
        &self,
        keys: impl IntoIterator<Item = impl IntoKey>,
    ) -> impl Future<Output = Result<Found<Vec<u8>>>> + Send
    where
        B: CacheStore,
    {
        let keys = checked(keys);
        async move { self.backend.get_cache_many(&keys?).await }
    }

    /// Stores many values for the time `ttl`: pairs of a key and bytes. An invalid key fails the whole call
    /// before it is sent. See [`CacheStore::set_cache_many`].
    pub fn set_cache_many(
        &self,
        values: impl IntoIterator<Item = (impl IntoKey, impl Into<Vec<u8>>)>,
        ttl: Duration,
    ) -> impl Future<Output = Result<BatchReport>> + Send
    where
        B: CacheStore,
    {
        let values =
            values.into_iter().map(|(key, value)| Ok((key.into_key()?.borrow().clone(), value.into())));
        let values: Result<Vec<(Key, Vec<u8>)>> = values.collect();
        async move { self.backend.set_cache_many(&values?, ttl).await }
    }

    /// Deletes one value. See [`CacheStore::delete_cache`].
    pub fn delete_cache(&self, key: impl IntoKey) -> impl Future<Output = Result<()>> + Send
    where
        B: CacheStore,
    {
        async move { self.backend.delete_cache(key.into_key()?.borrow()).await }
    }
}

/// Transactions, connections.
impl<B> Storage<B> {
    /// Begins a transaction. See [`Transactional::begin`]; [`transact!`](crate::transact) also retries
    /// conflicts.
    pub async fn begin(&self) -> Result<StorageTransaction<B::Transaction>>
    where
        B: Transactional,
    {
        self.backend.begin().await.map(StorageTransaction::new)
    }

    /// Counts the pool's connections. See [`Pooled::pool_stats`].
    pub async fn pool_stats(&self) -> Result<PoolStats>
    where
        B: Pooled,
    {
        self.backend.pool_stats().await
    }

    /// Sets the maximum number of connections in the pool. See [`Pooled::resize_pool`].
    pub async fn resize_pool(&self, max: u32) -> Result<()>
    where
        B: Pooled,
    {
        self.backend.resize_pool(max).await
    }
}

/// The keys of a batch.
fn checked(keys: impl IntoIterator<Item = impl IntoKey>) -> Result<Vec<Key>> {
    keys.into_iter().map(|key| Ok(key.into_key()?.borrow().clone())).collect()
}

impl<B: Backend> fmt::Debug for Storage<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Storage({})", self.backend.label())
    }
}
