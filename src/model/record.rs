//! [`Record`]: one credential, config value or counter, as it is exported and imported.

use serde::Serialize;

use super::{document, named, redacted};
use crate::{ConfigValue, Credential, Key};

/// One stored record: the item of an [`export`](crate::Exportable::export) and an
/// [`import`](crate::Exportable::import). Cache values are not exported, because they expire.
///
/// As JSON it has the names of a line of an export file, and a credential is
/// [redacted](Credential::redacted): [`archive::write`](crate::archive::write()) writes records whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Record {
    /// A credential.
    Credential {
        /// Its id.
        #[serde(rename = "key")]
        id: Key,
        /// Its fields.
        #[serde(rename = "value", serialize_with = "redacted")]
        credential: Credential,
    },
    /// A configuration value.
    Config {
        /// Its key.
        key: Key,
        /// The value.
        value: ConfigValue,
    },
    /// One counter of a usage record. An import sets the counter, so that it can be repeated.
    Usage {
        /// The key of the usage record.
        key: Key,
        /// The counter's name in it.
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

    /// The kind of the record.
    #[must_use]
    pub const fn kind(&self) -> RecordKind {
        match self {
            Self::Credential { .. } => RecordKind::Credential,
            Self::Config { .. } => RecordKind::Config,
            Self::Usage { .. } => RecordKind::Usage,
        }
    }

    /// The size in bytes: the key, the field, and the value as compact JSON. A count has eight bytes.
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

named! {
    /// The kinds of a [`Record`], in the order of an export.
    RecordKind {
        /// Credentials.
        Credential = "credential",
        /// Config values.
        Config = "config",
        /// Counters.
        Usage = "usage",
    }
}
