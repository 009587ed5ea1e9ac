//! The kinds of documents that are parsed and cached: credentials and config values.

use futures_util::FutureExt;

use super::{
    File,
    cache::{Parsed, weight_of, weight_of_fields},
    draft::Draft,
    snapshot::Stored,
    work::{FEW, SMALL_DOCUMENT, SMALL_IN_BATCH, copied, work},
};
use crate::{
    BatchReport, ConfigValue, Credential, Error, Found, Key, Result,
    codec::{RecordKey, decode_config, decode_credential, encode_config, encode_credential},
    error::Kind,
    history::DocumentKind,
};

/// A document that the cache holds.
pub(super) trait Document: Clone + Send + Sync + 'static {
    const KIND: DocumentKind;
    fn name(key: Key) -> RecordKey;
    fn decode(bytes: &[u8]) -> Result<Self>;
    fn encode(&self) -> Vec<u8>;
    fn missing(key: &Key) -> Error;
    fn parsed(&self) -> Parsed;
    fn from_cached(parsed: Parsed) -> Option<Self>;
    /// About how many bytes of memory it takes.
    fn weight(&self) -> usize;
    fn put(draft: &mut Draft<'_>, key: Key, encoded: &[u8]) -> Result<()>;

    /// The key and the document of a stored record.
    fn read(stored: &Stored) -> Result<(Key, Self)> {
        let key = stored.key()?;
        let document = Self::decode(stored.value()).map_err(|error| error.with_key(&key))?;
        Ok((key, document))
    }
}

impl File {
    /// Reads a document, here unless it is large.
    pub(super) async fn document<D: Document>(&self, key: &Key) -> Result<D> {
        if let Some(document) = self.store.reader.document(key, SMALL_DOCUMENT)? {
            return Ok(document);
        }
        let (store, key) = (self.store.clone(), key.clone());
        let read = move || store.reader.document(&key, usize::MAX)?.ok_or_else(|| D::missing(&key));
        // Boxed, because few calls get here.
        work(self.deadline, false, read).boxed().await
    }

    /// Reads documents from one state, here if they are few and small.
    pub(super) async fn documents<D: Document>(&self, keys: &[Key]) -> Result<Found<D>> {
        if keys.len() <= FEW
            && let Some(found) = self.store.reader.documents(keys, SMALL_IN_BATCH)?
        {
            return found.settle();
        }
        let (store, keys) = (self.store.clone(), copied(keys).await);
        let read = move || store.reader.documents(&keys, usize::MAX).map(Option::unwrap_or_default);
        work(self.deadline, false, read).await?.settle()
    }

    /// Stores documents in one commit.
    pub(super) async fn set_documents<D: Document>(&self, items: &[(Key, D)]) -> Result<BatchReport> {
        let bytes = items.iter().map(|(_, document)| document.weight()).sum();
        let admitted = self.admit(items.len(), bytes).await?;
        let items = copied(items).await;
        self.encode_and_write(
            admitted,
            items.len(),
            move || items.into_iter().map(|(key, document)| (key, document.encode())).collect::<Vec<_>>(),
            |draft, encoded| {
                let succeeded = encoded.len();
                for (key, encoded) in encoded {
                    D::put(draft, key, &encoded)?;
                }
                Ok(BatchReport { succeeded, failures: Vec::new() })
            },
        )
        .await
    }
}

impl Document for Credential {
    const KIND: DocumentKind = DocumentKind::Credential;

    fn name(key: Key) -> RecordKey {
        RecordKey::Credential(key)
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        decode_credential(bytes)
    }

    fn encode(&self) -> Vec<u8> {
        encode_credential(self)
    }

    fn missing(key: &Key) -> Error {
        Error::not_found(Kind::Credential, key)
    }

    fn parsed(&self) -> Parsed {
        Parsed::Credential(self.clone())
    }

    fn from_cached(parsed: Parsed) -> Option<Self> {
        match parsed {
            Parsed::Credential(credential) => Some(credential),
            Parsed::Config(_) => None,
        }
    }

    fn weight(&self) -> usize {
        weight_of_fields(self.fields())
    }

    fn put(draft: &mut Draft<'_>, key: Key, encoded: &[u8]) -> Result<()> {
        draft.put_credential(key, encoded)
    }
}

impl Document for ConfigValue {
    const KIND: DocumentKind = DocumentKind::Config;

    fn name(key: Key) -> RecordKey {
        RecordKey::Config(key)
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        decode_config(bytes)
    }

    fn encode(&self) -> Vec<u8> {
        encode_config(self)
    }

    fn missing(key: &Key) -> Error {
        Error::not_found(Kind::Config, key)
    }

    fn parsed(&self) -> Parsed {
        Parsed::Config(self.clone())
    }

    fn from_cached(parsed: Parsed) -> Option<Self> {
        match parsed {
            Parsed::Config(value) => Some(value),
            Parsed::Credential(_) => None,
        }
    }

    fn weight(&self) -> usize {
        weight_of(self.value())
    }

    fn put(draft: &mut Draft<'_>, key: Key, encoded: &[u8]) -> Result<()> {
        draft.put_config(key, encoded)
    }
}
