//! Code that the targets share: JSON values generated from bytes, and independent checks of the limits.

use gateway_storage::{Error, MAX_DEPTH, MAX_VALUE_BYTES};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use serde_json::{Map, Value};

/// A JSON value generated from these bytes: extreme numbers, NUL, any nesting, sizes around the limit.
pub fn value(bytes: &mut Unstructured<'_>) -> Result<Value> {
    let mut value = part(bytes, 4)?;
    // Rare because it is slow, and never chosen when the bytes have run out, since they then read as 0.
    if bytes.arbitrary::<u8>()? == u8::MAX {
        value = Value::Array(vec![value, "x".repeat(MAX_VALUE_BYTES - bytes.int_in_range(0..=64)?).into()]);
    }
    for _ in 0..bytes.int_in_range(0..=MAX_DEPTH + 2)? {
        value = match bytes.arbitrary()? {
            true => Value::Array(vec![value]),
            false => Value::Object(Map::from_iter([(name(bytes)?, value)])),
        };
    }
    Ok(value)
}

fn part(bytes: &mut Unstructured<'_>, depth: u8) -> Result<Value> {
    Ok(match bytes.int_in_range(0..=if depth == 0 { 5 } else { 7 })? {
        0 => Value::Null,
        1 => Value::Bool(bytes.arbitrary()?),
        2 => bytes.arbitrary::<u64>()?.into(),
        3 => bytes.arbitrary::<i64>()?.into(),
        4 => bytes.arbitrary::<f64>()?.into(),
        5 => name(bytes)?.into(),
        6 => Value::Array(
            (0..bytes.int_in_range(0..=4)?).map(|_: u8| part(bytes, depth - 1)).collect::<Result<_>>()?,
        ),
        _ => Value::Object(object(bytes, depth - 1)?),
    })
}

fn object(bytes: &mut Unstructured<'_>, depth: u8) -> Result<Map<String, Value>> {
    (0..bytes.int_in_range(0..=4)?).map(|_: u8| Ok((name(bytes)?, part(bytes, depth)?))).collect()
}

fn name(bytes: &mut Unstructured<'_>) -> Result<String> {
    bytes.arbitrary::<&str>().map(str::to_owned)
}

/// Whether a value may be stored. The library decides it with other code.
pub fn is_within_limits(value: &Value) -> bool {
    depth(value) <= MAX_DEPTH && value.to_string().len() <= MAX_VALUE_BYTES
}

/// Whether a text has an integer beyond 64 bits. The library decides it with other code.
pub fn has_bigint(text: &[u8]) -> bool {
    let (mut at, mut in_string) = (0, false);
    while at < text.len() {
        match text[at] {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            b'-' | b'0'..=b'9' if !in_string => {
                let is_part = |byte: &&u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                let length = text[at..].iter().take_while(is_part).count();
                let number = std::str::from_utf8(&text[at..at + length]).unwrap();
                let is_whole = !number.contains(['.', 'e', 'E']);
                if is_whole && number.parse::<i64>().is_err() && number.parse::<u64>().is_err() {
                    return true;
                }
                at += length;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    false
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Equal to the last bit. To `==` 0.0 equals -0.0.
pub fn is_same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => {
            let bits = |number: &serde_json::Number| number.as_f64().map(f64::to_bits);
            left == right && bits(left) == bits(right)
        }
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| is_same(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left
                    .iter()
                    .zip(right)
                    .all(|((name, left), (other, right))| name == other && is_same(left, right))
        }
        _ => left == right,
    }
}

/// A word that no message of the library contains.
const SECRET: &str = "Qx7Zk9Wv";

/// The input with the secret inserted, at a position that depends on the input.
pub fn with_secret(input: &[u8]) -> Vec<u8> {
    let at = input.iter().fold(0, |sum, byte| sum + usize::from(*byte)) % (input.len() + 1);
    [&input[..at], SECRET.as_bytes(), &input[at..]].concat()
}

/// Panics if an error or one of its causes quotes the secret.
pub fn assert_silent(error: &Error) {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        let text = format!("{error} {error:?}");
        assert!(!text.contains(SECRET), "quotes its input: {text}");
        cause = error.source();
    }
}
