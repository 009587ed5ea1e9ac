//! The history of records: commits, and the records that have one.

use std::{fmt, str::FromStr, time::SystemTime};

use serde::{Serialize, Serializer};

use crate::{Error, ErrorKind, Result, model::time};

/// The kinds of records that have a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DocumentKind {
    /// A credential.
    Credential,
    /// A configuration value.
    Config,
}

/// The id of a commit: 40 hexadecimal digits, or 64 in a repository with SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitId {
    bytes: [u8; 32],
    length: u8,
}

impl CommitId {
    /// Creates an id from its 20 or 32 bytes.
    ///
    /// # Errors
    ///
    /// [`InvalidValue`](ErrorKind::InvalidValue) for another number of bytes.
    pub fn new(bytes: &[u8]) -> Result<Self> {
        let (20 | 32) = bytes.len() else { return Err(wrong()) };
        let mut id = Self { bytes: [0; 32], length: bytes.len() as u8 };
        id.bytes[..bytes.len()].copy_from_slice(bytes);
        Ok(id)
    }

    /// The bytes of the id.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length.into()]
    }
}

impl From<[u8; 20]> for CommitId {
    fn from(bytes: [u8; 20]) -> Self {
        let mut id = Self { bytes: [0; 32], length: 20 };
        id.bytes[..20].copy_from_slice(&bytes);
        id
    }
}

#[cold]
fn wrong() -> Error {
    Error::new(ErrorKind::InvalidValue, "a commit id must be 40 or 64 hexadecimal digits")
}

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CommitId({self})")
    }
}

impl FromStr for CommitId {
    type Err = Error;

    /// Reads 40 or 64 hexadecimal digits. Other text is [`InvalidValue`](ErrorKind::InvalidValue).
    fn from_str(text: &str) -> Result<Self> {
        if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let byte = |at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(byte).collect();
        Self::new(&bytes.ok_or_else(wrong)?)
    }
}

impl Serialize for CommitId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One change of one record, with its author and time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Commit {
    /// The id of the commit that made the change.
    pub id: CommitId,
    /// When it was made, in whole seconds, by the author's clock. A time before 1970 or after 9999 is given
    /// as the nearest time between them. As JSON in RFC 3339.
    #[serde(serialize_with = "time::seconds")]
    pub time: SystemTime,
    /// The author's name, as the author gave it.
    pub author: String,
    /// The author's email address, as the author gave it.
    pub email: String,
    /// Whether the record was deleted; otherwise it was set.
    pub is_deleted: bool,
}

impl Commit {
    /// A change that set the record.
    #[must_use]
    pub fn new(id: CommitId, time: SystemTime, author: String, email: String) -> Self {
        Self { id, time, author, email, is_deleted: false }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_id_is_that_of_sha1_or_of_sha256() {
        for text in ["ab".repeat(20), "0f".repeat(32)] {
            let id: CommitId = text.parse().unwrap();
            assert_eq!((id.to_string(), CommitId::new(id.as_bytes()).ok()), (text, Some(id)));
        }
        for wrong in ["", "ab", &"a".repeat(41), &"é".repeat(20), &"+1".repeat(20)] {
            assert_eq!(wrong.parse::<CommitId>().unwrap_err().kind(), ErrorKind::InvalidValue, "{wrong}");
        }
    }

    #[test]
    fn any_time_is_serialized() {
        let (epoch, id) = (SystemTime::UNIX_EPOCH, CommitId::from([0; 20]));
        let late = Duration::from_secs(253_402_300_800);
        for (time, text) in
            [(epoch + late, "9999-12-31T23:59:59Z"), (epoch - Duration::from_secs(1), "1970-01-01T00:00:00Z")]
        {
            let commit = Commit::new(id, time, String::new(), String::new());
            assert_eq!(serde_json::to_value(&commit).unwrap()["time"], text);
            assert!(serde_json::to_string(&commit).unwrap().contains(text));
        }
    }

    #[test]
    fn ids_are_hexadecimal() {
        let text = "00ff0102030405060708090a0b0c0d0e0f101112";
        assert_eq!(text.parse::<CommitId>().unwrap().to_string(), text);
        for wrong in ["", "00ff", &"g".repeat(40), &"+1".repeat(20), &"é".repeat(20)] {
            assert_eq!(wrong.parse::<CommitId>().unwrap_err().kind(), ErrorKind::InvalidValue);
        }
    }
}
