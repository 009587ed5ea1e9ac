//! The records in memory: an immutable state for readers, and a draft of the next one.

use std::collections::BTreeMap;

use git2::{Blob, ObjectType, Oid, Repository, Tree};
use imbl::OrdMap;

use super::{
    error::failed,
    name::{self, record_of},
    text,
};
use crate::{
    ConfigValue, Credential, Error, ErrorKind, Key, Record, Result,
    codec::{decode_config_or_word, decode_credential},
    error::Kind,
    history::DocumentKind,
    model::Revision,
};

/// There is no such record.
pub(super) fn missing(kind: DocumentKind, key: &Key) -> Error {
    let kind = match kind {
        DocumentKind::Credential => Kind::Credential,
        DocumentKind::Config => Kind::Config,
    };
    Error::not_found(kind, key)
}

/// The revision of a record with this blob.
pub(super) fn revision_of(blob: Oid) -> Revision {
    let mut bytes = [0; 20];
    bytes.copy_from_slice(blob.as_bytes());
    Revision::new(bytes)
}

/// The kind of a record and the text of its file. A counter is [`Unsupported`](ErrorKind::Unsupported).
pub(super) fn text_of(record: &Record) -> Result<(DocumentKind, Vec<u8>)> {
    match record {
        Record::Credential { credential, .. } => {
            Ok((DocumentKind::Credential, text::of_credential(credential)))
        }
        Record::Config { value, .. } => Ok((DocumentKind::Config, text::of_config(value))),
        Record::Usage { key, .. } => Err(Error::new(
            ErrorKind::Unsupported,
            "a Git store does not count usage: import counters into another store",
        )
        .with_key(key)),
    }
}

/// The id of the blob with this text.
pub(super) fn blob_of(text: &[u8]) -> Result<Oid> {
    Oid::hash_object(ObjectType::Blob, text).map_err(|error| failed("a record can't be written", error))
}

/// All acknowledged records. Cloning is O(1).
#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) credentials: OrdMap<Key, Credential>,
    pub(super) configs: OrdMap<Key, ConfigValue>,
    /// The commit with these records.
    pub(super) head: Option<Oid>,
    closed: bool,
}

impl State {
    /// The state of a closed store.
    pub(super) fn closed() -> Self {
        Self { closed: true, ..Self::default() }
    }

    pub(super) const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Reads the records of these paths again, from the files of another commit.
    pub(super) fn follow<'p>(
        &mut self,
        files: &Files<'_>,
        paths: impl Iterator<Item = &'p str>,
    ) -> Result<()> {
        for (kind, key) in paths.filter_map(record_of) {
            match files.find(kind, &key) {
                Some(blob) => self.put(files.record(kind, &key, blob)?),
                None => drop(self.remove(kind, &key)),
            }
        }
        Ok(())
    }

    fn put(&mut self, record: Record) {
        match record {
            Record::Credential { id, credential } => drop(self.credentials.insert(id, credential)),
            Record::Config { key, value } => drop(self.configs.insert(key, value)),
            Record::Usage { .. } => {}
        }
    }

    /// Removes a record. Returns whether it existed.
    fn remove(&mut self, kind: DocumentKind, key: &Key) -> bool {
        match kind {
            DocumentKind::Credential => self.credentials.remove(key).is_some(),
            DocumentKind::Config => self.configs.remove(key).is_some(),
        }
    }
}

/// The files with records in one commit.
pub(super) struct Files<'r> {
    repository: &'r Repository,
    credentials: Option<Tree<'r>>,
    configs: Option<Tree<'r>>,
}

impl<'r> Files<'r> {
    /// The files of a commit; without one, no files.
    pub(super) fn of(repository: &'r Repository, commit: Option<Oid>) -> Result<Self> {
        let unread = |error| failed("a commit can't be read", error);
        let root = commit
            .map(|commit| repository.find_commit(commit).and_then(|commit| commit.tree()))
            .transpose()
            .map_err(unread)?;
        let directory = |kind: DocumentKind| {
            let entry = root.as_ref().and_then(|root| root.get_name(kind.directory()));
            match entry {
                Some(entry) if entry.kind() == Some(ObjectType::Tree) => {
                    repository.find_tree(entry.id()).map(Some).map_err(unread)
                }
                Some(_) => Err(super::error::refused(format!(
                    "`{}` is not a directory in the repository's commit, but records are stored there",
                    kind.directory()
                ))),
                None => Ok(None),
            }
        };
        let (credentials, configs) = (directory(DocumentKind::Credential)?, directory(DocumentKind::Config)?);
        Ok(Self { repository, credentials, configs })
    }

    /// The blob of a file in its kind's directory.
    pub(super) fn blob(&self, kind: DocumentKind, name: &str) -> Option<Oid> {
        let tree = match kind {
            DocumentKind::Credential => self.credentials.as_ref()?,
            DocumentKind::Config => self.configs.as_ref()?,
        };
        let entry = match name.contains('/') {
            true => tree.get_path(name.as_ref()).ok()?,
            false => tree.get_name(name)?.to_owned(),
        };
        (entry.kind() == Some(ObjectType::Blob) && entry.filemode() & 0o170_000 == 0o100_000)
            .then(|| entry.id())
    }

    /// The blob of a key: of its encoded or its plain name.
    pub(super) fn find(&self, kind: DocumentKind, key: &Key) -> Option<Oid> {
        self.blob(kind, &name::encode(key))
            .or_else(|| name::plain(key).and_then(|plain| self.blob(kind, &plain)))
    }

    /// The record of a key, and its blob.
    pub(super) fn get(&self, kind: DocumentKind, key: &Key) -> Result<(Record, Oid)> {
        let blob = self.find(kind, key).ok_or_else(|| missing(kind, key))?;
        Ok((self.record(kind, key, blob)?, blob))
    }

    /// The record of a key in this blob.
    pub(super) fn record(&self, kind: DocumentKind, key: &Key, blob: Oid) -> Result<Record> {
        let read = || {
            let (text, key) = (self.text(blob)?, key.clone());
            Ok(match kind {
                DocumentKind::Credential => {
                    Record::Credential { id: key, credential: decode_credential(text.content())? }
                }
                DocumentKind::Config => Record::Config { key, value: decode_config_or_word(text.content())? },
            })
        };
        read().map_err(|error: Error| error.with_key(key))
    }

    fn text(&self, blob: Oid) -> Result<Blob<'r>> {
        self.repository.find_blob(blob).map_err(|error| failed("a stored record can't be read", error))
    }
}

/// The files to change, by path in the repository: the new text, or None to delete.
pub(super) type Changes = BTreeMap<String, Option<Vec<u8>>>;

/// The next state and the files to change.
///
/// A method that returns an error changes nothing.
pub(super) struct Draft<'r> {
    pub(super) state: State,
    files: Files<'r>,
    changes: Changes,
    /// Whether the changes were decided from a revision.
    pub(super) is_conditional: bool,
}

impl<'r> Draft<'r> {
    pub(super) const fn new(state: State, files: Files<'r>) -> Self {
        Self { state, files, changes: Changes::new(), is_conditional: false }
    }

    /// The revision of a record before the changes of this draft.
    pub(super) fn revision(&mut self, kind: DocumentKind, key: &Key) -> Option<Revision> {
        self.is_conditional = true;
        self.files.find(kind, key).map(revision_of)
    }

    /// The next state, and the changes.
    pub(super) fn into_parts(self) -> (State, Changes) {
        (self.state, self.changes)
    }

    /// Undoes the change of a record from one blob to another, if it still has the new one, whatever the name
    /// of its file.
    pub(super) fn undo(
        &mut self,
        kind: DocumentKind,
        key: &Key,
        (old, new): (Option<Oid>, Option<Oid>),
    ) -> Result<()> {
        let found = self.files.find(kind, key);
        // If the blobs are the same, only the file's name was changed.
        if found == old || old == new {
            return Ok(());
        }
        if found != new {
            return Err(
                Error::new(ErrorKind::Conflict, "a record was changed since the commit").with_key(key)
            );
        }
        let Some(blob) = old else { return self.delete(kind, key) };
        let record = self.files.record(kind, key, blob)?;
        self.write(kind, key, self.files.text(blob)?.content().to_vec())?;
        self.state.put(record);
        Ok(())
    }

    /// Sets a record. A counter is [`Unsupported`](ErrorKind::Unsupported).
    pub(super) fn put(&mut self, record: Record) -> Result<()> {
        let (kind, text) = text_of(&record)?;
        self.write(kind, record.key(), text)?;
        self.state.put(record);
        Ok(())
    }

    pub(super) fn delete(&mut self, kind: DocumentKind, key: &Key) -> Result<()> {
        if !self.state.remove(kind, key) {
            return Err(missing(kind, key));
        }
        let name = name::encode(key);
        let path = format!("{}/{name}", kind.directory());
        if self.files.blob(kind, &name).is_some() {
            self.changes.insert(path, None);
        } else {
            self.changes.remove(&path);
        }
        self.delete_plain(kind, key);
        Ok(())
    }

    fn write(&mut self, kind: DocumentKind, key: &Key, text: Vec<u8>) -> Result<()> {
        let name = name::encode(key);
        let path = format!("{}/{name}", kind.directory());
        let blob = blob_of(&text)?;
        if self.changes.contains_key(&path) || self.files.blob(kind, &name) != Some(blob) {
            self.changes.insert(path, Some(text));
        }
        self.delete_plain(kind, key);
        Ok(())
    }

    /// Deletes a legacy file with a plain name, which the encoded name replaces.
    fn delete_plain(&mut self, kind: DocumentKind, key: &Key) {
        if let Some(plain) = name::plain(key).filter(|plain| self.files.blob(kind, plain).is_some()) {
            self.changes.insert(format!("{}/{plain}", kind.directory()), None);
        }
    }
}
