//! [`CacheEntry`]: a cache value and how long it lives.

use std::{fmt, time::Duration};

/// A cache value, and how long it has to live. `Debug` prints no byte of it.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheEntry {
    /// The bytes that were stored.
    pub value: Vec<u8>,
    /// How long it has to live, in whole milliseconds. None is for ever: only another program stores such a value.
    pub expires_in: Option<Duration>,
}

impl CacheEntry {
    /// An entry that has so long to live.
    pub fn new(value: impl Into<Vec<u8>>, expires_in: Option<Duration>) -> Self {
        Self { value: value.into(), expires_in }
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
