//! The records in memory: an immutable state for readers, and a draft of the next one.

use std::collections::BTreeMap;

use git2::{ObjectType, Oid, Repository, Tree};
use imbl::OrdMap;

use super::{
    error::failed,
    name::{self, record_of},
    text,
};
use crate::{
    ConfigValue, Credential, Error, ErrorKind, Key, Result,
    codec::{decode_config_or_word, decode_credential},
    error::Kind,
    history::DocumentKind,
};

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
            let blob = files.find(kind, &key);
            match kind {
                DocumentKind::Credential => match blob {
                    Some(blob) => drop(self.credentials.insert(key.clone(), files.credential(blob, &key)?)),
                    None => drop(self.credentials.remove(&key)),
                },
                DocumentKind::Config => match blob {
                    Some(blob) => drop(self.configs.insert(key.clone(), files.config(blob, &key)?)),
                    None => drop(self.configs.remove(&key)),
                },
            }
        }
        Ok(())
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

    pub(super) fn credential(&self, blob: Oid, key: &Key) -> Result<Credential> {
        self.read(blob, decode_credential).map_err(|error| error.with_key(key))
    }

    pub(super) fn config(&self, blob: Oid, key: &Key) -> Result<ConfigValue> {
        self.read(blob, decode_config_or_word).map_err(|error| error.with_key(key))
    }

    fn read<T>(&self, blob: Oid, decode: impl Fn(&[u8]) -> Result<T>) -> Result<T> {
        let blob = self
            .repository
            .find_blob(blob)
            .map_err(|error| failed("a stored record can't be read", error))?;
        decode(blob.content())
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
    /// Whether `state` lacks some of the changes.
    is_stale: bool,
}

impl<'r> Draft<'r> {
    pub(super) const fn new(state: State, files: Files<'r>) -> Self {
        Self { state, files, changes: Changes::new(), is_stale: false }
    }

    /// The next state, unless it must be read from the files, and the changes.
    pub(super) fn into_parts(self) -> (Option<State>, Changes) {
        ((!self.is_stale).then_some(self.state), self.changes)
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
        if found == old {
            return Ok(());
        }
        if found != new {
            return Err(
                Error::new(ErrorKind::Conflict, "a record was changed since the commit").with_key(key)
            );
        }
        self.is_stale = true;
        match old {
            Some(blob) => self.put(kind, key, self.files.read(blob, |text| Ok(text.to_vec()))?),
            None => {
                self.delete(kind, key);
                Ok(())
            }
        }
    }

    pub(super) fn put_credential(&mut self, id: &Key, credential: &Credential) -> Result<()> {
        self.put(DocumentKind::Credential, id, text::of_credential(credential))?;
        self.state.credentials.insert(id.clone(), credential.clone());
        Ok(())
    }

    pub(super) fn put_config(&mut self, key: &Key, value: &ConfigValue) -> Result<()> {
        self.put(DocumentKind::Config, key, text::of_config(value))?;
        self.state.configs.insert(key.clone(), value.clone());
        Ok(())
    }

    pub(super) fn delete_credential(&mut self, id: &Key) -> Result<()> {
        self.state.credentials.remove(id).ok_or_else(|| Error::not_found(Kind::Credential, id))?;
        self.delete(DocumentKind::Credential, id);
        Ok(())
    }

    pub(super) fn delete_config(&mut self, key: &Key) -> Result<()> {
        self.state.configs.remove(key).ok_or_else(|| Error::not_found(Kind::Config, key))?;
        self.delete(DocumentKind::Config, key);
        Ok(())
    }

    fn put(&mut self, kind: DocumentKind, key: &Key, text: Vec<u8>) -> Result<()> {
        let name = name::encode(key);
        let path = format!("{}/{name}", kind.directory());
        let blob = Oid::hash_object(ObjectType::Blob, &text)
            .map_err(|error| failed("a record can't be written", error))?;
        if self.changes.contains_key(&path) || self.files.blob(kind, &name) != Some(blob) {
            self.changes.insert(path, Some(text));
        }
        self.delete_plain(kind, key);
        Ok(())
    }

    fn delete(&mut self, kind: DocumentKind, key: &Key) {
        let name = name::encode(key);
        let path = format!("{}/{name}", kind.directory());
        if self.files.blob(kind, &name).is_some() {
            self.changes.insert(path, None);
        } else {
            self.changes.remove(&path);
        }
        self.delete_plain(kind, key);
    }

    /// Deletes a legacy file with a plain name, which the encoded name replaces.
    fn delete_plain(&mut self, kind: DocumentKind, key: &Key) {
        if let Some(plain) = name::plain(key).filter(|plain| self.files.blob(kind, plain).is_some()) {
            self.changes.insert(format!("{}/{plain}", kind.directory()), None);
        }
    }
}
