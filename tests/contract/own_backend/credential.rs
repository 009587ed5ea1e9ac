//! Credentials, without batches: their default bodies call these operations.

use gateway_storage::{Credential, CredentialStore, Key, Result, history::DocumentKind};

use super::Own;

impl CredentialStore for Own {
    async fn get_credential(&self, id: &Key) -> Result<Credential> {
        Credential::from_json(&*self.get(DocumentKind::Credential, id)?)
    }

    async fn set_credential(&self, id: &Key, credential: &Credential) -> Result<()> {
        self.set(DocumentKind::Credential, id, &credential.to_json())
    }

    async fn delete_credential(&self, id: &Key) -> Result<()> {
        self.delete(DocumentKind::Credential, id)
    }

    async fn list_credentials(&self) -> Result<Vec<Key>> {
        Ok(self.lock()?.documents.of(DocumentKind::Credential).map(|(id, _)| id.clone()).collect())
    }
}
