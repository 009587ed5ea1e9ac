//! `CredentialStore` for `File`.

use std::collections::BTreeSet;

use super::{
    File,
    cache::weight_of_fields,
    work::{FEW, SMALL_IN_BATCH, copied, work},
};
use crate::{
    BatchReport, Credential, CredentialStore, Found, Key, Result,
    codec::{RecordKey, encode_credential},
};

impl CredentialStore for File {
    async fn get_credential(&self, id: &Key) -> Result<Credential> {
        self.document(id).await
    }

    async fn set_credential(&self, id: &Key, credential: &Credential) -> Result<()> {
        let admitted = self.admit(1, weight_of_fields(credential.fields())).await?;
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
        if ids.len() <= FEW
            && let Some(found) = self.store.reader.credentials(ids, SMALL_IN_BATCH)?
        {
            return Ok(found);
        }
        let (store, ids) = (self.store.clone(), copied(ids).await);
        let read = move || store.reader.credentials(&ids, usize::MAX).map(Option::unwrap_or_default);
        work(self.deadline, false, read).await
    }

    async fn set_credentials(&self, credentials: &[(Key, Credential)]) -> Result<BatchReport> {
        let bytes = credentials.iter().map(|(_, credential)| weight_of_fields(credential.fields())).sum();
        let admitted = self.admit(credentials.len(), bytes).await?;
        let credentials = copied(credentials).await;
        self.encode_and_write(
            admitted,
            credentials.len(),
            move || {
                let encode = |(id, credential)| (id, encode_credential(&credential));
                credentials.into_iter().map(encode).collect::<Vec<_>>()
            },
            |draft, encoded| {
                let succeeded = encoded.len();
                for (id, encoded) in encoded {
                    draft.put_credential(id, &encoded)?;
                }
                Ok(BatchReport { succeeded, failures: Vec::new() })
            },
        )
        .await
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
}
