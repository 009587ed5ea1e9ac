//! The kinds of documents that are parsed and cached: credentials and config values.

use super::cache::Parsed;
use crate::{
    ConfigValue, Credential, Error, Key, Result,
    codec::{RecordKey, decode_config, decode_credential},
    error::Kind,
    history::DocumentKind,
};

/// A document that the cache holds.
pub(super) trait Document: Sized + Send + 'static {
    const KIND: DocumentKind;
    fn name(key: Key) -> RecordKey;
    fn decode(bytes: &[u8]) -> Result<Self>;
    fn missing(key: &Key) -> Error;
    fn parsed(&self) -> Parsed;
    fn from_cached(parsed: Parsed) -> Option<Self>;
}

impl Document for Credential {
    const KIND: DocumentKind = DocumentKind::Credential;

    fn name(key: Key) -> RecordKey {
        RecordKey::Credential(key)
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        decode_credential(bytes)
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
}

impl Document for ConfigValue {
    const KIND: DocumentKind = DocumentKind::Config;

    fn name(key: Key) -> RecordKey {
        RecordKey::Config(key)
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        decode_config(bytes)
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
}
