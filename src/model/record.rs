//! [`Record`]: one piece of stored data, of any kind, as it is exported and imported.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::named::named;
use crate::{ConfigValue, Credential, Error, ErrorKind, Key, Result};

named! {
    /// The kinds of [`Record`], in the order in which they are exported.
    #[derive(PartialOrd, Ord)]
    RecordKind {
        /// A credential.
        Credential = "credential",
        /// A configuration value.
        Config = "config",
        /// A counter.
        Usage = "usage",
    }
}

/// One stored thing: what [`export`](crate::Exportable::export) gives and
/// [`import`](crate::Exportable::import) takes. Cache values are not part of it: they expire.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Record {
    /// A credential.
    Credential {
        /// Its id.
        id: Key,
        /// Its fields.
        credential: Credential,
    },
    /// A configuration value.
    Config {
        /// Its key.
        key: Key,
        /// The value.
        value: ConfigValue,
    },
    /// One counter of a usage record. Imported as "set to", so that repeating is harmless.
    Usage {
        /// The usage record.
        key: Key,
        /// The counter in it.
        field: Key,
        /// Its count.
        count: i64,
    },
}

impl Record {
    /// What kind of record it is.
    #[must_use]
    pub fn kind(&self) -> RecordKind {
        match self {
            Self::Credential { .. } => RecordKind::Credential,
            Self::Config { .. } => RecordKind::Config,
            Self::Usage { .. } => RecordKind::Usage,
        }
    }

    /// The id of a credential, or the key of a config value or usage record.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Credential { id: key, .. } | Self::Config { key, .. } | Self::Usage { key, .. } => key,
        }
    }
    /// The field of a counter.
    #[must_use]
    pub fn field(&self) -> Option<&Key> {
        match self {
            Self::Usage { field, .. } => Some(field),
            Self::Credential { .. } | Self::Config { .. } => None,
        }
    }

    /// Its place in an export: by kind, then by key, then by field. Two records of one place are two values of one thing.
    #[must_use]
    pub fn place(&self) -> (RecordKind, &Key, Option<&Key>) {
        (self.kind(), self.key(), self.field())
    }
}
