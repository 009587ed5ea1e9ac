//! [`Filter`]: selects records by kind and by patterns of their keys.

use std::{fmt, str::FromStr};

use gateway_storage_macros::Setters;

use crate::{Error, ErrorKind, Key, Record, RecordKind, Result};

/// Selects records. The default selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Setters)]
#[non_exhaustive]
pub struct Filter {
    /// Only these kinds; empty for all.
    pub kinds: Vec<RecordKind>,
    /// Only keys that match one of these; empty for all. A counter is matched by the key of its record.
    pub include: Vec<Glob>,
    /// Excludes keys that match one of these.
    pub exclude: Vec<Glob>,
}

impl Filter {
    /// Whether this record is selected.
    #[must_use]
    pub fn allows(&self, record: &Record) -> bool {
        let any = |globs: &[Glob]| globs.iter().any(|glob| glob.matches(record.key()));
        (self.kinds.is_empty() || self.kinds.contains(&record.kind()))
            && (self.include.is_empty() || any(&self.include))
            && !any(&self.exclude)
    }
}

/// A pattern for whole keys: `*` matches any text, including the empty one, `?` matches one character, and
/// `\` escapes the next character. Nothing else is special: `*` also matches `/` and `.`, and case matters.
///
/// ```
/// # use gateway_storage::{Key, migrate::Glob};
/// let glob: Glob = "team-*@example.com".parse()?;
/// assert!(glob.matches(&Key::new("team-7/a@example.com")?));
/// assert!(!glob.matches(&Key::new("team-7@example.com.old")?));
/// # Ok::<(), gateway_storage::Error>(())
/// ```
///
/// A match takes at most P·K steps for a pattern of P and a key of K characters. `Debug` does not print the
/// pattern, which can be a key.
#[derive(Clone, PartialEq, Eq)]
pub struct Glob(Vec<Token>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    AnyText,
    AnyChar,
    Char(char),
}

impl Glob {
    /// Whether the whole key matches.
    #[must_use]
    pub fn matches(&self, key: &Key) -> bool {
        let (tokens, mut rest) = (&self.0, key.as_str().chars());
        let mut at = 0;
        // The token after the last `*`, and the text after its match. Earlier ones never need backtracking.
        let mut star = None;
        loop {
            let before = rest.clone();
            let next = rest.next();
            match (tokens.get(at), next) {
                (None, None) => return true,
                (Some(Token::AnyText), _) => {
                    at += 1;
                    star = Some((at, before.clone()));
                    rest = before;
                }
                (Some(Token::AnyChar), Some(_)) => at += 1,
                (Some(Token::Char(wanted)), Some(found)) if *wanted == found => at += 1,
                (_, None) => return false,
                (_, Some(_)) => match &mut star {
                    None => return false,
                    Some((after, unmatched)) => {
                        unmatched.next();
                        (at, rest) = (*after, unmatched.clone());
                    }
                },
            }
        }
    }

    /// The pattern, which parses to this glob.
    pub(super) fn pattern(&self) -> String {
        let mut pattern = String::new();
        for token in &self.0 {
            match *token {
                Token::AnyText => pattern.push('*'),
                Token::AnyChar => pattern.push('?'),
                Token::Char(character) => {
                    if matches!(character, '*' | '?' | '\\') {
                        pattern.push('\\');
                    }
                    pattern.push(character);
                }
            }
        }
        pattern
    }
}

impl FromStr for Glob {
    type Err = Error;

    fn from_str(pattern: &str) -> Result<Self> {
        let mut tokens = Vec::new();
        let mut rest = pattern.chars();
        while let Some(character) = rest.next() {
            let token = match character {
                '*' => Token::AnyText,
                '?' => Token::AnyChar,
                '\\' => Token::Char(rest.next().ok_or_else(|| {
                    Error::new(ErrorKind::InvalidValue, "the pattern ends with `\\`; write `\\\\` instead")
                })?),
                character => Token::Char(character),
            };
            if token != Token::AnyText || tokens.last() != Some(&Token::AnyText) {
                tokens.push(token);
            }
        }
        if tokens.is_empty() {
            return Err(Error::new(ErrorKind::InvalidValue, "the pattern is empty and matches no key"));
        }
        Ok(Self(tokens))
    }
}

impl fmt::Debug for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Glob({} tokens)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        pattern.parse::<Glob>().unwrap().matches(&Key::new(name).unwrap())
    }

    #[test]
    fn patterns() {
        for (pattern, yes, no) in [
            ("*", &["a", "a/b", "..", "*", "团"][..], &[][..]),
            ("a", &["a"], &["aa", "A", "b"]),
            ("a*", &["a", "ab", "a/b"], &["ba"]),
            ("*a", &["a", "ba", "aba"], &["ab"]),
            ("a*b*c", &["abc", "axxbyyc", "abcbc"], &["ab", "acb", "abcx"]),
            ("a?c", &["abc", "a团c", "a?c"], &["ac", "abbc"]),
            ("?", &["a", "团"], &["ab"]),
            ("[1]", &["[1]"], &["1"]),
            ("\\*", &["*"], &["a", "\\*"]),
            ("\\\\?", &["\\a"], &["\\", "aa"]),
            ("**a***", &["a", "bab"], &["b"]),
        ] {
            yes.iter().for_each(|name| assert!(matches(pattern, name), "{pattern} matches {name}"));
            no.iter().for_each(|name| assert!(!matches(pattern, name), "{pattern} does not match {name}"));
        }
        for pattern in ["", "a\\"] {
            assert_eq!(pattern.parse::<Glob>().unwrap_err().kind(), ErrorKind::InvalidValue);
        }
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = format!("{}b", "a*".repeat(60));
        assert!(!matches(&pattern, &"a".repeat(255)));
    }

    /// The definition, in exponential time.
    fn naive(tokens: &[Token], name: &[char]) -> bool {
        match (tokens.split_first(), name.split_first()) {
            (None, _) => name.is_empty(),
            (Some((Token::AnyText, rest)), _) => (0..=name.len()).any(|at| naive(rest, &name[at..])),
            (Some((Token::AnyChar, rest)), Some((_, name))) => naive(rest, name),
            (Some((Token::Char(wanted), rest)), Some((found, name))) => wanted == found && naive(rest, name),
            (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn as_defined(pattern in "[ab*?]{1,8}", name in "[ab]{1,8}") {
            let glob: Glob = pattern.parse().unwrap();
            let characters: Vec<char> = name.chars().collect();
            prop_assert_eq!(glob.matches(&Key::new(&name).unwrap()), naive(&glob.0, &characters));
        }

        #[test]
        fn the_pattern_reads_back(pattern in "[ab*?\\\\]{0,8}c") {
            let glob: Glob = pattern.parse().unwrap();
            prop_assert_eq!(glob.pattern().parse::<Glob>().unwrap(), glob);
        }
    }
}
