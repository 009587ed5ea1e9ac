//! Finds numbers and names in JSON text that serde_json would silently read as something else.

use std::{cell::Cell, fmt, io, sync::LazyLock};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::{Error, ErrorKind};

/// The prefix of the names that serde_json reserves for its own use.
const PRIVATE: &str = "$serde_json::private::";

/// Whether serde_json gives objects with such a name another meaning. It does if the application has enabled
/// its feature `arbitrary_precision` or `raw_value`.
pub(super) fn has_private_names() -> bool {
    static HAS: LazyLock<bool> = LazyLock::new(|| {
        ["Number", "RawValue"].into_iter().any(|name| {
            let text = format!(r#"{{"{PRIVATE}{name}":"1"}}"#);
            !serde_json::from_str(&text).is_ok_and(|read: Value| read.is_object())
        })
    });
    *HAS
}

/// Whether serde_json would read an object with this name as something else.
pub(super) fn is_private(name: &str) -> bool {
    name.starts_with(PRIVATE) && has_private_names()
}

/// Content that can't be stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Refused {
    /// A whole number outside `i64` and `u64`, which serde_json reads as the nearest float.
    WholeNumber,
    /// A number that is too large for a float.
    Float,
    /// A name that serde_json reserves.
    Name,
}

impl Refused {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::WholeNumber => "whole numbers beyond 64 bits can't be stored",
            Self::Float => "numbers beyond the range of a 64-bit float can't be stored",
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

/// Finds the first content that can't be stored in a text of valid JSON. The position is that of the first
/// byte after it.
pub(super) fn find(text: &[u8]) -> Option<(usize, Refused)> {
    // Almost no text needs the scan of every byte.
    if !has_long_number(text) && !has_private_names() {
        return None;
    }
    let mut scan = Scan::default();
    text.iter().chain(b" ").enumerate().find_map(|(at, byte)| scan.step(*byte).map(|refused| (at, refused)))
}

/// Whether the text has as many digits in a row as the smallest whole number that can't be stored. Looks at
/// every 19th byte, and at others only next to a digit.
fn has_long_number(text: &[u8]) -> bool {
    const DIGITS: usize = "9223372036854775808".len();
    let mut last = DIGITS - 1;
    while let Some(byte) = text.get(last) {
        if !byte.is_ascii_digit() {
            last += DIGITS;
            continue;
        }
        let before = text[..last].iter().rposition(|byte| !byte.is_ascii_digit());
        let first = before.map_or(0, |before| before + 1);
        if last - first + 1 >= DIGITS {
            return true;
        }
        last = first + DIGITS - 1;
    }
    false
}

/// A scanner of JSON text, one byte at a time.
#[derive(Default)]
struct Scan(State);

#[derive(Clone, Copy, Default)]
enum State {
    #[default]
    Other,
    /// In a string. The number counts the bytes that match [`PRIVATE`] so far; `None` if they do not.
    String(Option<usize>),
    Escape,
    /// After a string that begins with [`PRIVATE`] and may be a name.
    Private,
    /// In a number that is whole so far. `None`: its magnitude exceeds `u64`.
    Whole {
        is_negative: bool,
        magnitude: Option<u64>,
    },
    Float,
}

impl Scan {
    /// Takes the next byte. Returns content that can't be stored if it ends with this byte or the byte
    /// before.
    fn step(&mut self, byte: u8) -> Option<Refused> {
        let before = self.0;
        self.0 = match (before, byte) {
            (State::String(_), b'\\') => State::Escape,
            (State::String(Some(matched)), b'"') if matched == PRIVATE.len() => State::Private,
            (State::String(_), b'"') => State::Other,
            (State::String(Some(matched)), _) if matched < PRIVATE.len() => {
                State::String((PRIVATE.as_bytes()[matched] == byte).then_some(matched + 1))
            }
            (State::String(matched), _) => State::String(matched),
            (State::Escape, _) => State::String(None),
            (State::Private, b' ' | b'\t' | b'\n' | b'\r') => State::Private,
            (State::Whole { .. }, b'.' | b'e' | b'E') => State::Float,
            (State::Float, b'0'..=b'9' | b'e' | b'E' | b'+' | b'-') => State::Float,
            (State::Whole { is_negative, magnitude }, b'0'..=b'9') => {
                let magnitude =
                    magnitude.and_then(|tens| tens.checked_mul(10)?.checked_add((byte - b'0').into()));
                State::Whole { is_negative, magnitude }
            }
            (_, b'-') => State::Whole { is_negative: true, magnitude: Some(0) },
            (_, b'0'..=b'9') => State::Whole { is_negative: false, magnitude: Some((byte - b'0').into()) },
            (_, b'"') => State::String(Some(0)),
            _ => State::Other,
        };
        match (before, self.0) {
            (State::Whole { .. }, State::Whole { .. } | State::Float) => None,
            (State::Whole { is_negative, magnitude }, _) => {
                let max = if is_negative { i64::MIN.unsigned_abs() } else { u64::MAX };
                magnitude.is_none_or(|magnitude| magnitude > max).then_some(Refused::WholeNumber)
            }
            (State::Private, _) if byte == b':' && has_private_names() => Some(Refused::Name),
            _ => None,
        }
    }
}

/// A reader of JSON text that puts content that can't be stored into `seen`.
///
/// serde_json reads byte by byte, so the content belongs to the value that is being parsed.
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
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        for byte in &buffer[..count] {
            if let Some(refused) = self.scan.step(*byte) {
                self.seen.set(Some(refused));
            }
        }
        Ok(count)
    }
}

/// Reads the members of an object from a [`Watched`] reader, one after another. `null` counts as an empty
/// object.
pub(crate) struct Members<'c, F> {
    pub(crate) seen: &'c Cell<Option<Refused>>,
    /// Takes a name, its value, and content of the value that can't be stored.
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
    fn whole_numbers_beyond_64_bits_are_found() {
        for large in [
            "18446744073709551616",
            "18446744073709551617",
            "-9223372036854775809",
            "99999999999999999999",
            "-18446744073709551616",
            "100000000000000000000000000000000000000000000",
        ] {
            for text in [
                large.to_owned(),
                format!("[1.5,{large}]"),
                format!("{{\"a\\\"\":\n{large}\n}}"),
                format!("[\"\\\\\",{large} ]"),
            ] {
                assert_eq!(found(&text), Some(Refused::WholeNumber), "{text}");
            }
            for text in [
                format!("\"{large}\""),
                format!("{large}.0"),
                format!("{large}e1"),
                format!("[{large}E-2]"),
                format!("0.{large}").replace('-', ""),
                format!("1e-{large}").replace("--", "-"),
                format!("{{\"\\\"{large}\":1}}"),
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
    fn digits_in_a_row_are_found_at_every_position() {
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
