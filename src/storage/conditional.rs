//! Conditional writes of credentials and config values.

use std::borrow::Borrow;

use crate::{
    ConfigValue, Credential, Error, ErrorKind, IntoKey, Record, Result, Storage,
    capability::Conditional,
    history::DocumentKind,
    model::{Condition, Revision},
};

/// Conditional writes. See [`Conditional`].
impl<B> Storage<B> {
    /// Reads one credential and its revision. See [`Conditional::get_with_revision`].
    pub fn get_credential_with_revision(
        &self,
        id: impl IntoKey,
    ) -> impl Future<Output = Result<(Credential, Revision)>> + Send
    where
        B: Conditional,
    {
        async move {
            let id = id.into_key()?;
            match self.backend().get_with_revision(DocumentKind::Credential, id.borrow()).await? {
                (Record::Credential { credential, .. }, revision) => Ok((credential, revision)),
                (other, _) => Err(wrong_kind(&other)),
            }
        }
    }

    /// Stores one credential if the condition holds: a [`Credential`], or a JSON object. Returns its new
    /// revision. See [`Conditional::set_if`].
    ///
    /// ```
    /// # use gateway_storage::{ErrorKind, Memory, Storage, revision::Condition::{Absent, Unchanged}};
    /// # use serde_json::json;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
    /// let storage = Storage::<Memory>::open("memory:").await?;
    /// let first = storage.set_credential_if("a", json!({ "token": 1 }), Absent).await?;
    /// storage.set_credential_if("a", json!({ "token": 2 }), Unchanged(first)).await?;
    /// let late = storage.set_credential_if("a", json!({ "token": 3 }), Unchanged(first)).await;
    /// let error = late.unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Conflict);
    /// # Ok(()) }
    /// ```
    pub fn set_credential_if<C>(
        &self,
        id: impl IntoKey,
        credential: C,
        condition: Condition,
    ) -> impl Future<Output = Result<Revision>> + Send
    where
        B: Conditional,
        C: TryInto<Credential>,
        Error: From<C::Error>,
    {
        let credential = credential.try_into().map_err(Error::from);
        async move {
            let id = id.into_key()?.borrow().clone();
            self.backend().set_if(&Record::Credential { id, credential: credential? }, condition).await
        }
    }

    /// Deletes one credential if it has this revision. See [`Conditional::delete_if`].
    pub fn delete_credential_if(
        &self,
        id: impl IntoKey,
        revision: Revision,
    ) -> impl Future<Output = Result<()>> + Send
    where
        B: Conditional,
    {
        async move { self.backend().delete_if(DocumentKind::Credential, id.into_key()?.borrow(), revision).await }
    }

    /// Reads one config value and its revision. See [`Conditional::get_with_revision`].
    pub fn get_config_with_revision(
        &self,
        key: impl IntoKey,
    ) -> impl Future<Output = Result<(ConfigValue, Revision)>> + Send
    where
        B: Conditional,
    {
        async move {
            let key = key.into_key()?;
            match self.backend().get_with_revision(DocumentKind::Config, key.borrow()).await? {
                (Record::Config { value, .. }, revision) => Ok((value, revision)),
                (other, _) => Err(wrong_kind(&other)),
            }
        }
    }

    /// Stores one config value if the condition holds: a [`ConfigValue`], or JSON. Returns its new revision.
    /// See [`Conditional::set_if`].
    pub fn set_config_if<V>(
        &self,
        key: impl IntoKey,
        value: V,
        condition: Condition,
    ) -> impl Future<Output = Result<Revision>> + Send
    where
        B: Conditional,
        V: TryInto<ConfigValue>,
        Error: From<V::Error>,
    {
        let value = value.try_into().map_err(Error::from);
        async move {
            let key = key.into_key()?.borrow().clone();
            self.backend().set_if(&Record::Config { key, value: value? }, condition).await
        }
    }

    /// Deletes one config value if it has this revision. See [`Conditional::delete_if`].
    pub fn delete_config_if(
        &self,
        key: impl IntoKey,
        revision: Revision,
    ) -> impl Future<Output = Result<()>> + Send
    where
        B: Conditional,
    {
        async move { self.backend().delete_if(DocumentKind::Config, key.into_key()?.borrow(), revision).await }
    }
}

/// The error for a backend that returns another kind of record than it was asked for.
#[cold]
fn wrong_kind(record: &Record) -> Error {
    Error::new(ErrorKind::Internal, "the backend returned a record of another kind").with_key(record.key())
}
