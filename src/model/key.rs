//! [`Key`]: the name of a record.

use std::{
    borrow::{Borrow, Cow},
    fmt,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use smol_str::SmolStr;

use crate::{Error, ErrorKind, Result};

/// The name of a record, or of a field in a usage record: UTF-8, 1 to 255 bytes, no control characters.
///
/// Nothing else is forbidden, and no key is interpreted: `../x`, `a/b`, `*`, `$where` and `con` are ordinary
/// keys. Keys are case-sensitive, sorted by their bytes, and cheap to clone. One of up to 23 bytes, or from a
/// literal, allocates nothing.
///
/// ```
/// # use gateway_storage::Key;
/// const TOKENS: Key = Key::from_static("tokens"); // checked when it is compiled
/// let key = Key::new("user.name@example.com-003")?;
/// assert_eq!(key.as_str(), "user.name@example.com-003");
/// assert!(Key::new("line\nbreak").is_err());
/// assert_eq!(TOKENS, Key::new("tokens")?);
/// # Ok::<(), gateway_storage::Error>(())
/// ```
///
/// A key can be a secret (applications count usage under their clients' API keys), so `Debug` shows only its
/// length and there is no `Display`: print [`as_str`](Key::as_str) where that is intended.
///
/// Hash names that may be longer than a key, such as clients' JWTs: a SHA-256 in hexadecimal has 64 bytes.
/// Hash every name of that kind, not only the long ones, so that a name and its hash are never two records.
/// Never truncate: the JWTs of two clients can begin with the same 255 bytes, and would share a record.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(SmolStr);

impl Key {
    /// The longest key, in bytes.
    pub const MAX_BYTES: usize = 255;

    /// Makes a key of a name, after checking it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidKey`] if it is empty, over [`Key::MAX_BYTES`], or holds a control character
    /// (Unicode category Cc). The message does not repeat the name.
    pub fn new(name: &str) -> Result<Self> {
        match wrong_in(name) {
            None => Ok(Self(SmolStr::new(name))),
            Some(wrong) => Err(invalid(name, wrong)),
        }
    }

    /// Makes a key of a literal. In a constant it is checked when it is compiled.
    ///
    /// # Panics
    ///
    /// If it is empty, over [`Key::MAX_BYTES`], or holds a control character.
    #[must_use]
    #[track_caller]
    pub const fn from_static(name: &'static str) -> Self {
        assert!(wrong_in(name).is_none(), "a key has 1 to 255 bytes and no control characters");
        Self(SmolStr::new_static(name))
    }

    /// This key after a prefix. The caller checks the prefix and the length.
    pub(crate) fn prefixed(&self, prefix: &str) -> Self {
        Self([prefix, self.as_str()].into_iter().collect())
    }

    /// The rest of this key after a prefix. `None` if it has another one, or no rest.
    pub(crate) fn without_prefix(&self, prefix: &str) -> Option<Self> {
        let rest = self.as_str().strip_prefix(prefix).filter(|rest| !rest.is_empty())?;
        Some(Self(SmolStr::new(rest)))
    }

    /// The name, whose clone is cheap.
    pub(crate) const fn text(&self) -> &SmolStr {
        &self.0
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a name is not a key.
#[derive(Clone, Copy)]
enum Wrong {
    Empty,
    TooLong,
    /// A control character begins at this byte.
    Control(usize),
}

/// The rule for keys.
const fn wrong_in(name: &str) -> Option<Wrong> {
    let bytes = name.as_bytes();
    if bytes.is_empty() {
        return Some(Wrong::Empty);
    }
    if bytes.len() > Key::MAX_BYTES {
        return Some(Wrong::TooLong);
    }
    let mut at = 0;
    while at < bytes.len() {
        // In UTF-8 the characters from U+0080 to U+009F are C2 and a byte below A0.
        if bytes[at].is_ascii_control() || (bytes[at] == 0xc2 && bytes[at + 1] < 0xa0) {
            return Some(Wrong::Control(at));
        }
        at += 1;
    }
    None
}

#[cold]
fn invalid(name: &str, wrong: Wrong) -> Error {
    let message: Cow<'static, str> = match wrong {
        Wrong::Empty => "a key can't be empty".into(),
        Wrong::TooLong => format!(
            "a key has at most {} bytes, this one {}: hash such names (SHA-256 in hexadecimal), don't truncate them",
            Key::MAX_BYTES,
            name.len()
        )
        .into(),
        Wrong::Control(at) => format!(
            "a key can't hold control characters, this one has U+{:04X} at byte {at}",
            name[at..].chars().next().map_or(0, u32::from)
        )
        .into(),
    };
    Error::new(ErrorKind::InvalidKey, message)
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} bytes)", self.0.len())
    }
}

impl AsRef<str> for Key {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

// A key has the Hash and Ord of its str, as Borrow requires, so a map of keys can be queried with a `&str`.
impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl From<&Key> for Key {
    fn from(shared: &Key) -> Self {
        shared.clone()
    }
}

impl TryFrom<&str> for Key {
    type Error = Error;

    fn try_from(name: &str) -> Result<Self> {
        Self::new(name)
    }
}

impl TryFrom<String> for Key {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        Self::new(&name)
    }
}

impl std::str::FromStr for Key {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::new(name)
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = <Cow<'de, str>>::deserialize(deserializer)?;
        Self::new(&name).map_err(de::Error::custom)
    }
}

/// A key as an argument of [`Storage`](crate::Storage): a [`Key`], or a string that is checked first.
///
/// A `&Key` costs nothing. A string is checked and copied once.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a key",
    note = "a key is a `Key` or `&Key`, or a string"
)]
pub trait IntoKey: Send {
    /// The checked key: `&Key` for a borrowed key, else [`Key`].
    type Checked: Borrow<Key> + Send;

    /// Checks the key.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidKey`], as [`Key::new`].
    fn into_key(self) -> Result<Self::Checked>;
}

impl<'a> IntoKey for &'a Key {
    type Checked = &'a Key;

    #[inline]
    fn into_key(self) -> Result<Self> {
        Ok(self)
    }
}

impl IntoKey for Key {
    type Checked = Self;

    #[inline]
    fn into_key(self) -> Result<Self> {
        Ok(self)
    }
}

impl IntoKey for &str {
    type Checked = Key;

    fn into_key(self) -> Result<Key> {
        Key::new(self)
    }
}

impl IntoKey for String {
    type Checked = Key;

    fn into_key(self) -> Result<Key> {
        Key::new(&self)
    }
}

impl IntoKey for &String {
    type Checked = Key;

    fn into_key(self) -> Result<Key> {
        Key::new(self)
    }
}

impl<'a> IntoKey for &&'a Key {
    type Checked = &'a Key;

    #[inline]
    fn into_key(self) -> Result<&'a Key> {
        Ok(self)
    }
}

impl IntoKey for &&str {
    type Checked = Key;

    fn into_key(self) -> Result<Key> {
        Key::new(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        assert!(Key::new(&"x".repeat(255)).is_ok());
        assert!(Key::new(&"团".repeat(85)).is_ok());
        for (name, message) in [
            (String::new(), "a key can't be empty"),
            (
                "x".repeat(256),
                "a key has at most 255 bytes, this one 256: hash such names (SHA-256 in hexadecimal), don't truncate them",
            ),
            (
                "团".repeat(86),
                "a key has at most 255 bytes, this one 258: hash such names (SHA-256 in hexadecimal), don't truncate them",
            ),
            ("sub\taccount".into(), "a key can't hold control characters, this one has U+0009 at byte 3"),
            ("a\nb".into(), "a key can't hold control characters, this one has U+000A at byte 1"),
            ("\u{9f}".into(), "a key can't hold control characters, this one has U+009F at byte 0"),
        ] {
            let error = Key::new(&name).unwrap_err();
            assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::InvalidKey, message));
        }
    }

    #[test]
    fn every_control_character_is_refused_and_no_other() {
        for character in '\0'..=char::MAX {
            let name = format!("a{character}b");
            assert_eq!(Key::new(&name).is_err(), character.is_control(), "{character:?}");
        }
    }

    #[test]
    fn a_literal_and_a_short_name_are_not_allocated() {
        const LONG: Key = Key::from_static("a literal that has more than twenty-three bytes");
        let (short, long) = ("x".repeat(23), "x".repeat(24));
        let allocated = |run: &dyn Fn() -> Key| allocation_counter::measure(|| drop(run())).count_total;
        assert_eq!(allocated(&|| LONG.clone()), 0);
        assert_eq!(allocated(&|| Key::new(&short).unwrap()), 0);
        assert_eq!(allocated(&|| Key::new(&long).unwrap()), 1);
        assert_eq!(LONG, Key::new("a literal that has more than twenty-three bytes").unwrap());
    }

    #[test]
    #[should_panic(expected = "a key has 1 to 255 bytes and no control characters")]
    fn a_wrong_literal_panics() {
        let _ = Key::from_static("");
    }

    #[test]
    fn debug_shows_only_the_length() {
        assert_eq!(format!("{:?}", Key::new("sk-secret").unwrap()), "Key(9 bytes)");
    }

    #[test]
    fn deserializing_checks_the_name() {
        assert_eq!(serde_json::from_str::<Key>(r#""a\u002fb""#).unwrap().as_str(), "a/b");
        assert!(serde_json::from_str::<Key>(r#""""#).is_err());
    }
}
