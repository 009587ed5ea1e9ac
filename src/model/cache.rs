//! [`CacheEntry`]: a cache value and the time that it has left.

use std::{fmt, time::Duration};

use serde::{Serialize, Serializer, ser::SerializeStruct};

use super::time::whole_millis;

/// A cache value and the time that it has left. `Debug` does not print the value.
///
/// As JSON it is `{ "value_bytes": 5, "expires_in_ms": 250 }`. The value itself is left out: it is any bytes,
/// and it can be a secret.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheEntry {
    /// The bytes that were stored.
    pub value: Vec<u8>,
    /// The time until it expires, in whole milliseconds. `None`: it never expires, because another program
    /// stored it so.
    pub expires_in: Option<Duration>,
}

impl CacheEntry {
    /// An entry that expires after this time.
    pub fn new(value: impl Into<Vec<u8>>, expires_in: Option<Duration>) -> Self {
        Self { value: value.into(), expires_in }
    }
}

impl Serialize for CacheEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("CacheEntry", 2)?;
        fields.serialize_field("value_bytes", &self.value.len())?;
        fields.serialize_field("expires_in_ms", &self.expires_in.map(whole_millis))?;
        fields.end()
    }
}

impl fmt::Debug for CacheEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheEntry")
            .field("value", &format_args!("{} bytes", self.value.len()))
            .field("expires_in", &self.expires_in)
            .finish()
    }
}
