//! Keys as file names: readable, and injective even on a file system that folds case or Unicode forms.
//!
//! - ASCII letters, digits, `- _ . @ + = ,` and Chinese characters are unchanged; other characters are their
//!   UTF-8 bytes as `%XX`. So are a leading dot, and the first letter of a Windows device name (`con`).
//! - Capital letters add `~` and their bitmap in hexadecimal: `Alice` is `Alice~8.json`.
//! - A name of over [`PART`] bytes is split: all parts but the last are directories whose names end with `~`,
//!   and all but the first begin with `~`.
//!
//! Legacy data has plain names: a name that is not in this form is the key itself.

use crate::{Key, history::DocumentKind};

/// The longest part of a split name: most file systems allow 255 bytes.
const PART: usize = 200;

const SUFFIX: &str = ".json";

impl DocumentKind {
    /// The directory of its files.
    pub(super) const fn directory(self) -> &'static str {
        match self {
            Self::Credential => "credentials",
            Self::Config => "config",
        }
    }
}

/// The file of a key, below the directory of its kind.
pub(super) fn encode(key: &Key) -> String {
    let key = key.as_str();
    let mut text = String::with_capacity(key.len() + SUFFIX.len());
    for (at, character) in key.char_indices() {
        let is_first = at == 0;
        let is_escaped = match character {
            '.' => is_first,
            'a'..='z' | 'A'..='Z' => is_first && is_device(key),
            '0'..='9' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' => false,
            other => !"-_@+=,".contains(other),
        };
        if is_escaped {
            let mut bytes = [0; 4];
            for byte in character.encode_utf8(&mut bytes).bytes() {
                text.push_str(&format!("%{byte:02X}"));
            }
        } else {
            text.push(character);
        }
    }
    if let Some(capitals) = capitals(key) {
        text.push('~');
        text.push_str(&capitals);
    }
    let mut rest = text.as_str();
    let mut path = String::with_capacity(text.len() + SUFFIX.len());
    while rest.len() > PART {
        let end = (0..=PART).rev().find(|at| rest.is_char_boundary(*at)).unwrap_or(PART);
        let (part, after) = rest.split_at(end);
        path.push_str(part);
        path.push_str("~/~");
        rest = after;
    }
    path.push_str(rest);
    path.push_str(SUFFIX);
    path
}

/// The plain name of a key's legacy file, unless it is the encoded name of this or another key.
pub(super) fn plain(key: &Key) -> Option<String> {
    let name = format!("{}{SUFFIX}", key.as_str());
    (!name.contains('/') && decode(&name).as_ref() == Some(key) && name != encode(key)).then_some(name)
}

/// The key of a file in its kind's directory. None for a file that is not a record.
pub(super) fn decode(path: &str) -> Option<Key> {
    let stem = path.strip_suffix(SUFFIX)?;
    if let Some(key) = unescape(&stem.replace("~/~", "")).filter(|key| encode(key) == path) {
        return Some(key);
    }
    if stem.contains('/') { None } else { Key::new(stem).ok() }
}

/// The kind and the key of a file in the repository.
pub(super) fn record_of(path: &str) -> Option<(DocumentKind, Key)> {
    let (directory, name) = path.split_once('/')?;
    let kind = [DocumentKind::Credential, DocumentKind::Config]
        .into_iter()
        .find(|kind| kind.directory() == directory)?;
    Some((kind, decode(name)?))
}

fn unescape(text: &str) -> Option<Key> {
    let text = text.split_once('~').map_or(text, |(text, _)| text);
    let decoded = crate::codec::decode(text).ok()?;
    Key::new(&decoded).ok()
}

/// The bitmap of the key's capital letters: one bit per letter, four per hexadecimal digit, without trailing
/// zeros.
fn capitals(key: &str) -> Option<String> {
    let letters: Vec<bool> =
        key.bytes().filter(u8::is_ascii_alphabetic).map(|letter| letter.is_ascii_uppercase()).collect();
    let last = letters.iter().rposition(|is_capital| *is_capital)?;
    let digits = letters[..=last].chunks(4).map(|bits| {
        let value =
            bits.iter().enumerate().fold(0_u32, |value, (at, bit)| value | u32::from(*bit) << (3 - at));
        char::from_digit(value, 16).unwrap_or('0')
    });
    Some(digits.collect())
}

/// Whether Windows treats the name as a device, which it does up to the first dot.
fn is_device(key: &str) -> bool {
    let stem = key.split('.').next().unwrap_or(key).to_ascii_lowercase();
    let numbered = stem.strip_suffix(|each: char| each.is_ascii_digit());
    ["con", "prn", "aux", "nul"].contains(&&*stem)
        || numbered.is_some_and(|name| ["com", "lpt"].contains(&name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(key: &str) -> String {
        encode(&Key::new(key).unwrap())
    }

    #[test]
    fn names_are_readable_and_safe() {
        for (key, wanted) in [
            ("alice@example.com-003", "alice@example.com-003.json"),
            ("Alice", "Alice~8.json"),
            ("GEMINI_KEY", "GEMINI_KEY~ff8.json"),
            ("团队-008", "团队-008.json"),
            ("a:b", "a%3Ab.json"),
            ("../x", "%2E.%2Fx.json"),
            (".git", "%2Egit.json"),
            (".", "%2E.json"),
            ("con", "%63on.json"),
            ("Com1.txt", "%43om1.txt~8.json"),
            ("contact", "contact.json"),
            ("-rf", "-rf.json"),
            ("100%~", "100%25%7E.json"),
            ("\u{e9}", "%C3%A9.json"),
            ("e\u{301}", "e%CC%81.json"),
            (" ", "%20.json"),
        ] {
            assert_eq!(file(key), wanted);
        }
    }

    #[test]
    fn long_names_are_split() {
        for key in ["x".repeat(255), "团".repeat(85), "*".repeat(255), "AbC/".repeat(60)] {
            let path = file(&key);
            assert!(path.split('/').all(|part| part.len() <= 255), "{path}");
            assert_eq!(decode(&path).unwrap().as_str(), key);
        }
    }

    #[test]
    fn plain_names_of_legacy_data_are_read() {
        for (path, key) in [
            ("assembly_plan:nightly.json", "assembly_plan:nightly"),
            ("Alice.json", "Alice"),
            ("x.json.json", "x.json"),
            ("a b.json", "a b"),
            ("100%.json", "100%"),
        ] {
            assert_eq!(decode(path).unwrap().as_str(), key);
        }
        for foreign in ["README.md", ".json", "a/b.json", "a\nb.json"] {
            assert!(decode(foreign).is_none(), "{foreign}");
        }
        let plain = |key: &str| plain(&Key::new(key).unwrap());
        assert_eq!(plain("Alice").as_deref(), Some("Alice.json"));
        assert_eq!(plain("alice"), None);
        assert_eq!(plain("a%20b"), None, "that is the file of `a b`");
    }

    fn key() -> impl Strategy<Value = String> {
        prop_oneof![
            "[^\\p{Cc}]{1,40}",
            "[aAbB.%~/:]{1,12}",
            "(con|CON|Com1|\\.git)[.a]{0,2}",
            "[A团%]{60,80}"
        ]
    }

    proptest! {
        #[test]
        fn reversible_and_injective_where_case_is_folded(left in key(), right in key()) {
            let (left, right) = (Key::new(&left).unwrap(), Key::new(&right).unwrap());
            let (one, other) = (encode(&left), encode(&right));
            prop_assert_eq!(&decode(&one).unwrap(), &left);
            prop_assert_eq!(one.to_lowercase() == other.to_lowercase(), left == right);
            for part in one.split('/') {
                prop_assert!(part.len() <= 255 && !part.starts_with('.') && !part.ends_with(['.', ' ']));
                prop_assert!(part.chars().all(|each| !r#"\:*?"<>|"#.contains(each) && !each.is_control()));
            }
        }
    }
}
