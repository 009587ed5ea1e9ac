//! What a JSON document may be: its limits, checked before it is stored or sent.

use std::{io, marker::PhantomData};

use serde::{
    Serialize,
    de::{DeserializeOwned, DeserializeSeed},
};
use serde_json::{Map, Number, Value};

use super::scan::{self, Refused};
use crate::{Error, ErrorKind, Result};

/// How deep arrays and objects may be nested in a credential or a config value: a scalar is 0 deep, `{}` is 1.
pub const MAX_DEPTH: usize = 64;

/// The largest credential, config value (as compact JSON) or cache value, in bytes: 1 MiB.
pub const MAX_VALUE_BYTES: usize = 1 << 20;

/// Checks the depth, and that there is nothing but what comes back as it is.
///
/// An application can switch on serde_json's feature `arbitrary_precision`, which keeps a number's digits. Here it becomes what
/// it is in all other builds: an `i64`, a `u64` or a finite `f64`, so that every build finds the same in a store.
pub(crate) fn check<'v>(values: impl IntoIterator<Item = &'v mut Value>, depth: usize) -> Result<()> {
    values.into_iter().try_for_each(|value| check_one(value, depth))
}

/// The same of an object's fields.
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
            *number = settled(number)?;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The number as it is without `arbitrary_precision`.
fn settled(number: &Number) -> Result<Number> {
    let float = || number.as_f64().and_then(Number::from_f64);
    if number.is_f64() {
        return float().ok_or_else(|| Refused::Number.into());
    }
    match (number.as_u64(), number.as_i64()) {
        (Some(whole), _) => Ok(whole.into()),
        // "-0" is a float.
        (None, Some(0)) => float().ok_or_else(|| Refused::Number.into()),
        (None, Some(whole)) => Ok(whole.into()),
        (None, None) if number.to_string().contains(['.', 'e', 'E']) => Err(Refused::Number.into()),
        (None, None) => Err(Refused::Wide.into()),
    }
}

/// Checks the size of the compact JSON without keeping it.
pub(crate) fn check_size(document: &impl Serialize) -> Result<()> {
    serde_json::to_writer(Room(MAX_VALUE_BYTES), document).map_err(|_| too_large())
}

/// The same for a document that was read from a text of so many bytes.
///
/// Written compactly it is not larger but for its numbers, and those at most eight times: the shortest text of a float has
/// three bytes ("1e9"), the longest that is written 24. So a small text need not be written again to know.
pub(crate) fn check_size_of_read(text: usize, document: &impl Serialize) -> Result<()> {
    if text <= MAX_VALUE_BYTES / 8 { Ok(()) } else { check_size(document) }
}

/// The size of the compact JSON, in bytes.
pub(crate) fn size(document: &impl Serialize) -> usize {
    let mut room = Room(usize::MAX);
    serde_json::to_writer(&mut room, document).expect("JSON with room enough");
    usize::MAX - room.0
}

#[cold]
fn too_deep() -> Error {
    Error::new(ErrorKind::TooLarge, format!("a value is nested at most {MAX_DEPTH} deep, this one is deeper"))
}

#[cold]
pub(crate) fn too_large() -> Error {
    Error::new(ErrorKind::TooLarge, format!("a value has at most {MAX_VALUE_BYTES} bytes, this one has more"))
}

/// A writer that keeps nothing and has so much room.
struct Room(usize);

impl io::Write for Room {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// JSON text as a value. A parser's message has a line and a column, and none of the text.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T> {
    if text.len() > MAX_PARSED_BYTES {
        return Err(too_large());
    }
    parse_any(text)
}

/// The same for text of any length, whose limit is the caller's affair.
pub(crate) fn parse_any<T: DeserializeOwned>(text: &[u8]) -> Result<T> {
    parse_seed(PhantomData::<T>, text)
}

/// The same by a seed.
pub(crate) fn parse_seed<'t, S: DeserializeSeed<'t>>(seed: S, text: &'t [u8]) -> Result<S::Value> {
    let mut parser = serde_json::Deserializer::from_slice(text);
    let parsed = seed.deserialize(&mut parser).and_then(|value| parser.end().map(|()| value));
    let value = parsed.map_err(|error| unreadable(text, &error))?;
    match scan::find(text) {
        None => Ok(value),
        Some((at, refused)) => Err(unstorable(&text[..at], refused)),
    }
}

/// Why a text can't be read.
#[cold]
pub(crate) fn unreadable(text: &[u8], error: &serde_json::Error) -> Error {
    let message = error.to_string();
    // serde_json stops at 128 levels, and has no category for it, nor for a number.
    if message.starts_with("recursion limit") {
        return too_deep();
    }
    let problem = match error.classify() {
        _ if text.trim_ascii().is_empty() => "is empty",
        _ if message.starts_with("number out of range") => {
            "has a number beyond the range of a 64-bit float, which can't be stored"
        }
        serde_json::error::Category::Eof => "ends too early",
        serde_json::error::Category::Data => "is not of the type that is wanted",
        _ => "is not JSON",
    };
    Error::new(
        ErrorKind::InvalidValue,
        format!("the text {problem}, at line {} column {}", error.line(), error.column()),
    )
}

/// What a text says can't be stored. It ends where that ends.
#[cold]
fn unstorable(text: &[u8], refused: Refused) -> Error {
    let line = text.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = text.iter().rev().take_while(|byte| **byte != b'\n').count();
    let message = format!("{}: the text has one at line {line} column {column}", refused.as_str());
    Error::new(ErrorKind::InvalidValue, message)
}

/// Text may be wider than the compact form that counts (indented, escaped), but not without end.
const MAX_PARSED_BYTES: usize = 16 * MAX_VALUE_BYTES;

/// A document as the caller's own type. Serde's messages quote values, so only the place is kept, unprinted.
pub(crate) fn to_typed<T: DeserializeOwned>(document: Value) -> Result<T> {
    serde_path_to_error::deserialize(document).map_err(|error| {
        let wanted = std::any::type_name::<T>();
        let path = error.path().to_string();
        Error::new(
            ErrorKind::InvalidValue,
            format!("the value does not fit `{wanted}`; the error's path says where"),
        )
        .with_path(missing_field(&error).unwrap_or(path))
    })
}

/// The path of a field that is missing: serde names it in its message, and the path ends above it.
fn missing_field(error: &serde_path_to_error::Error<serde_json::Error>) -> Option<String> {
    let message = error.inner().to_string();
    let (name, _) = message.strip_prefix("missing field `")?.split_once('`')?;
    let above = error.path().to_string();
    Some(if above == "." { name.to_owned() } else { format!("{above}.{name}") })
}

/// The caller's own type as JSON.
pub(crate) fn from_typed<T: Serialize + ?Sized>(value: &T) -> Result<Value> {
    serde_json::to_value(value).map_err(|_| {
        let given = std::any::type_name::<T>();
        Error::new(ErrorKind::InvalidValue, format!("`{given}` can't be written as JSON"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_is_written_over_eight_times_as_long() {
        for digits in ["1", "9", "-1", "1.5", "-9.9", "12345678901234567", "0.1", "-0"] {
            for exponent in -330..310 {
                let text = format!("{digits}e{exponent}");
                if let Ok(value) = parse::<Value>(text.as_bytes()) {
                    assert!(value.to_string().len() <= 8 * text.len(), "{text}");
                }
            }
        }
        // So many of the worst, and just below the text that is not written again.
        let text = format!("[{}1e9]", "1e15,".repeat(MAX_VALUE_BYTES / 8 / 5 - 2));
        assert!(text.len() <= MAX_VALUE_BYTES / 8);
        check_size(&parse::<Value>(text.as_bytes()).unwrap()).unwrap();
    }
}
