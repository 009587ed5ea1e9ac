//! `CredentialStore` for `Git`.

use futures_core::Stream;

use super::Git;
use crate::{
    BatchReport, Credential, CredentialStore, Error, Found, Key, Record, Result, error::Kind,
    history::DocumentKind, model::ListOptions,
};

impl CredentialStore for Git {
    async fn get_credential(&self, id: &Key) -> Result<Credential> {
        self.state()?.credentials.get(id).cloned().ok_or_else(|| Error::not_found(Kind::Credential, id))
    }

    async fn set_credential(&self, id: &Key, credential: &Credential) -> Result<()> {
        let (id, credential) = (id.clone(), credential.clone());
        self.commit("", move |draft| {
            draft.put(Record::Credential { id: id.clone(), credential: credential.clone() })
        })
        .await
    }

    async fn delete_credential(&self, id: &Key) -> Result<()> {
        let id = id.clone();
        self.commit("", move |draft| draft.delete(DocumentKind::Credential, &id)).await
    }

    async fn list_credentials(&self) -> Result<Vec<Key>> {
        Ok(self.state()?.credentials.keys().cloned().collect())
    }

    async fn get_credentials(&self, ids: &[Key]) -> Result<Found<Credential>> {
        let state = self.state()?;
        Ok(Found::collect(ids, |id| {
            state.credentials.get(id).cloned().ok_or_else(|| Error::not_found(Kind::Credential, id))
        }))
    }

    async fn set_credentials(&self, credentials: &[(Key, Credential)]) -> Result<BatchReport> {
        let credentials = credentials.to_vec();
        self.commit("set credentials", move |draft| {
            for (id, credential) in credentials.iter().cloned() {
                draft.put(Record::Credential { id, credential })?;
            }
            Ok(BatchReport { succeeded: credentials.len(), failures: Vec::new() })
        })
        .await
    }

    async fn delete_credentials(&self, ids: &[Key]) -> Result<BatchReport> {
        let ids = ids.to_vec();
        self.commit("delete credentials", move |draft| {
            let report = BatchReport::of_deletes(&ids, |id| draft.state.credentials.contains_key(id));
            for id in &ids {
                // An id that is given twice is not found again; the report counts this already.
                drop(draft.delete(DocumentKind::Credential, id));
            }
            Ok(report)
        })
        .await
    }

    /// A snapshot of the time of the call, as an export.
    fn stream_credentials(
        &self,
        options: ListOptions,
    ) -> impl Stream<Item = Result<(Key, Credential)>> + Send {
        self.stream(options, |state| &state.credentials)
    }
}
