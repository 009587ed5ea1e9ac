//! What a text of JSON says and serde_json would read as something else, without an error.

use std::{cell::Cell, fmt, io, sync::LazyLock};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::{Error, ErrorKind};

/// How the names begin that serde_json has for its own use.
const PRIVATE: &str = "$serde_json::private::";

/// Whether serde_json takes objects with such a name for something else: it does where the application has switched on its
/// feature `arbitrary_precision` or `raw_value`.
pub(super) fn has_private_names() -> bool {
    static HAS: LazyLock<bool> = LazyLock::new(|| {
        ["Number", "RawValue"].into_iter().any(|name| {
            let text = format!(r#"{{"{PRIVATE}{name}":"1"}}"#);
            !serde_json::from_str(&text).is_ok_and(|read: Value| read.is_object())
        })
    });
    *HAS
}

/// Whether an object with this name would be read as something else.
pub(super) fn is_private(name: &str) -> bool {
    name.starts_with(PRIVATE) && has_private_names()
}

/// What can't be stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Refused {
    /// A whole number that neither `i64` nor `u64` holds: serde_json makes it the nearest float.
    Wide,
    /// Another number that is none of ours: one that is too large for a float.
    Number,
    /// A name that serde_json takes for its own.
    Name,
}

impl Refused {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Wide => "whole numbers beyond 64 bits can't be stored",
            Self::Number => "numbers beyond the range of a 64-bit float can't be stored",
            Self::Name => {
                "an object with a name that begins with `$serde_json::private::` can't be stored by a build with serde_json's feature `arbitrary_precision` or `raw_value`"
            }
        }
    }
}

impl From<Refused> for Error {
    #[cold]
    fn from(refused: Refused) -> Self {
        Self::new(ErrorKind::InvalidValue, refused.as_str())
    }
}

/// Where in a text something stands that can't be stored. The text is JSON.
pub(super) fn find(text: &[u8]) -> Option<(usize, Refused)> {
    // Almost no text is looked at byte by byte.
    if !has_long_number(text) && !has_private_names() {
        return None;
    }
    let mut scan = Scan::default();
    text.iter().chain(b" ").enumerate().find_map(|(at, byte)| scan.step(*byte).map(|refused| (at, refused)))
}

/// Whether there are as many digits in a row as the smallest of these numbers has.
fn has_long_number(text: &[u8]) -> bool {
    const BEFORE: usize = "9223372036854775808".len() - 1;
    let mut last = BEFORE;
    while let Some(byte) = text.get(last) {
        if !byte.is_ascii_digit() {
            last += BEFORE + 1;
            continue;
        }
        let other = text[..last].iter().rposition(|byte| !byte.is_ascii_digit());
        let first = other.map_or(0, |other| other + 1);
        if last - first >= BEFORE {
            return true;
        }
        last = first + BEFORE;
    }
    false
}

/// Follows a text of JSON.
#[derive(Default)]
struct Scan(At);

#[derive(Clone, Copy, Default)]
enum At {
    #[default]
    Else,
    /// In a string, of which so many bytes are those of [`PRIVATE`]; none if it is another one.
    Text(Option<usize>),
    Escape,
    /// Behind a string that begins with [`PRIVATE`]. It may be a name.
    Private,
    /// In a number that is whole so far. No magnitude: it is more than `u64` holds.
    Whole {
        is_negative: bool,
        magnitude: Option<u64>,
    },
    Float,
}

impl Scan {
    /// What ends with this byte, or before it.
    fn step(&mut self, byte: u8) -> Option<Refused> {
        let before = self.0;
        self.0 = match (before, byte) {
            (At::Text(_), b'\\') => At::Escape,
            (At::Text(Some(matched)), b'"') if matched == PRIVATE.len() => At::Private,
            (At::Text(_), b'"') => At::Else,
            (At::Text(Some(matched)), _) if matched < PRIVATE.len() => {
                At::Text((PRIVATE.as_bytes()[matched] == byte).then_some(matched + 1))
            }
            (At::Text(matched), _) => At::Text(matched),
            (At::Escape, _) => At::Text(None),
            (At::Private, b' ' | b'\t' | b'\n' | b'\r') => At::Private,
            (At::Whole { .. }, b'.' | b'e' | b'E') => At::Float,
            (At::Float, b'0'..=b'9' | b'e' | b'E' | b'+' | b'-') => At::Float,
            (At::Whole { is_negative, magnitude }, b'0'..=b'9') => {
                let magnitude =
                    magnitude.and_then(|tens| tens.checked_mul(10)?.checked_add((byte - b'0').into()));
                At::Whole { is_negative, magnitude }
            }
            (_, b'-') => At::Whole { is_negative: true, magnitude: Some(0) },
            (_, b'0'..=b'9') => At::Whole { is_negative: false, magnitude: Some((byte - b'0').into()) },
            (_, b'"') => At::Text(Some(0)),
            _ => At::Else,
        };
        match (before, self.0) {
            (At::Whole { .. }, At::Whole { .. } | At::Float) => None,
            (At::Whole { is_negative, magnitude }, _) => {
                let most = if is_negative { i64::MIN.unsigned_abs() } else { u64::MAX };
                magnitude.is_none_or(|magnitude| magnitude > most).then_some(Refused::Wide)
            }
            (At::Private, _) if byte == b':' && has_private_names() => Some(Refused::Name),
            _ => None,
        }
    }
}

/// JSON that is read in pieces, and what was in the last piece that can't be stored.
///
/// serde_json takes its bytes one by one, so what was read of a value is what it has seen of it.
pub(crate) struct Watched<'c, R> {
    input: R,
    scan: Scan,
    seen: &'c Cell<Option<Refused>>,
}

impl<'c, R> Watched<'c, R> {
    pub(crate) fn new(input: R, seen: &'c Cell<Option<Refused>>) -> Self {
        Self { input, scan: Scan::default(), seen }
    }
}

impl<R: io::Read> io::Read for Watched<'_, R> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(room)?;
        for byte in &room[..count] {
            if let Some(refused) = self.scan.step(*byte) {
                self.seen.set(Some(refused));
            }
        }
        Ok(count)
    }
}

/// Reads the members of an object from what is [`Watched`], one after the other. Null has none.
pub(crate) struct Members<'c, F> {
    pub(crate) seen: &'c Cell<Option<Refused>>,
    /// Takes a name, its value, and what the value has that can't be stored.
    pub(crate) each: F,
}

impl<'de, F: FnMut(String, Value, Option<Refused>)> DeserializeSeed<'de> for Members<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, F: FnMut(String, Value, Option<Refused>)> Visitor<'de> for Members<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key()? {
            self.seen.set(None);
            let value = map.next_value()?;
            (self.each)(name, value, self.seen.take());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Option<Refused> {
        find(text.as_bytes()).map(|(_, refused)| refused)
    }

    #[test]
    fn whole_numbers_that_64_bits_do_not_hold_are_found() {
        for wide in [
            "18446744073709551616",
            "18446744073709551617",
            "-9223372036854775809",
            "99999999999999999999",
            "-18446744073709551616",
            "100000000000000000000000000000000000000000000",
        ] {
            for text in [
                wide.to_owned(),
                format!("[1.5,{wide}]"),
                format!("{{\"a\\\"\":\n{wide}\n}}"),
                format!("[\"\\\\\",{wide} ]"),
            ] {
                assert_eq!(found(&text), Some(Refused::Wide), "{text}");
            }
            for text in [
                format!("\"{wide}\""),
                format!("{wide}.0"),
                format!("{wide}e1"),
                format!("[{wide}E-2]"),
                format!("0.{wide}").replace('-', ""),
                format!("1e-{wide}").replace("--", "-"),
                format!("{{\"\\\"{wide}\":1}}"),
            ] {
                assert_eq!(found(&text), None, "{text}");
            }
        }
        for fits in
            ["18446744073709551615", "-9223372036854775808", "9223372036854775808", "0", "-1", "[]", ""]
        {
            assert_eq!(found(fits), None, "{fits}");
        }
    }

    #[test]
    fn digits_in_a_row_are_found_wherever_they_stand() {
        for before in 0..60 {
            for digits in [0, 1, 17, 18, 19, 20, 40] {
                for after in [0, 1, 18, 19, 40] {
                    let text = format!("{}{}{}", "x".repeat(before), "9".repeat(digits), "x".repeat(after));
                    assert_eq!(has_long_number(text.as_bytes()), digits >= 19, "{text}");
                    let text = format!("{}{text}", "123456789012345678.".repeat(before % 3));
                    assert_eq!(has_long_number(text.as_bytes()), digits >= 19, "{text}");
                }
            }
        }
    }
}
