//! [`StorageTransaction`]: a transaction with the methods of [`Storage`](crate::Storage).

use std::borrow::Borrow;

use futures_util::FutureExt;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::update::{read_as, replace};
use crate::{
    ConfigValue, Credential, Error, ErrorKind, IntoKey, Key, OptionalExt, Outcome, Result, Transaction,
};

/// Changes that become visible together at [`commit`](StorageTransaction::commit), or never.
///
/// [`Storage::begin`](crate::Storage::begin) begins one, and [`transact!`](crate::transact) repeats one after
/// a conflict. Dropping it rolls it back. Its methods take what those of [`Storage`](crate::Storage) take.
/// The promises and errors of each operation are documented at [`Transaction`] and
/// [`Transactional::begin`](crate::Transactional::begin).
///
/// ```
/// # use gateway_storage::{Memory, Storage};
/// # use serde_json::json;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
/// let storage = Storage::<Memory>::open("memory:").await?;
/// let mut tx = storage.begin().await?;
/// let used: u32 = tx.get_config_or("used", 0).await?;
/// tx.set_config_as("used", &(used + 1)).await?;
/// tx.set_credential("alice", json!({ "access_token": "x" })).await?;
/// tx.commit().await?;
/// assert_eq!(storage.get_config_as::<u32>("used").await?, 1);
/// # Ok(()) }
/// ```
///
/// An error of the server other than [`NotFound`](ErrorKind::NotFound) ends it: `Postgres` and `MongoDb` then
/// fail every later call, and the commit.
#[derive(Debug)]
pub struct StorageTransaction<T> {
    inner: T,
    /// Whether the last call failed so that a new attempt may succeed. A call can fail at its key or value.
    may_repeat: bool,
}

/// Whether a new attempt may succeed where one failed with this error, and changed nothing.
pub(crate) fn may_repeat(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unavailable)
        && error.outcome() == Outcome::NotApplied
        && error.is_retryable()
}

fn note<R>(to: &mut bool, result: Result<R>) -> Result<R> {
    *to = result.as_ref().is_err_and(may_repeat);
    result
}

/// The transaction inside, and its end.
impl<T> StorageTransaction<T> {
    #[inline]
    pub(super) const fn new(inner: T) -> Self {
        Self { inner, may_repeat: false }
    }

    #[inline]
    pub(crate) const fn may_repeat(&self) -> bool {
        self.may_repeat
    }

    /// The backend's transaction, for operations that only it has, and for those of your own
    /// [`#[capability]`](macro@crate::capability). Pass their results to [`track`](StorageTransaction::track).
    #[inline]
    pub const fn inner_mut(&mut self) -> &mut T {
        &mut self.inner
    }

    /// Returns the backend's transaction, which goes on.
    #[inline]
    #[must_use]
    pub fn into_inner(self) -> T {
        self.inner
    }

    /// Returns this result, and takes it for that of the transaction's last call. The methods of this type do
    /// so themselves. After a call on [`inner_mut`](StorageTransaction::inner_mut) that conflicts,
    /// [`transact!`](crate::transact) repeats its block only if the result was tracked.
    pub fn track<R>(&mut self, result: Result<R>) -> Result<R> {
        note(&mut self.may_repeat, result)
    }

    /// Makes all changes visible and durable in one step. See [`Transaction::commit`].
    pub async fn commit(self) -> Result<()>
    where
        T: Transaction,
    {
        self.inner.commit().await
    }

    /// Discards all changes. See [`Transaction::rollback`].
    pub async fn rollback(self) -> Result<()>
    where
        T: Transaction,
    {
        self.inner.rollback().await
    }
}

/// Credentials.
impl<T: Transaction> StorageTransaction<T> {
    /// Reads one credential. See [`Transaction::get_credential`].
    #[inline]
    pub fn get_credential(&mut self, id: impl IntoKey) -> impl Future<Output = Result<Credential>> + Send {
        async move {
            let id = self.track(id.into_key())?;
            Transaction::get_credential(self, id.borrow()).await
        }
    }

    /// Stores one credential: a [`Credential`], or a JSON object. See [`Transaction::set_credential`].
    pub fn set_credential<C>(
        &mut self,
        id: impl IntoKey,
        credential: C,
    ) -> impl Future<Output = Result<()>> + Send
    where
        C: TryInto<Credential>,
        Error: From<C::Error>,
    {
        let credential = credential.try_into().map_err(Error::from);
        async move {
            let id = self.track(id.into_key())?;
            let credential = self.track(credential)?;
            Transaction::set_credential(self, id.borrow(), &credential).await
        }
    }

    /// Deletes one credential. See [`Transaction::delete_credential`].
    pub fn delete_credential(&mut self, id: impl IntoKey) -> impl Future<Output = Result<()>> + Send {
        async move {
            let id = self.track(id.into_key())?;
            Transaction::delete_credential(self, id.borrow()).await
        }
    }

    /// Reads one credential and deserializes it.
    ///
    /// # Errors
    ///
    /// [`InvalidValue`](ErrorKind::InvalidValue) if it does not fit `V`; [`Error::path`] says which field.
    pub async fn get_credential_as<V: DeserializeOwned>(&mut self, id: impl IntoKey) -> Result<V> {
        self.get_credential(id).await?.to_typed()
    }

    /// Serializes a value and stores it as one credential, and replaces all its fields. To keep fields that
    /// `V` does not have, use [`update_credential_as`](StorageTransaction::update_credential_as).
    pub async fn set_credential_as<V: Serialize + ?Sized>(
        &mut self,
        id: impl IntoKey,
        value: &V,
    ) -> Result<()> {
        let credential = self.track(Credential::from_typed(value))?;
        self.set_credential(id, credential).await
    }

    /// Reads one credential, passes its fields to `change`, and stores the fields that this returns, unless
    /// they are as they were. Returns what is stored.
    ///
    /// # Errors
    ///
    /// The error of `change`, and nothing is written.
    pub fn update_credential<C, E>(
        &mut self,
        id: impl IntoKey,
        change: impl FnOnce(Map<String, Value>) -> C + Send,
    ) -> impl Future<Output = Result<Credential, E>> + Send
    where
        C: Future<Output = Result<Map<String, Value>, E>> + Send,
        E: From<Error> + Send,
    {
        async move {
            let id = self.track(id.into_key())?;
            let stored = Transaction::get_credential(self, id.borrow()).await?;
            let fields = change(stored.fields().clone()).await?;
            if fields == *stored.fields() {
                return Ok(stored);
            }
            let credential = Credential::new(fields)?;
            Transaction::set_credential(self, id.borrow(), &credential).await?;
            Ok(credential)
        }
    }

    /// As [`update_credential`](StorageTransaction::update_credential), with the credential as a `V`. Fields
    /// that `V` does not have are kept, as those of
    /// [`Storage::update_credential_as`](crate::Storage::update_credential_as). Returns what is stored.
    pub fn update_credential_as<V, C, E>(
        &mut self,
        id: impl IntoKey,
        change: impl FnOnce(V) -> C + Send,
    ) -> impl Future<Output = Result<V, E>> + Send
    where
        V: Serialize + DeserializeOwned + Send,
        C: Future<Output = Result<V, E>> + Send,
        E: From<Error> + Send,
    {
        async move {
            let merge = |fields: Map<String, Value>| async move {
                let (value, known) = read_as(&fields)?;
                let changed = change(value).await?;
                Ok::<_, E>(replace(fields, &known, &changed)?)
            };
            Ok(self.update_credential(id, merge).await?.to_typed()?)
        }
    }
}

/// Configuration.
impl<T: Transaction> StorageTransaction<T> {
    /// Reads one value. See [`Transaction::get_config`].
    #[inline]
    pub fn get_config(&mut self, key: impl IntoKey) -> impl Future<Output = Result<ConfigValue>> + Send {
        async move {
            let key = self.track(key.into_key())?;
            Transaction::get_config(self, key.borrow()).await
        }
    }

    /// Stores one value: a [`ConfigValue`], or JSON. See [`Transaction::set_config`].
    pub fn set_config<V>(&mut self, key: impl IntoKey, value: V) -> impl Future<Output = Result<()>> + Send
    where
        V: TryInto<ConfigValue>,
        Error: From<V::Error>,
    {
        let value = value.try_into().map_err(Error::from);
        async move {
            let key = self.track(key.into_key())?;
            let value = self.track(value)?;
            Transaction::set_config(self, key.borrow(), &value).await
        }
    }

    /// Deletes one value. See [`Transaction::delete_config`].
    pub fn delete_config(&mut self, key: impl IntoKey) -> impl Future<Output = Result<()>> + Send {
        async move {
            let key = self.track(key.into_key())?;
            Transaction::delete_config(self, key.borrow()).await
        }
    }

    /// Reads one value and deserializes it.
    ///
    /// # Errors
    ///
    /// [`InvalidValue`](ErrorKind::InvalidValue) if it does not fit `V`; [`Error::path`] says which part.
    pub async fn get_config_as<V: DeserializeOwned>(&mut self, key: impl IntoKey) -> Result<V> {
        self.get_config(key).await?.to_typed()
    }

    /// Reads one value and deserializes it. Returns `default` if there is none, and every other error.
    pub async fn get_config_or<V: DeserializeOwned>(&mut self, key: impl IntoKey, default: V) -> Result<V> {
        Ok(self.get_config_as(key).await.optional()?.unwrap_or(default))
    }

    /// Serializes a value and stores it.
    pub async fn set_config_as<V: Serialize + ?Sized>(&mut self, key: impl IntoKey, value: &V) -> Result<()> {
        let value = self.track(ConfigValue::from_typed(value))?;
        self.set_config(key, value).await
    }
}

/// For functions that are generic over the transaction. Each result is [tracked](StorageTransaction::track).
///
/// The methods map the inner future, because an `async` block would store it twice.
#[deny(clippy::missing_trait_methods)]
impl<T: Transaction> Transaction for StorageTransaction<T> {
    #[inline]
    fn get_credential(&mut self, id: &Key) -> impl Future<Output = Result<Credential>> + Send {
        let Self { inner, may_repeat } = self;
        inner.get_credential(id).map(|result| note(may_repeat, result))
    }

    #[inline]
    fn set_credential(
        &mut self,
        id: &Key,
        credential: &Credential,
    ) -> impl Future<Output = Result<()>> + Send {
        let Self { inner, may_repeat } = self;
        inner.set_credential(id, credential).map(|result| note(may_repeat, result))
    }

    #[inline]
    fn delete_credential(&mut self, id: &Key) -> impl Future<Output = Result<()>> + Send {
        let Self { inner, may_repeat } = self;
        inner.delete_credential(id).map(|result| note(may_repeat, result))
    }

    #[inline]
    fn get_config(&mut self, key: &Key) -> impl Future<Output = Result<ConfigValue>> + Send {
        let Self { inner, may_repeat } = self;
        inner.get_config(key).map(|result| note(may_repeat, result))
    }

    #[inline]
    fn set_config(&mut self, key: &Key, value: &ConfigValue) -> impl Future<Output = Result<()>> + Send {
        let Self { inner, may_repeat } = self;
        inner.set_config(key, value).map(|result| note(may_repeat, result))
    }

    #[inline]
    fn delete_config(&mut self, key: &Key) -> impl Future<Output = Result<()>> + Send {
        let Self { inner, may_repeat } = self;
        inner.delete_config(key).map(|result| note(may_repeat, result))
    }

    #[inline]
    fn commit(self) -> impl Future<Output = Result<()>> + Send {
        self.inner.commit()
    }

    #[inline]
    fn rollback(self) -> impl Future<Output = Result<()>> + Send {
        self.inner.rollback()
    }
}
