//! [`Record`]: one piece of stored data, of any kind, as it is exported and imported.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::document;
use crate::{ConfigValue, Credential, Key};

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

    /// Of which kind it is.
    #[must_use]
    pub const fn kind(&self) -> RecordKind {
        match self {
            Self::Credential { .. } => RecordKind::Credential,
            Self::Config { .. } => RecordKind::Config,
            Self::Usage { .. } => RecordKind::Usage,
        }
    }

    /// How large it is, in bytes: its key and field, and its value as compact JSON; a count has eight.
    #[must_use]
    pub fn size(&self) -> usize {
        let value = match self {
            Self::Credential { credential, .. } => document::size(credential.fields()),
            Self::Config { value, .. } => document::size(value.value()),
            Self::Usage { .. } => size_of::<i64>(),
        };
        self.key().as_str().len() + self.field().map_or(0, |field| field.as_str().len()) + value
    }
}

/// The kinds of a [`Record`], in the order of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordKind {
    /// Credentials.
    Credential,
    /// Config values.
    Config,
    /// Counters.
    Usage,
}

impl RecordKind {
    /// All of them, in the order of an export.
    pub const ALL: [Self; 3] = [Self::Credential, Self::Config, Self::Usage];

    /// `"credential"`, `"config"`, `"usage"`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Credential => "credential",
            Self::Config => "config",
            Self::Usage => "usage",
        }
    }
}

impl fmt::Display for RecordKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
