//! What a watch tells: [`Event`], [`Cursor`] and [`WatchOptions`].

use std::{borrow::Cow, fmt, str::FromStr, sync::Arc};

use gateway_storage_macros::Setters;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Error, ErrorKind, Key, Result, history::DocumentKind};

/// One event of a [watch](crate::watch::Watch).
///
/// Each event has a cursor. A watch that begins at it tells what has changed since then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A record was stored or deleted, or may have been: read it again. Its value is not in the event, and
    /// several changes of one record may be one event.
    Changed {
        /// What kind of record it is.
        kind: DocumentKind,
        /// The record's key. `None`: the backend does not know which of this kind changed, so any may have.
        key: Option<Key>,
        /// Where to go on after this event.
        cursor: Cursor,
    },
    /// Changes may have been missed: read again all that you need.
    Resync {
        /// Where to go on after this event.
        cursor: Cursor,
    },
    /// Nothing has been missed until now. It comes every few seconds if nothing else does, as long as the
    /// store can be reached.
    Idle {
        /// Where to go on after this event.
        cursor: Cursor,
    },
}

impl Event {
    /// Where to go on after this event.
    #[must_use]
    pub const fn cursor(&self) -> &Cursor {
        let (Self::Changed { cursor, .. } | Self::Resync { cursor } | Self::Idle { cursor }) = self;
        cursor
    }

    /// The event's name: `changed`, `resync` or `idle`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Changed { .. } => "changed",
            Self::Resync { .. } => "resync",
            Self::Idle { .. } => "idle",
        }
    }
}

/// A place in the changes of one store, as text: keep it to begin a later watch where this one ended.
///
/// Only the backend that made it can read it, and [its formats] may change with any version: a watch that
/// can't read a cursor begins with [`Resync`](Event::Resync). Cursors have no order. One of `MongoDb`
/// contains the key of a record, so `Debug` does not print the text.
///
/// [its formats]: https://github.com/gateway-storage/gateway-storage/blob/main/docs/formats.md
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Cursor(Arc<str>);

impl Cursor {
    /// The longest cursor, in bytes: 4 KiB.
    pub const MAX_BYTES: usize = 4096;

    /// A cursor with this text, for a backend.
    ///
    /// # Errors
    ///
    /// [`InvalidValue`](ErrorKind::InvalidValue) unless the text has 1 to [`MAX_BYTES`](Self::MAX_BYTES)
    /// printable ASCII characters and no space.
    pub fn new(text: impl AsRef<str>) -> Result<Self> {
        let text = text.as_ref();
        let is_cursor =
            (1..=Self::MAX_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        let wrong = || {
            let most = Self::MAX_BYTES;
            Error::new(
                ErrorKind::InvalidValue,
                format!("a cursor must be 1 to {most} printable ASCII characters"),
            )
        };
        is_cursor.then(|| Self(text.into())).ok_or_else(wrong)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A cursor of this backend. The place must be as for [`new`](Self::new); otherwise it is dropped, and a
    /// watch from this cursor begins with a Resync.
    pub(crate) fn at(label: &'static str, place: impl fmt::Display) -> Self {
        Self::new(format!("{label}:{place}")).unwrap_or_else(|_| Self(label.into()))
    }

    /// The place, if a backend of this name made the cursor.
    pub(crate) fn place(&self, label: &'static str) -> Option<&str> {
        self.0.strip_prefix(label)?.strip_prefix(':')
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Prints no text.
impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cursor({} bytes)", self.0.len())
    }
}

impl FromStr for Cursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::new(text)
    }
}

impl Serialize for Cursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <Cow<'de, str>>::deserialize(deserializer)?;
        Self::new(text).map_err(de::Error::custom)
    }
}

/// What a watch tells of: by default of credentials and config values, from now on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Setters)]
#[non_exhaustive]
pub struct WatchOptions {
    /// Only changes of this kind. `None`: of all kinds.
    pub kind: Option<DocumentKind>,
    /// Changes since this cursor, which an earlier event had. `None`: changes from now on.
    pub from: Option<Cursor>,
}

impl WatchOptions {
    /// Whether changes of this kind are told.
    #[must_use]
    pub fn includes(&self, kind: DocumentKind) -> bool {
        self.kind.is_none_or(|only| only == kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_short_printable_text() {
        let cursor = Cursor::at("memory", "1f.7");
        assert_eq!(cursor.as_str(), "memory:1f.7");
        assert_eq!(
            (cursor.place("memory"), cursor.place("mem"), cursor.place("redis")),
            (Some("1f.7"), None, None)
        );
        assert_eq!(cursor.as_str().parse::<Cursor>().unwrap(), cursor);
        let json = serde_json::to_string(&cursor).unwrap();
        assert_eq!(serde_json::from_str::<Cursor>(&json).unwrap(), cursor);
        assert_eq!(format!("{cursor:?}"), "Cursor(11 bytes)");
        for wrong in ["", "a b", "a\n", "é", &"x".repeat(Cursor::MAX_BYTES + 1)] {
            assert_eq!(Cursor::new(wrong).unwrap_err().kind(), ErrorKind::InvalidValue, "{wrong:?}");
        }
        assert_eq!(Cursor::at("memory", "x".repeat(Cursor::MAX_BYTES)).as_str(), "memory");
    }
}
