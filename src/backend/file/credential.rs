//! `CredentialStore` for `File`.

use std::collections::BTreeSet;

use super::{
    File,
    cache::weight_of_fields,
    work::{FEW, copied, work},
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
        let admitted = self.admit(weight_of_fields(credential.fields())).await?;
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

    async fn get_credentials(&self, ids: &[Key]) -> Result<Found> {
        if ids.len() <= FEW {
            return self.store.reader.credentials(ids);
        }
        let (store, ids) = (self.store.clone(), copied(ids).await);
        work(self.deadline, false, move || store.reader.credentials(&ids)).await
    }

    async fn set_credentials(&self, credentials: &[(Key, Credential)]) -> Result<BatchReport> {
        let credentials = copied(credentials).await;
        let bytes = credentials.iter().map(|(_, credential)| weight_of_fields(credential.fields())).sum();
        self.encode_and_write(
            (credentials.len(), bytes),
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
        let ids = copied(ids).await;
        self.write(move |draft| {
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
