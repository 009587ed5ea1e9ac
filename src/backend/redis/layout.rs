//! Which Redis key holds what: the layout of the Go module.

use crate::{Error, ErrorKind, Key, Result};

pub(super) struct Layout {
    prefix: String,
}

/// The kinds of data that have a Redis key for each record.
#[derive(Clone, Copy)]
pub(super) enum Space {
    Credential,
    Usage,
    Cache,
}

impl Space {
    const fn word(self) -> &'static str {
        match self {
            Self::Credential => "cred:",
            Self::Usage => "usage:",
            Self::Cache => "cache:",
        }
    }
}

impl Layout {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The Redis key of one record.
    pub(super) fn name(&self, space: Space, key: &Key) -> String {
        [&self.prefix, space.word(), key.as_str()].concat()
    }

    /// The hash of all config values.
    pub(super) fn config(&self) -> String {
        [&self.prefix, "config"].concat()
    }

    /// What SCAN must match to see every record of a kind, or of all. In the prefix nothing is a wildcard.
    pub(super) fn pattern(&self, space: Option<Space>) -> String {
        let mut pattern = String::with_capacity(self.prefix.len() + 8);
        for character in self.prefix.chars() {
            if matches!(character, '*' | '?' | '[' | ']' | '^' | '-' | '\\') {
                pattern.push('\\');
            }
            pattern.push(character);
        }
        pattern.push_str(space.map_or("", Space::word));
        pattern.push('*');
        pattern
    }

    /// Which kind a Redis key is of.
    pub(super) fn space(&self, name: &[u8]) -> Option<Space> {
        let rest = name.strip_prefix(self.prefix.as_bytes())?;
        [Space::Credential, Space::Usage, Space::Cache]
            .into_iter()
            .find(|space| rest.starts_with(space.word().as_bytes()))
    }

    /// The record's key, from its Redis key.
    pub(super) fn key(&self, space: Space, name: &[u8]) -> Result<Key> {
        name.strip_prefix(self.prefix.as_bytes())
            .and_then(|rest| rest.strip_prefix(space.word().as_bytes()))
            .ok_or_else(|| Error::new(ErrorKind::Internal, "the server listed a key that does not match"))
            .and_then(parse_key)
    }
}

/// A key that another program may have written.
pub(super) fn parse_key(bytes: &[u8]) -> Result<Key> {
    let corrupt = || Error::new(ErrorKind::Corrupt, "the name of a stored record can't be read");
    let name = std::str::from_utf8(bytes).map_err(|_| corrupt())?;
    Key::new(name).map_err(|why| corrupt().with_source(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let layout = Layout::new("gcli2api:");
        let key = Key::new("a:b*").unwrap();
        assert_eq!(layout.name(Space::Credential, &key), "gcli2api:cred:a:b*");
        assert_eq!(layout.name(Space::Usage, &key), "gcli2api:usage:a:b*");
        assert_eq!(layout.name(Space::Cache, &key), "gcli2api:cache:a:b*");
        assert_eq!(layout.config(), "gcli2api:config");
        assert_eq!(layout.key(Space::Usage, b"gcli2api:usage:a:b*").unwrap(), key);
        for broken in [&b"gcli2api:cred:"[..], b"gcli2api:cred:a\n", b"gcli2api:cred:\xff"] {
            assert_eq!(layout.key(Space::Credential, broken).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn nothing_in_a_prefix_is_a_wildcard() {
        let pattern = |prefix| Layout::new(prefix).pattern(Some(Space::Credential));
        assert_eq!(pattern("app[1]:"), r"app\[1\]:cred:*");
        assert_eq!(pattern("?y^-\\*"), r"\?y\^\-\\\*cred:*");
    }
}
