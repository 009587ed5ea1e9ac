//! [`Revision`] and [`Condition`]: what a conditional write compares.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

use crate::{Error, ErrorKind, Key, Result};

/// Tells whether a stored record has changed: 20 bytes, which are shown as 40 hexadecimal digits.
///
/// A revision is a digest of the record as it is stored. Every write of other bytes changes it, also one by
/// another program. A record that gets an earlier value back has that value's revision again. Revisions have
/// no order, and those of two backends can't be compared. As they begin with no secret and reveal none, they
/// may be logged, or sent to a browser as an `ETag`; who can guess the whole record can confirm the guess.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Revision([u8; 20]);

impl Revision {
    /// The revision with these bytes, for a backend that has a digest of its own.
    #[must_use]
    pub const fn new(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// The first 20 bytes of the SHA-256 of a record as it is stored.
    #[must_use]
    pub fn of(stored: &[u8]) -> Self {
        let mut bytes = [0; 20];
        bytes.copy_from_slice(&Sha256::digest(stored)[..20]);
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Revision({self})")
    }
}

impl FromStr for Revision {
    type Err = Error;

    /// Reads 40 hexadecimal digits. Other text is [`InvalidValue`](ErrorKind::InvalidValue).
    fn from_str(text: &str) -> Result<Self> {
        let mut bytes = [0; 20];
        let is_revision = text.len() == 40
            && text.bytes().all(|digit| digit.is_ascii_hexdigit())
            && bytes.iter_mut().enumerate().all(|(at, byte)| {
                u8::from_str_radix(&text[2 * at..2 * at + 2], 16).is_ok_and(|read| {
                    *byte = read;
                    true
                })
            });
        let wrong = || Error::new(ErrorKind::InvalidValue, "a revision must be 40 hexadecimal digits");
        is_revision.then_some(Self(bytes)).ok_or_else(wrong)
    }
}

impl Serialize for Revision {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Revision {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// What must be stored for a conditional write to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// No record under this key.
    Absent,
    /// The record with this revision.
    Unchanged(Revision),
}

impl Condition {
    /// Checks the revision of the stored record, for a backend that compares by itself.
    ///
    /// # Errors
    ///
    /// [`conflict`](Condition::conflict).
    pub fn check(self, key: &Key, stored: Option<Revision>) -> Result<()> {
        let expected = match self {
            Self::Absent => None,
            Self::Unchanged(revision) => Some(revision),
        };
        if stored == expected { Ok(()) } else { Err(Self::conflict(key)) }
    }

    /// The error for a condition that does not hold: [`Conflict`](ErrorKind::Conflict). It is not
    /// [retryable](Error::is_retryable), because the same call would fail again.
    #[cold]
    #[must_use]
    pub fn conflict(key: &Key) -> Error {
        let message = "the record was changed, created or deleted meanwhile: read it again";
        Error::new(ErrorKind::Conflict, message).with_retryable(false).with_key(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_forty_digits() {
        let revision = Revision::of(br#"{"token":"x"}"#);
        assert_eq!(revision.to_string().parse::<Revision>().unwrap(), revision);
        let text = serde_json::to_string(&revision).unwrap();
        assert_eq!(serde_json::from_str::<Revision>(&text).unwrap(), revision);
        for wrong in ["", "ab", &"a".repeat(41), &"é".repeat(20), &"+1".repeat(20), &"g".repeat(40)] {
            assert_eq!(wrong.parse::<Revision>().unwrap_err().kind(), ErrorKind::InvalidValue, "{wrong}");
        }
    }
}
