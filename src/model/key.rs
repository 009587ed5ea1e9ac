//! [`Key`]: the name of a record.

use std::{
    borrow::{Borrow, Cow},
    fmt,
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Error, ErrorKind, Result};

/// The name of a record, or of a field in a usage record: UTF-8, 1 to 255 bytes, no control characters.
///
/// Nothing else is forbidden, and no key is interpreted: `../x`, `a/b`, `*`, `$where` and `con` are ordinary
/// keys. Keys are case-sensitive, sorted by their bytes, and cheap to clone.
///
/// ```
/// # use gateway_storage::Key;
/// let key = Key::new("user.name@example.com-003")?;
/// assert_eq!(key.as_str(), "user.name@example.com-003");
/// assert!(Key::new("line\nbreak").is_err());
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
pub struct Key(Arc<str>);

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
        check(name).map(|()| Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(invalid("a key can't be empty"));
    }
    if name.len() > Key::MAX_BYTES {
        return Err(invalid(format!(
            "a key has at most {} bytes, this one {}: hash such names (SHA-256 in hexadecimal), don't truncate them",
            Key::MAX_BYTES,
            name.len()
        )));
    }
    match name.char_indices().find(|(_, character)| character.is_control()) {
        None => Ok(()),
        Some((at, character)) => Err(invalid(format!(
            "a key can't hold control characters, this one has U+{:04X} at byte {at}",
            u32::from(character)
        ))),
    }
}

#[cold]
fn invalid(message: impl Into<Cow<'static, str>>) -> Error {
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

impl<'a, K: ?Sized + Sync> IntoKey for &&'a K
where
    &'a K: IntoKey,
{
    type Checked = <&'a K as IntoKey>::Checked;

    #[inline]
    fn into_key(self) -> Result<Self::Checked> {
        (*self).into_key()
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
    fn debug_shows_only_the_length() {
        assert_eq!(format!("{:?}", Key::new("sk-secret").unwrap()), "Key(9 bytes)");
    }

    #[test]
    fn deserializing_checks_the_name() {
        assert_eq!(serde_json::from_str::<Key>(r#""a\u002fb""#).unwrap().as_str(), "a/b");
        assert!(serde_json::from_str::<Key>(r#""""#).is_err());
    }
}
