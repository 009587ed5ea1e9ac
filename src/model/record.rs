//! [`Record`]: one piece of stored data, of any kind, as it is exported and imported.

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
}
