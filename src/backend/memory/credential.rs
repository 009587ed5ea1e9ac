//! Credentials in a map.

use futures_core::Stream;

use super::{Memory, find};
use crate::{
    BatchReport, Credential, CredentialStore, Found, Key, Result, error::Kind, history::DocumentKind,
    model::ListOptions,
};

impl CredentialStore for Memory {
    async fn get_credential(&self, id: &Key) -> Result<Credential> {
        self.read(|data| find(&data.credentials, Kind::Credential, id).cloned())
    }

    async fn set_credential(&self, id: &Key, credential: &Credential) -> Result<()> {
        self.write(|data| drop(data.credentials.insert(id.clone(), credential.clone())))?;
        self.tell(DocumentKind::Credential, [id]);
        Ok(())
    }

    async fn delete_credential(&self, id: &Key) -> Result<()> {
        self.write_checked(
            |data| find(&data.credentials, Kind::Credential, id).map(drop),
            |data| drop(data.credentials.remove(id)),
        )?;
        self.tell(DocumentKind::Credential, [id]);
        Ok(())
    }

    async fn list_credentials(&self) -> Result<Vec<Key>> {
        self.read(|data| Ok(data.credentials.keys().cloned().collect()))
    }

    async fn get_credentials(&self, ids: &[Key]) -> Result<Found<Credential>> {
        self.read(|data| Ok(Found::collect(ids, |id| find(&data.credentials, Kind::Credential, id).cloned())))
    }

    async fn set_credentials(&self, credentials: &[(Key, Credential)]) -> Result<BatchReport> {
        self.lock(|store| {
            if !credentials.is_empty() {
                store.changed().credentials.extend(credentials.iter().cloned());
            }
            Ok(())
        })?;
        self.tell(DocumentKind::Credential, credentials.iter().map(|(id, _)| id));
        Ok(BatchReport { succeeded: credentials.len(), failures: Vec::new() })
    }

    async fn delete_credentials(&self, ids: &[Key]) -> Result<BatchReport> {
        let report = self.lock(|store| {
            let report = BatchReport::of_deletes(ids, |id| store.data.credentials.contains_key(id));
            if report.succeeded > 0 {
                let data = store.changed();
                ids.iter().for_each(|id| drop(data.credentials.remove(id)));
            }
            Ok(report)
        })?;
        self.tell(DocumentKind::Credential, ids);
        Ok(report)
    }

    fn stream_credentials(
        &self,
        options: ListOptions,
    ) -> impl Stream<Item = Result<(Key, Credential)>> + Send {
        self.stream(options, |data| &data.credentials)
    }
}
