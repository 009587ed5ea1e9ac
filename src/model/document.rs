//! The limits of JSON documents, which are checked before a document is stored or sent.

use std::{io, marker::PhantomData};

use serde::{
    Deserializer, Serialize,
    de::{DeserializeOwned, DeserializeSeed},
};
use serde_json::{Map, Number, Value};

use super::scan::{self, Refused};
use crate::{Error, ErrorKind, Result};

/// How deep arrays and objects may be nested in a credential or a config value. A scalar has 0 levels, `{}`
/// has 1.
pub const MAX_DEPTH: usize = 64;

/// The maximum size of a credential, a config value (both as compact JSON) or a cache value: 1 MiB.
pub const MAX_VALUE_BYTES: usize = 1 << 20;

/// The bytes that some editors put before UTF-8 text, mostly on Windows.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A text without a byte order mark.
pub(crate) fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
}

/// Checks the depth, and that every number and name can be stored and read back equal.
///
/// An application can switch on serde_json's feature `arbitrary_precision`, which keeps a number's digits.
/// This function turns such a number into the `i64`, `u64` or finite `f64` that it is in all other builds, so
/// that all builds read equal values from a store.
pub(crate) fn check<'v>(values: impl IntoIterator<Item = &'v mut Value>, depth: usize) -> Result<()> {
    values.into_iter().try_for_each(|value| check_one(value, depth))
}

/// As [`check`], for an object's fields.
pub(crate) fn check_fields(fields: &mut Map<String, Value>, depth: usize) -> Result<()> {
    if fields.keys().any(|name| scan::is_private(name)) {
        return Err(Refused::Name.into());
    }
    check(fields.values_mut(), depth)
}

fn check_one(value: &mut Value, above: usize) -> Result<()> {
    let depth = above + 1;
    match value {
        Value::Array(_) | Value::Object(_) if depth > MAX_DEPTH => Err(too_deep()),
        Value::Array(items) => check(items, depth),
        Value::Object(fields) => check_fields(fields, depth),
        Value::Number(number) => {
            *number = normalized(number)?;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The number as serde_json reads it without `arbitrary_precision`.
fn normalized(number: &Number) -> Result<Number> {
    let float = || number.as_f64().and_then(Number::from_f64);
    if number.is_f64() {
        return float().ok_or_else(|| Refused::Float.into());
    }
    match (number.as_u64(), number.as_i64()) {
        (Some(whole), _) => Ok(whole.into()),
        // "-0" is a float.
        (None, Some(0)) => float().ok_or_else(|| Refused::Float.into()),
        (None, Some(whole)) => Ok(whole.into()),
        (None, None) if number.to_string().contains(['.', 'e', 'E']) => Err(Refused::Float.into()),
        (None, None) => Err(Refused::WholeNumber.into()),
    }
}

/// Checks the size of the compact JSON.
pub(crate) fn check_size(document: &impl Serialize) -> Result<()> {
    serde_json::to_writer(BytesLeft(MAX_VALUE_BYTES), document).map_err(|_| too_large())
}

/// Checks the size of a document that was parsed from a text of `text_bytes` bytes.
///
/// Compact JSON can be larger than its source only because of numbers, and those grow by a factor of 8 at
/// most: the shortest text of a float has three bytes ("1e9"), and the longest that serde_json writes has 24.
/// A small text therefore needs no check.
pub(crate) fn check_parsed_size(text_bytes: usize, document: &impl Serialize) -> Result<()> {
    if text_bytes <= MAX_VALUE_BYTES / 8 { Ok(()) } else { check_size(document) }
}

/// The size of the compact JSON, in bytes.
pub(crate) fn size(document: &impl Serialize) -> usize {
    let mut left = BytesLeft(usize::MAX);
    serde_json::to_writer(&mut left, document).expect("a document is smaller than the address space");
    usize::MAX - left.0
}

#[cold]
fn too_deep() -> Error {
    Error::new(ErrorKind::TooLarge, format!("a value may be nested at most {MAX_DEPTH} levels deep"))
}

#[cold]
pub(crate) fn too_large() -> Error {
    Error::new(ErrorKind::TooLarge, format!("a value may have at most {MAX_VALUE_BYTES} bytes"))
}

/// A writer that discards its input and fails after this number of bytes.
struct BytesLeft(usize);

impl io::Write for BytesLeft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Parses JSON text of at most [`MAX_PARSED_BYTES`]. An error names the line and the column, and quotes
/// nothing.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T> {
    if text.len() > MAX_PARSED_BYTES {
        return Err(too_large());
    }
    parse_any(text)
}

/// As [`parse`], without a limit: the caller has to limit the text.
pub(crate) fn parse_any<T: DeserializeOwned>(text: &[u8]) -> Result<T> {
    parse_seed(PhantomData::<T>, text)
}

/// As [`parse_any`], with a seed.
pub(crate) fn parse_seed<'t, S: DeserializeSeed<'t>>(seed: S, text: &'t [u8]) -> Result<S::Value> {
    let mut parser = serde_json::Deserializer::from_slice(text);
    let parsed = seed.deserialize(&mut parser).and_then(|value| parser.end().map(|()| value));
    let value = parsed.map_err(|error| unreadable(text, &error))?;
    match scan::find(text) {
        None => Ok(value),
        Some((at, refused)) => Err(unstorable(&text[..at], refused)),
    }
}

/// The error for a text that serde_json can't parse.
#[cold]
pub(crate) fn unreadable(text: &[u8], error: &serde_json::Error) -> Error {
    let message = error.to_string();
    // serde_json has no category for more than 128 levels, nor for a number out of range.
    if message.starts_with("recursion limit") {
        return too_deep();
    }
    let problem = match error.classify() {
        _ if text.trim_ascii().is_empty() => "is empty",
        _ if message.starts_with("number out of range") => {
            "has a number beyond the range of a 64-bit float, which can't be stored"
        }
        serde_json::error::Category::Eof => "ends too early",
        serde_json::error::Category::Data => "does not have the expected type",
        _ => "is not JSON",
    };
    Error::new(
        ErrorKind::InvalidValue,
        format!("the text {problem}, at line {} column {}", error.line(), error.column()),
    )
}

/// The error for a number or a name that can't be stored. `text` ends with it.
#[cold]
fn unstorable(text: &[u8], refused: Refused) -> Error {
    let line = text.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = text.iter().rev().take_while(|byte| **byte != b'\n').count();
    let message = format!("{}: the text has one at line {line} column {column}", refused.as_str());
    Error::new(ErrorKind::InvalidValue, message)
}

/// The maximum size of a text, which may be larger than its compact JSON because of indentation and escapes.
const MAX_PARSED_BYTES: usize = 16 * MAX_VALUE_BYTES;

/// Deserializes a document. Serde's messages quote values, so only the path is kept, and it is not printed.
///
/// To track the path costs a multiple of the deserialization, so it is done once more for an error only.
pub(crate) fn to_typed<'d, T, D>(document: D) -> Result<T>
where
    T: DeserializeOwned,
    D: Deserializer<'d, Error = serde_json::Error> + Copy,
{
    T::deserialize(document).or_else(|_| serde_path_to_error::deserialize(document)).map_err(|error| {
        let expected = std::any::type_name::<T>();
        let path = error.path().to_string();
        Error::new(
            ErrorKind::InvalidValue,
            format!("the value does not fit `{expected}`; `Error::path` says where"),
        )
        .with_path(missing_field(&error).unwrap_or(path))
    })
}

/// The path of a missing field. Serde names the field only in its message, and the error's path ends at its
/// parent.
fn missing_field(error: &serde_path_to_error::Error<serde_json::Error>) -> Option<String> {
    let message = error.inner().to_string();
    let (name, _) = message.strip_prefix("missing field `")?.split_once('`')?;
    let parent = error.path().to_string();
    Some(if parent == "." { name.to_owned() } else { format!("{parent}.{name}") })
}

/// Serializes a value to JSON.
pub(crate) fn from_typed<T: Serialize + ?Sized>(value: &T) -> Result<Value> {
    serde_json::to_value(value).map_err(|_| {
        let given = std::any::type_name::<T>();
        Error::new(ErrorKind::InvalidValue, format!("`{given}` can't be serialized to JSON"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_grows_by_more_than_a_factor_of_eight() {
        for digits in ["1", "9", "-1", "1.5", "-9.9", "12345678901234567", "0.1", "-0"] {
            for exponent in -330..310 {
                let text = format!("{digits}e{exponent}");
                if let Ok(value) = parse::<Value>(text.as_bytes()) {
                    assert!(value.to_string().len() <= 8 * text.len(), "{text}");
                }
            }
        }
        // Only numbers that grow most, in a text just small enough not to be checked.
        let text = format!("[{}1e9]", "1e15,".repeat(MAX_VALUE_BYTES / 8 / 5 - 2));
        assert!(text.len() <= MAX_VALUE_BYTES / 8);
        check_size(&parse::<Value>(text.as_bytes()).unwrap()).unwrap();
    }
}
