//! Which records are meant: by kind, and by patterns of their keys.

use std::{fmt, str::FromStr};

use crate::{Error, ErrorKind, Key, Record, RecordKind, Result};

/// Which records are meant. The default is all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Filter {
    /// Only these kinds; empty for all.
    pub kinds: Vec<RecordKind>,
    /// Only keys that match one of these; empty for all. For a counter it is the key of its record.
    pub include: Vec<Glob>,
    /// No key that matches one of these.
    pub exclude: Vec<Glob>,
}

impl Filter {
    /// Whether this record is meant.
    #[must_use]
    pub fn allows(&self, record: &Record) -> bool {
        let any = |globs: &[Glob]| globs.iter().any(|glob| glob.matches(record.key()));
        (self.kinds.is_empty() || self.kinds.contains(&record.kind()))
            && (self.include.is_empty() || any(&self.include))
            && !any(&self.exclude)
    }
}

/// A pattern of whole keys: `*` is any text, also an empty one, `?` is any one character, `\` takes the next character as it is.
/// Nothing else has a meaning: `*` goes across `/` and `.`, and case matters.
///
/// ```
/// # use gateway_storage::{Key, migrate::Glob};
/// let glob: Glob = "team-*@example.com".parse()?;
/// assert!(glob.matches(&Key::new("team-7/a@example.com")?));
/// assert!(!glob.matches(&Key::new("team-7@example.com.old")?));
/// # Ok::<(), gateway_storage::Error>(())
/// ```
///
/// A match takes at most as many steps as pattern and key have characters, multiplied. `Debug` shows no pattern: it can be a key.
#[derive(Clone, PartialEq, Eq)]
pub struct Glob(Vec<Token>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Any,
    One,
    This(char),
}

impl Glob {
    /// Whether the whole key is like this.
    #[must_use]
    pub fn matches(&self, key: &Key) -> bool {
        let (tokens, mut rest) = (&self.0, key.as_str().chars());
        let mut at = 0;
        // Where the last `*` is, and what it did not take yet: all but the last one never need to be tried again.
        let mut star = None;
        loop {
            let before = rest.clone();
            let next = rest.next();
            match (tokens.get(at), next) {
                (None, None) => return true,
                (Some(Token::Any), _) => {
                    at += 1;
                    star = Some((at, before.clone()));
                    rest = before;
                }
                (Some(Token::One), Some(_)) => at += 1,
                (Some(Token::This(wanted)), Some(found)) if *wanted == found => at += 1,
                (_, None) => return false,
                (_, Some(_)) => match &mut star {
                    None => return false,
                    Some((after, untaken)) => {
                        untaken.next();
                        (at, rest) = (*after, untaken.clone());
                    }
                },
            }
        }
    }

    /// The pattern: parsed, it gives this glob.
    pub(super) fn pattern(&self) -> String {
        let mut pattern = String::new();
        for token in &self.0 {
            match *token {
                Token::Any => pattern.push('*'),
                Token::One => pattern.push('?'),
                Token::This(character) => {
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
                '*' => Token::Any,
                '?' => Token::One,
                '\\' => Token::This(rest.next().ok_or_else(|| {
                    Error::new(ErrorKind::InvalidValue, "a pattern ends with `\\`; a backslash is `\\\\`")
                })?),
                character => Token::This(character),
            };
            if token != Token::Any || tokens.last() != Some(&Token::Any) {
                tokens.push(token);
            }
        }
        if tokens.is_empty() {
            return Err(Error::new(ErrorKind::InvalidValue, "a pattern can't be empty: no key is"));
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
    fn many_stars_end() {
        let pattern = format!("{}b", "a*".repeat(60));
        assert!(!matches(&pattern, &"a".repeat(255)));
    }

    /// The definition, which takes exponentially long.
    fn slowly(tokens: &[Token], name: &[char]) -> bool {
        match (tokens.split_first(), name.split_first()) {
            (None, _) => name.is_empty(),
            (Some((Token::Any, rest)), _) => (0..=name.len()).any(|at| slowly(rest, &name[at..])),
            (Some((Token::One, rest)), Some((_, name))) => slowly(rest, name),
            (Some((Token::This(wanted), rest)), Some((found, name))) => wanted == found && slowly(rest, name),
            (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn as_defined(pattern in "[ab*?]{1,8}", name in "[ab]{1,8}") {
            let glob: Glob = pattern.parse().unwrap();
            let characters: Vec<char> = name.chars().collect();
            prop_assert_eq!(glob.matches(&Key::new(&name).unwrap()), slowly(&glob.0, &characters));
        }

        #[test]
        fn the_pattern_reads_back(pattern in "[ab*?\\\\]{0,8}c") {
            let glob: Glob = pattern.parse().unwrap();
            prop_assert_eq!(glob.pattern().parse::<Glob>().unwrap(), glob);
        }
    }
}
