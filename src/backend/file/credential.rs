//! `CredentialStore` for `File`.

use std::collections::BTreeSet;

use futures_core::Stream;

use super::{File, document::Document, work::copied};
use crate::{
    BatchReport, Credential, CredentialStore, Found, Key, Result,
    codec::{RecordKey, encode_credential},
    model::ListOptions,
};

impl CredentialStore for File {
    async fn get_credential(&self, id: &Key) -> Result<Credential> {
        self.document(id).await
    }

    async fn set_credential(&self, id: &Key, credential: &Credential) -> Result<()> {
        let admitted = self.admit(1, credential.weight()).await?;
        let (id, encoded) = (id.clone(), encode_credential(credential));
        self.write_admitted(admitted, move |draft| draft.put_credential(id, &encoded)).await
    }

    async fn delete_credential(&self, id: &Key) -> Result<()> {
        let id = id.clone();
        self.write(move |draft| draft.delete_credential(&id)).await
    }

    async fn list_credentials(&self) -> Result<Vec<Key>> {
        self.read(|snapshot| {
            snapshot.records(RecordKey::credentials())?.map(|stored| stored?.key()).collect()
        })
        .await
    }

    async fn get_credentials(&self, ids: &[Key]) -> Result<Found<Credential>> {
        self.documents(ids).await
    }

    async fn set_credentials(&self, credentials: &[(Key, Credential)]) -> Result<BatchReport> {
        self.set_documents(credentials).await
    }

    async fn delete_credentials(&self, ids: &[Key]) -> Result<BatchReport> {
        let admitted = self.admit(ids.len(), 0).await?;
        let ids = copied(ids).await;
        self.write_admitted(admitted, move |draft| {
            let mut existing = BTreeSet::new();
            for id in &ids {
                if draft.has_credential(id)? {
                    existing.insert(id);
                }
            }
            for id in &existing {
                draft.delete_credential(id)?;
            }
            Ok(BatchReport::of_deletes(&ids, |id| existing.contains(id)))
        })
        .await
    }

    /// Each page is one state of the store. With the key of an error in
    /// [`after`](crate::list::ListOptions::after), another stream goes on behind the damaged record.
    fn stream_credentials(
        &self,
        options: ListOptions,
    ) -> impl Stream<Item = Result<(Key, Credential)>> + Send {
        self.stream(options)
    }
}
