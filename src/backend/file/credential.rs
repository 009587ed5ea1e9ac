//! Credentials.

use super::File;
use crate::{
    BatchReport, Credential, CredentialStore, Error, Found, Key, Result, codec::encode_credential,
    error::Kind,
};

impl CredentialStore for File {
    async fn get_credential(&self, id: &Key) -> Result<Credential> {
        self.state()?.credentials.get(id).cloned().ok_or_else(|| Error::not_found(Kind::Credential, id))
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
        let mut ids: Vec<Key> = self.state()?.credentials.keys().cloned().collect();
        ids.sort_unstable();
        Ok(ids)
    }

    async fn get_credentials(&self, ids: &[Key]) -> Result<Found> {
        let state = self.state()?;
        Ok(Found::collect(ids, |id| state.credentials.get(id).cloned()))
    }

    async fn set_credentials(&self, credentials: &[(Key, Credential)]) -> Result<BatchReport> {
        let encoded: Vec<_> = credentials
            .iter()
            .map(|(id, credential)| (id.clone(), credential.clone(), encode_credential(credential)))
            .collect();
        self.write(move |draft| {
            let succeeded = encoded.len();
            for (id, credential, encoded) in encoded {
                draft.put_credential(id, credential, encoded);
            }
            Ok(BatchReport { succeeded, failures: Vec::new() })
        })
        .await
    }

    async fn delete_credentials(&self, ids: &[Key]) -> Result<BatchReport> {
        let ids = ids.to_vec();
        self.write(move |draft| {
            let report = BatchReport::of_deletes(&ids, |id| draft.state().credentials.contains_key(id));
            for id in &ids {
                // A second mention finds nothing, and the report has counted it already.
                drop(draft.delete_credential(id));
            }
            Ok(report)
        })
        .await
    }
}
