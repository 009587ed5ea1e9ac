//! Credentials and config values: the JSON text of each.

use std::{collections::BTreeMap, sync::Arc};

use gateway_storage::{
    ConfigValue, Credential, Error, ErrorKind, Key, Record, Result, history::DocumentKind,
};

use super::Own;

pub(super) type Name = (DocumentKind, Key);

/// Each text that is stored has an allocation of its own, so a transaction notices every write.
#[derive(Clone, Default)]
pub(super) struct Documents(BTreeMap<Name, Arc<str>>);

impl Documents {
    pub(super) fn get(&self, name: &Name) -> Option<&Arc<str>> {
        self.0.get(name)
    }

    pub(super) fn find(&self, name: &Name) -> Result<&Arc<str>> {
        self.get(name).ok_or_else(|| missing(&name.1))
    }

    /// Stores a text, or deletes what is stored.
    pub(super) fn put(&mut self, name: Name, text: Option<&str>) {
        match text {
            Some(text) => drop(self.0.insert(name, text.into())),
            None => drop(self.0.remove(&name)),
        }
    }

    pub(super) fn delete(&mut self, name: &Name) -> Result<()> {
        self.0.remove(name).map(drop).ok_or_else(|| missing(&name.1))
    }

    pub(super) fn of(&self, kind: DocumentKind) -> impl Iterator<Item = (&Key, &Arc<str>)> {
        self.0.iter().filter(move |(name, _)| name.0 == kind).map(|((_, key), text)| (key, text))
    }

    /// Every document, credentials first.
    pub(super) fn records(&self) -> impl Iterator<Item = Result<Record>> {
        self.0.iter().map(|(name, text)| record_of(name, text))
    }
}

pub(super) fn missing(key: &Key) -> Error {
    Error::new(ErrorKind::NotFound, "no record has this key").with_key(key)
}

pub(super) fn record_of((kind, key): &Name, text: &str) -> Result<Record> {
    match kind {
        DocumentKind::Credential => {
            Ok(Record::Credential { id: key.clone(), credential: Credential::from_json(text)? })
        }
        DocumentKind::Config => Ok(Record::Config { key: key.clone(), value: ConfigValue::from_json(text)? }),
        _ => Err(Error::new(ErrorKind::Unsupported, "only credentials and config values are stored")),
    }
}

/// The name and the text of a credential or a config value.
pub(super) fn document_of(record: &Record) -> Option<(Name, String)> {
    match record {
        Record::Credential { id, credential } => {
            Some(((DocumentKind::Credential, id.clone()), credential.to_json()))
        }
        Record::Config { key, value } => Some(((DocumentKind::Config, key.clone()), value.to_json())),
        _ => None,
    }
}

impl Own {
    pub(super) fn get(&self, kind: DocumentKind, key: &Key) -> Result<Arc<str>> {
        self.lock()?.documents.find(&(kind, key.clone())).cloned()
    }

    pub(super) fn set(&self, kind: DocumentKind, key: &Key, text: &str) -> Result<()> {
        self.lock()?.documents.put((kind, key.clone()), Some(text));
        Ok(())
    }

    pub(super) fn delete(&self, kind: DocumentKind, key: &Key) -> Result<()> {
        self.lock()?.documents.delete(&(kind, key.clone()))
    }
}
