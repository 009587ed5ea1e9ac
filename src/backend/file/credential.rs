//! `CredentialStore` for `File`.

use super::{
    File,
    work::{FEW, copied, work},
};
use crate::{
    BatchReport, Credential, CredentialStore, Found, Key, Result,
    codec::{RecordKey, encode_credential},
};

impl CredentialStore for File {
    async fn get_credential(&self, id: &Key) -> Result<Credential> {
        self.state()?.credential(id)
    }

    async fn set_credential(&self, id: &Key, credential: &Credential) -> Result<()> {
        let (id, credential, encoded) = (id.clone(), credential.clone(), encode_credential(credential));
        self.write(move |draft| {
            draft.put_credential(id, credential, encoded);
            Ok(())
        })
        .await
    }

    async fn delete_credential(&self, id: &Key) -> Result<()> {
        let id = id.clone();
        self.write(move |draft| draft.delete_credential(&id)).await
    }

    async fn list_credentials(&self) -> Result<Vec<Key>> {
        let state = self.snapshot()?;
        work(self.deadline, state.credentials.len() <= FEW, move || {
            let damaged = state.damaged().filter_map(|name| match name {
                RecordKey::Credential(id) => Some(id),
                _ => None,
            });
            let mut ids: Vec<Key> = state.credentials.keys().chain(damaged).cloned().collect();
            ids.sort_unstable();
            Ok(ids)
        })
        .await
    }

    async fn get_credentials(&self, ids: &[Key]) -> Result<Found> {
        if ids.len() <= FEW {
            let state = self.state()?;
            return Ok(Found::collect(ids, |id| state.credential(id)));
        }
        let (state, ids) = (self.snapshot()?, copied(ids).await);
        work(self.deadline, false, move || Ok(Found::collect(&ids, |id| state.credential(id)))).await
    }

    async fn set_credentials(&self, credentials: &[(Key, Credential)]) -> Result<BatchReport> {
        let credentials = copied(credentials).await;
        let encode = |(id, credential)| {
            let encoded = encode_credential(&credential);
            (id, credential, encoded)
        };
        self.encode_and_write(
            credentials.len(),
            move || credentials.into_iter().map(encode).collect::<Vec<_>>(),
            |draft, encoded| {
                let succeeded = encoded.len();
                for (id, credential, encoded) in encoded {
                    draft.put_credential(id, credential, encoded);
                }
                Ok(BatchReport { succeeded, failures: Vec::new() })
            },
        )
        .await
    }

    async fn delete_credentials(&self, ids: &[Key]) -> Result<BatchReport> {
        let ids = copied(ids).await;
        self.write(move |draft| {
            let report = BatchReport::of_deletes(&ids, |id| draft.has_credential(id));
            for id in &ids {
                // An id that is given twice is not found again; the report counts this already.
                drop(draft.delete_credential(id));
            }
            Ok(report)
        })
        .await
    }
}
