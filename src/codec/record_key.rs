//! The name of a stored record of any kind, and its encoding as bytes.

use std::ops::Range;

use crate::{Error, ErrorKind, Key, Record, RecordKind, Result, model::KeyRange};

/// The name of a record: its kind, its key and, for a counter, its field.
///
/// The order is that of an export.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordKey {
    /// An audit entry by its number.
    Audit(u64),
    /// A credential by its id.
    Credential(Key),
    /// A config value by its key.
    Config(Key),
    /// The record of a plan by its key.
    Plan(Key),
    /// A counter by its record's key and its field.
    Usage(Key, Key),
}

const AUDIT: u8 = b'a';
const CREDENTIAL: u8 = b'c';
const CONFIG: u8 = b'f';
const PLAN: u8 = b'p';
const USAGE: u8 = b'u';

/// Separates key and field. No key contains it, so different pairs have different encodings.
const SEPARATOR: u8 = 0;

impl From<&Record> for RecordKey {
    fn from(record: &Record) -> Self {
        match record {
            Record::Credential { id, .. } => Self::Credential(id.clone()),
            Record::Config { key, .. } => Self::Config(key.clone()),
            Record::Usage { key, field, .. } => Self::Usage(key.clone(), field.clone()),
        }
    }
}

impl RecordKey {
    /// The encodings of all audit entries.
    pub fn audit() -> Range<Vec<u8>> {
        names_of(AUDIT)
    }

    /// The encodings of all credentials.
    pub fn credentials() -> Range<Vec<u8>> {
        names_of(CREDENTIAL)
    }

    /// The encodings of all config values.
    pub fn configs() -> Range<Vec<u8>> {
        names_of(CONFIG)
    }

    /// The encodings of all counters.
    pub fn usage() -> Range<Vec<u8>> {
        names_of(USAGE)
    }

    /// The encodings of the counters of one usage record.
    pub fn counters(key: &Key) -> Range<Vec<u8>> {
        joined(USAGE, key.as_str(), SEPARATOR)..behind(USAGE, key.as_str())
    }

    /// The encodings of the records of this kind whose keys are in this range, with all counters of each key.
    pub(crate) fn in_range(kind: RecordKind, keys: &KeyRange) -> Range<Vec<u8>> {
        let kind = match kind {
            RecordKind::Credential => CREDENTIAL,
            RecordKind::Config => CONFIG,
            RecordKind::Usage => USAGE,
        };
        let start = if keys.has_first() { first(kind, keys.first()) } else { behind(kind, keys.first()) };
        start..first(kind, keys.end())
    }

    /// One byte for the kind, then the key. A counter's key is followed by NUL and its field. The number of
    /// an audit entry is eight bytes, big-endian.
    ///
    /// Different names have different encodings, and the order of the encodings is that of the names.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, key, field) = match self {
            Self::Audit(number) => return [&[AUDIT][..], &number.to_be_bytes()].concat(),
            Self::Credential(id) => (CREDENTIAL, id, None),
            Self::Config(key) => (CONFIG, key, None),
            Self::Plan(key) => (PLAN, key, None),
            Self::Usage(key, field) => (USAGE, key, Some(field)),
        };
        let mut bytes =
            Vec::with_capacity(2 + key.as_str().len() + field.map_or(0, |field| field.as_str().len()));
        bytes.push(kind);
        bytes.extend_from_slice(key.as_str().as_bytes());
        if let Some(field) = field {
            bytes.push(SEPARATOR);
            bytes.extend_from_slice(field.as_str().as_bytes());
        }
        bytes
    }

    /// Decodes the output of [`encode`](Self::encode). Other bytes are `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (kind, name) = bytes.split_first().ok_or_else(corrupt)?;
        match *kind {
            CREDENTIAL => Ok(Self::Credential(decode_key(name)?)),
            AUDIT => {
                name.try_into().map(|number| Self::Audit(u64::from_be_bytes(number))).map_err(|_| corrupt())
            }
            CONFIG => Ok(Self::Config(decode_key(name)?)),
            PLAN => Ok(Self::Plan(decode_key(name)?)),
            USAGE => {
                let at = name.iter().position(|byte| *byte == SEPARATOR).ok_or_else(corrupt)?;
                Ok(Self::Usage(decode_key(&name[..at])?, decode_key(&name[at + 1..])?))
            }
            _ => Err(corrupt()),
        }
    }
}

fn names_of(kind: u8) -> Range<Vec<u8>> {
    vec![kind]..vec![kind + 1]
}

fn joined(kind: u8, text: &str, end: u8) -> Vec<u8> {
    [&[kind][..], text.as_bytes(), &[end]].concat()
}

/// Sorts after all records of this key and before those of the next: the first character of what else begins
/// with the key is greater, because no key has a control character.
fn behind(kind: u8, key: &str) -> Vec<u8> {
    joined(kind, key, SEPARATOR + 1)
}

/// Sorts before the records of all keys that do not sort before this text, and after those of all others.
fn first(kind: u8, text: &str) -> Vec<u8> {
    match text.split_once('\0') {
        // No key has a NUL, but the names of counters have one.
        Some((before, _)) => behind(kind, before),
        None => [&[kind][..], text.as_bytes()].concat(),
    }
}

/// Decodes a key that this crate or another program stored. Other bytes are `Corrupt`.
pub fn decode_key(bytes: &[u8]) -> Result<Key> {
    let name = std::str::from_utf8(bytes).map_err(|_| corrupt())?;
    Key::new(name).map_err(|why| corrupt().with_source(why))
}

#[cold]
fn corrupt() -> Error {
    Error::new(ErrorKind::Corrupt, "the name of a stored record can't be read")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::ListOptions;

    fn any_key() -> impl Strategy<Value = Key> {
        "[^\\p{Cc}]{1,60}".prop_map(|name| Key::new(&name).unwrap())
    }

    fn any_record() -> impl Strategy<Value = RecordKey> {
        prop_oneof![
            any_key().prop_map(RecordKey::Credential),
            any_key().prop_map(RecordKey::Config),
            any_key().prop_map(RecordKey::Plan),
            any::<u64>().prop_map(RecordKey::Audit),
            (any_key(), any_key()).prop_map(|(key, field)| RecordKey::Usage(key, field)),
        ]
    }

    /// A key of few characters, so that many begin with another.
    fn near_key() -> impl Strategy<Value = Key> {
        "[ a/b\u{10ffff}]{1,3}".prop_map(|name| Key::new(&name).unwrap())
    }

    #[test]
    fn the_counters_of_a_key_are_together() {
        let key = |name: &str| Key::new(name).unwrap();
        let names = |prefix: &str, after: Option<&str>| {
            let options = ListOptions { prefix: prefix.to_owned(), after: after.map(key), limit: None };
            let range = RecordKey::in_range(RecordKind::Usage, &KeyRange::of(&options).unwrap());
            let all = ["a", "a b", "a/b", "ab", "b"].into_iter().flat_map(|name| {
                ["\u{20}", "f", "z"].map(|field| (name, RecordKey::Usage(key(name), key(field)).encode()))
            });
            all.filter(|(_, encoded)| range.contains(encoded)).map(|(name, _)| name).collect::<Vec<_>>()
        };
        let three = |keys: &[&'static str]| keys.iter().flat_map(|key| [*key; 3]).collect::<Vec<_>>();
        assert_eq!(names("a", None), three(&["a", "a b", "a/b", "ab"]));
        assert_eq!(names("a", Some("a")), three(&["a b", "a/b", "ab"]));
        assert_eq!(names("a", Some("a/b")), three(&["ab"]));
        assert_eq!(names("a/", None), three(&["a/b"]));
        assert_eq!(names("", Some("a a")), three(&["a b", "a/b", "ab", "b"]));
        for prefix in ["a\0", "a\0f", "a\0f\0", "\0", "a\u{1}"] {
            assert!(names(prefix, None).is_empty(), "{prefix:?}");
        }
    }

    proptest! {
        #[test]
        fn a_range_has_the_records_whose_keys_it_has(
            prefix in "[ a/b\u{0}\u{1}\u{10ffff}]{0,3}",
            after in proptest::option::of(near_key()),
            key in near_key(),
            field in near_key(),
        ) {
            let options = ListOptions { prefix, after, limit: None };
            if let Some(range) = KeyRange::of(&options) {
                for (kind, name) in [
                    (RecordKind::Credential, RecordKey::Credential(key.clone())),
                    (RecordKind::Config, RecordKey::Config(key.clone())),
                    (RecordKind::Usage, RecordKey::Usage(key.clone(), field)),
                ] {
                    let names = RecordKey::in_range(kind, &range);
                    prop_assert!(names.start <= names.end);
                    prop_assert_eq!(names.contains(&name.encode()), range.contains(&key));
                }
            }
        }

        #[test]
        fn reversible_injective_and_in_order(left in any_record(), right in any_record()) {
            prop_assert_eq!(&RecordKey::decode(&left.encode()).unwrap(), &left);
            prop_assert_eq!(left.encode().cmp(&right.encode()), left.cmp(&right));
        }

        #[test]
        fn any_bytes_are_refused_or_canonical(bytes: Vec<u8>) {
            if let Ok(record) = RecordKey::decode(&bytes) {
                prop_assert_eq!(record.encode(), bytes);
            }
        }
    }
}
