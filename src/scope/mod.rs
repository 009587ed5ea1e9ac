//! Scopes: the records of one tenant in a shared store.
//!
//! [`Storage::scoped`](crate::Storage::scoped) returns a handle whose keys are stored under a prefix: within
//! the scope `acme`, `alice` is the record `acme/alice`. Lists, exports and errors of that handle have the
//! keys of the scope only, without the prefix.
//!
//! ```
//! # use gateway_storage::{Memory, Storage};
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
//! let storage = Storage::<Memory>::open("memory:").await?;
//! let acme = storage.scoped("acme")?;
//! acme.set_config("retries", serde_json::json!(3)).await?;
//! assert!(storage.scoped("globex")?.list_configs().await?.is_empty());
//! assert!(storage.get_config("acme/retries").await.is_ok());
//! # Ok(()) }
//! ```
//!
//! - **Limits.** A key has at most [`max_key_bytes`](Backend::max_key_bytes) bytes: 255 without the prefix. A
//!   longer one is [`InvalidKey`](crate::ErrorKind::InvalidKey); in a batch it is a failure of that item. The
//!   values that a plan replaces are limited with their keys in the store.
//! - **Cost.** Reads and writes cost what they cost without a scope. A list or an export reads those of the
//!   whole store and drops the others: a store with many tenants should have a
//!   prefix (`Redis`), a schema (`Postgres`) or a database (`MongoDb`) for each.
//! - **What is shared.** `health`, `stats`, `close` and the pool are those of the whole store: `stats` counts
//!   the records of all tenants, and `close` closes the store for all handles. Plans of all tenants share
//!   one audit, which keeps the newest entries. A credential is refreshed [once](crate::refresh) for all
//!   handles, with or without the scope. A record that can't be read fails the lists and exports of
//!   all tenants.
//! - **Backup.** An export of a scope is no backup of the store: `last_backup` of a handle to the whole store
//!   does not change.
//! - **Access.** A scope separates names. It is no protection: code that has a scoped handle can get the
//!   backend inside. A plan that a handle without the scope applies under a key of the scope can be rolled
//!   back in the scope.
//! - **Nesting.** A scope of a scope is a part of it: `x` of `eu` in `acme` is `eu/x` of `acme`.
//!
//! Every capability but [`History`](crate::History) is there: a commit can change the records of several
//! tenants, and could be reverted only for all of them.

mod batch;
mod leases;
mod plans;
mod records;
mod transaction;
mod watch;

use std::{fmt, sync::Arc};

use crate::{
    Backend, Error, ErrorKind, Key, Record, Result,
    wrap::{BackendWrapper, Wrapped},
};

/// A backend of which a handle sees one scope. See the [module's page](self).
pub type Scoped<B> = Wrapped<Scope, B>;

/// The separator between the name of a scope and a key.
const SEPARATOR: char = '/';

/// A wrapper that adds a prefix to every key. See the [module's page](self).
#[derive(Clone)]
pub struct Scope {
    /// Ends with the separator.
    prefix: Arc<str>,
    max_key_bytes: usize,
}

impl Scope {
    /// Makes a scope of this name.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`](ErrorKind::InvalidKey) if the name is no key, has more than 253 bytes, or holds a `/`:
    /// then the keys of two scopes could be the same.
    pub fn new(name: &str) -> Result<Self> {
        Self::within(name, Key::MAX_BYTES)
    }

    /// As [`new`](Scope::new), for a backend whose keys have at most this length.
    pub(crate) fn within(name: &str, max_key_bytes: usize) -> Result<Self> {
        let name = Key::new(name)?;
        let name = name.as_str();
        // A separator and one byte of a key follow.
        let longest = max_key_bytes.saturating_sub(2);
        if name.contains(SEPARATOR) || name.len() > longest {
            let message = format!("the name of a scope must have at most {longest} bytes here and no `/`");
            return Err(Error::new(ErrorKind::InvalidKey, message));
        }
        let prefix: Arc<str> = format!("{name}{SEPARATOR}").into();
        Ok(Self { max_key_bytes: max_key_bytes - prefix.len(), prefix })
    }

    /// What is put before each key.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The key under which the record of this key is stored.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`](ErrorKind::InvalidKey) if the key is too long with the prefix.
    pub fn outer(&self, key: &Key) -> Result<Key> {
        let (length, max) = (key.as_str().len(), self.max_key_bytes);
        if length > max {
            let message = format!("a key in this scope has at most {max} bytes, this one {length}");
            return Err(Error::new(ErrorKind::InvalidKey, message));
        }
        Ok(key.prefixed(&self.prefix))
    }

    /// The key in this scope of a record that is stored under this key. `None` if it is of another scope.
    #[must_use]
    pub fn inner(&self, key: &Key) -> Option<Key> {
        key.without_prefix(&self.prefix)
    }

    /// The record with another key.
    fn rename(record: &Record, key: Key) -> Record {
        match record.clone() {
            Record::Credential { credential, .. } => Record::Credential { id: key, credential },
            Record::Config { value, .. } => Record::Config { key, value },
            Record::Usage { field, count, .. } => Record::Usage { key, field, count },
        }
    }

    /// The record as it is stored.
    fn outer_record(&self, record: &Record) -> Result<Record> {
        Ok(Self::rename(record, self.outer(record.key())?))
    }

    /// The record as it is in this scope, if it is in it.
    fn inner_record(&self, record: &Record) -> Option<Record> {
        Some(Self::rename(record, self.inner(record.key())?))
    }

    /// The error with the key as it is in this scope. It never has the key of another scope.
    fn error(&self, error: Error) -> Error {
        match error.key().map(|key| self.inner(key)) {
            None => error,
            Some(Some(key)) => error.with_key(&key),
            Some(None) => error.without_key(),
        }
    }

    fn result<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| self.error(error))
    }
}

/// Not the name, which is a part of keys.
impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scope({} bytes)", self.prefix.len() - SEPARATOR.len_utf8())
    }
}

impl<B: Backend> BackendWrapper<B> for Scope {
    fn max_key_bytes(&self, inner: &B) -> usize {
        self.max_key_bytes.min(inner.max_key_bytes().saturating_sub(self.prefix.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_keys_are_checked() {
        for wrong in ["", "a/b", "a\nb", &"x".repeat(254)] {
            assert_eq!(Scope::new(wrong).unwrap_err().kind(), ErrorKind::InvalidKey, "{wrong:?}");
        }
        let scope = Scope::new(&"x".repeat(253)).unwrap();
        assert_eq!(scope.max_key_bytes, 1);
        let error = scope.outer(&Key::new("ab").unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "a key in this scope has at most 1 bytes, this one 2");
        let error = Scope::within("abc", 4).unwrap_err();
        assert_eq!(error.to_string(), "the name of a scope must have at most 2 bytes here and no `/`");
        assert_eq!(Scope::within("ab", 4).unwrap().max_key_bytes, 1);
    }

    #[test]
    fn keys_are_those_of_one_scope() {
        let scope = Scope::new("acme").unwrap();
        let key = Key::new("a/b").unwrap();
        let outer = scope.outer(&key).unwrap();
        assert_eq!((outer.as_str(), scope.inner(&outer)), ("acme/a/b", Some(key)));
        for other in ["acme", "acme/", "acmea/b", "a/b", "acm/a"] {
            assert_eq!(scope.inner(&Key::new(other).unwrap()), None, "{other}");
        }
        let error = Error::new(ErrorKind::Corrupt, "").with_key(&Key::new("globex/secret").unwrap());
        assert_eq!(scope.error(error).key(), None);
        assert_eq!(format!("{scope:?}"), "Scope(4 bytes)");
    }
}
