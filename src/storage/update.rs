//! Updates of one credential that lose no other change.

use std::borrow::Borrow;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::{
    Credential, Error, ErrorKind, IntoKey, Key, Outcome, Result, Storage,
    capability::Conditional,
    layer::{Backoff, later, time_left},
    model::Condition,
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
        change: impl FnMut(Map<String, Value>) -> C + Send,
    ) -> impl Future<Output = Result<Credential, E>> + Send
    where
        B: Conditional,
        C: Future<Output = Result<Map<String, Value>, E>> + Send,
        E: From<Error> + Send,
    {
        let id = id.into_key().map(|id| id.borrow().clone());
        async move { self.update(&id?, change).await }
    }

    async fn update<C, E>(
        &self,
        id: &Key,
        mut change: impl FnMut(Map<String, Value>) -> C + Send,
    ) -> Result<Credential, E>
    where
        B: Conditional,
        C: Future<Output = Result<Map<String, Value>, E>> + Send,
        E: From<Error> + Send,
    {
        let mut backoff = Backoff::until(later(Instant::now(), time_left(self.backend().deadline())));
        loop {
            let (stored, revision) = self.get_credential_with_revision(id).await?;
            let fields = change(stored.fields().clone()).await?;
            if fields == *stored.fields() {
                return Ok(stored);
            }
            let credential = Credential::new(fields)?;
            let error = match self.set_credential_if(id, &credential, Condition::Unchanged(revision)).await {
                Ok(_) => return Ok(credential),
                Err(error) => error,
            };
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
            let merge = |fields: Map<String, Value>| {
                let read = read_as(&fields).map(|(value, known)| (change(value), known));
                async {
                    let (changed, known) = read?;
                    Ok::<_, E>(replace(fields, &known, &changed.await?)?)
                }
            };
            Ok(self.update(&id?, merge).await?.to_typed()?)
        }
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
