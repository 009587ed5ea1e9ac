//! [`CacheEntry`]: a cache value and the time that it has left.

use std::{fmt, time::Duration};

/// A cache value and the time that it has left. `Debug` does not print the value.
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

impl fmt::Debug for CacheEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheEntry")
            .field("value", &format_args!("{} bytes", self.value.len()))
            .field("expires_in", &self.expires_in)
            .finish()
    }
}
