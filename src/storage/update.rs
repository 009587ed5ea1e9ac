//! Updates of one credential or config value that lose no other change.

use std::borrow::Borrow;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::{
    ConfigValue, Credential, Error, ErrorKind, IntoKey, Key, Outcome, Record, Result, Storage,
    capability::Conditional,
    layer::{Backoff, later, time_left},
    model::{Condition, Revision},
};

/// Updates. See [`Conditional`].
impl<B> Storage<B> {
    /// Reads one credential, passes its fields to `change`, and stores the fields that this returns, if
    /// nothing else has changed the credential meanwhile. Otherwise it begins again: no change of another
    /// writer is lost. Returns what is stored.
    ///
    /// `change` can run several times, each time with the fields that are stored then. If it returns them as
    /// they were, nothing is written. To refresh a token it is the wrong place: each run would use the token
    /// up.
    ///
    /// # Errors
    ///
    /// The error of `change` ends the update, and nothing is stored. A [`Conflict`](ErrorKind::Conflict)
    /// means that other writers were faster until the handle's [deadline](crate::Backend::deadline). An
    /// error whose outcome is [`Unknown`](Outcome::Unknown) ends the update at once, because the change may
    /// be stored. See [`Conditional::set_if`].
    ///
    /// ```
    /// # use gateway_storage::{Error, Memory, Storage};
    /// # use serde_json::json;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
    /// let storage = Storage::<Memory>::open("memory:").await?;
    /// storage.set_credential("a", json!({ "access_token": "x" })).await?;
    /// let disable = |mut fields: serde_json::Map<_, _>| async {
    ///     fields.insert("disabled".into(), true.into());
    ///     Ok::<_, Error>(fields)
    /// };
    /// let stored = storage.update_credential("a", disable).await?;
    /// assert_eq!(stored, json!({ "access_token": "x", "disabled": true }).try_into()?);
    /// # Ok(()) }
    /// ```
    pub fn update_credential<C, E>(
        &self,
        id: impl IntoKey,
        mut change: impl FnMut(Map<String, Value>) -> C + Send,
    ) -> impl Future<Output = Result<Credential, E>> + Send
    where
        B: Conditional,
        C: Future<Output = Result<Map<String, Value>, E>> + Send,
        E: From<Error> + Send,
    {
        let id = id.into_key().map(|id| id.borrow().clone());
        async move {
            let change = |stored: &Credential| {
                let changed = change(stored.fields().clone());
                async { Ok::<_, E>(Credential::new(changed.await?)?) }
            };
            self.update(&id?, change).await
        }
    }

    async fn update<V, C, E>(&self, key: &Key, mut change: impl FnMut(&V) -> C + Send) -> Result<V, E>
    where
        B: Conditional,
        V: Document,
        C: Future<Output = Result<V, E>> + Send,
        E: From<Error> + Send,
    {
        let mut backoff = Backoff::until(later(Instant::now(), time_left(self.backend().deadline())));
        loop {
            let (stored, revision) = V::read(self, key).await?;
            let changed = change(&stored).await?;
            if changed == stored {
                return Ok(stored);
            }
            let written = self.backend().set_if(&changed.record(key), Condition::Unchanged(revision)).await;
            let Err(error) = written else { return Ok(changed) };
            let may_repeat = error.kind() == ErrorKind::Conflict && error.outcome() == Outcome::NotApplied;
            if !may_repeat || !backoff.pause().await {
                return Err(error.into());
            }
        }
    }

    /// As [`update_credential`](Storage::update_credential), with the credential as a `T`. Fields that `T`
    /// does not have are kept. Returns what is stored.
    ///
    /// A field that `T` serializes before the change and not after it is removed. A field that `T` reads
    /// through a serde `alias` is not among those that it serializes, so it stays beside the new one.
    ///
    /// ```
    /// # use gateway_storage::{Error, Memory, Storage};
    /// # use serde::{Deserialize, Serialize};
    /// # use serde_json::json;
    /// #[derive(Deserialize, Serialize)]
    /// struct Account { project_id: String }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
    /// let storage = Storage::<Memory>::open("memory:").await?;
    /// storage.set_credential("a", json!({ "access_token": "x", "project_id": "p-1" })).await?;
    /// let rename = |mut account: Account| async {
    ///     account.project_id = "p-2".into();
    ///     Ok::<_, Error>(account)
    /// };
    /// storage.update_credential_as("a", rename).await?;
    /// let stored = storage.get_credential("a").await?;
    /// assert_eq!(stored, json!({ "access_token": "x", "project_id": "p-2" }).try_into()?);
    /// # Ok(()) }
    /// ```
    pub fn update_credential_as<T, C, E>(
        &self,
        id: impl IntoKey,
        mut change: impl FnMut(T) -> C + Send,
    ) -> impl Future<Output = Result<T, E>> + Send
    where
        B: Conditional,
        T: Serialize + DeserializeOwned + Send,
        C: Future<Output = Result<T, E>> + Send,
        E: From<Error> + Send,
    {
        let id = id.into_key().map(|id| id.borrow().clone());
        async move {
            let merge = |stored: &Credential| {
                let fields = stored.fields().clone();
                let read = read_as(&fields).map(|(value, known)| (change(value), known));
                async {
                    let (changed, known) = read?;
                    Ok::<_, E>(Credential::new(replace(fields, &known, &changed.await?)?)?)
                }
            };
            Ok(self.update(&id?, merge).await?.to_typed()?)
        }
    }

    /// As [`update_credential`](Storage::update_credential), for a config value: `change` gets the stored
    /// value, and what it returns replaces the whole value. Returns what is stored.
    ///
    /// # Errors
    ///
    /// As [`update_credential`](Storage::update_credential). To change several values at once, or none of
    /// them, use a [plan](crate::ConfigBatch).
    ///
    /// ```
    /// # use gateway_storage::{Error, Memory, Storage};
    /// # use serde_json::{Value, json};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
    /// let storage = Storage::<Memory>::open("memory:").await?;
    /// storage.set_config("models", json!(["a"])).await?;
    /// let add = |mut models: Value| async {
    ///     if let Value::Array(names) = &mut models {
    ///         names.push("b".into());
    ///     }
    ///     Ok::<_, Error>(models)
    /// };
    /// assert_eq!(storage.update_config("models", add).await?.value(), &json!(["a", "b"]));
    /// # Ok(()) }
    /// ```
    pub fn update_config<C, E>(
        &self,
        key: impl IntoKey,
        mut change: impl FnMut(Value) -> C + Send,
    ) -> impl Future<Output = Result<ConfigValue, E>> + Send
    where
        B: Conditional,
        C: Future<Output = Result<Value, E>> + Send,
        E: From<Error> + Send,
    {
        let key = key.into_key().map(|key| key.borrow().clone());
        async move {
            let change = |stored: &ConfigValue| {
                let changed = change(stored.value().clone());
                async { Ok::<_, E>(ConfigValue::new(changed.await?)?) }
            };
            self.update(&key?, change).await
        }
    }

    /// As [`update_config`](Storage::update_config), with the value as a `T`. The changed `T` replaces the
    /// whole value, so fields that `T` does not have are *not* kept. Returns what is stored.
    ///
    /// ```
    /// # use gateway_storage::{Error, Memory, Storage};
    /// # use serde_json::json;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
    /// let storage = Storage::<Memory>::open("memory:").await?;
    /// storage.set_config("retries", json!(3)).await?;
    /// let once_more = |retries: u32| async move { Ok::<_, Error>(retries + 1) };
    /// assert_eq!(storage.update_config_as("retries", once_more).await?, 4);
    /// # Ok(()) }
    /// ```
    pub fn update_config_as<T, C, E>(
        &self,
        key: impl IntoKey,
        mut change: impl FnMut(T) -> C + Send,
    ) -> impl Future<Output = Result<T, E>> + Send
    where
        B: Conditional,
        T: Serialize + DeserializeOwned + Send,
        C: Future<Output = Result<T, E>> + Send,
        E: From<Error> + Send,
    {
        let key = key.into_key().map(|key| key.borrow().clone());
        async move {
            let change = |stored: &ConfigValue| {
                let read = stored.to_typed().map(&mut change);
                async {
                    let changed = ConfigValue::from_typed(&read?.await?)?;
                    // What can't be read back is not stored.
                    changed.to_typed::<T>()?;
                    Ok::<_, E>(changed)
                }
            };
            Ok(self.update(&key?, change).await?.to_typed()?)
        }
    }
}

/// What an update changes.
trait Document: PartialEq + Send + Sync {
    fn read<B: Conditional>(
        storage: &Storage<B>,
        key: &Key,
    ) -> impl Future<Output = Result<(Self, Revision)>> + Send
    where
        Self: Sized;

    fn record(&self, key: &Key) -> Record;
}

impl Document for Credential {
    fn read<B: Conditional>(
        storage: &Storage<B>,
        id: &Key,
    ) -> impl Future<Output = Result<(Self, Revision)>> + Send {
        storage.get_credential_with_revision(id)
    }

    fn record(&self, id: &Key) -> Record {
        Record::Credential { id: id.clone(), credential: self.clone() }
    }
}

impl Document for ConfigValue {
    fn read<B: Conditional>(
        storage: &Storage<B>,
        key: &Key,
    ) -> impl Future<Output = Result<(Self, Revision)>> + Send {
        storage.get_config_with_revision(key)
    }

    fn record(&self, key: &Key) -> Record {
        Record::Config { key: key.clone(), value: self.clone() }
    }
}

/// Reads fields as a `T`. Returns it with the fields that it serializes.
pub(super) fn read_as<T: Serialize + DeserializeOwned>(
    fields: &Map<String, Value>,
) -> Result<(T, Map<String, Value>)> {
    let value: T = Credential::new(fields.clone())?.to_typed()?;
    let known = fields_of(&value)?;
    Ok((value, known))
}

/// Replaces the `known` fields by those of the changed value.
pub(super) fn replace<T: Serialize + DeserializeOwned>(
    mut fields: Map<String, Value>,
    known: &Map<String, Value>,
    changed: &T,
) -> Result<Map<String, Value>> {
    let changed = fields_of(changed)?;
    fields.retain(|name, _| !known.contains_key(name));
    fields.extend(changed);
    // What can't be read back is not stored.
    Credential::new(fields.clone())?.to_typed::<T>()?;
    Ok(fields)
}

fn fields_of<T: Serialize>(value: &T) -> Result<Map<String, Value>> {
    Credential::from_typed(value).map(|credential| credential.fields().clone())
}
