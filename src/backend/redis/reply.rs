//! Converts replies. Errors never quote a reply.

use redis::Value;

use super::error;
use crate::{
    Error, ErrorKind, Key, Result, UsageRecord, backend::remote::Effect, codec::decode_key, error::Kind,
};

/// The reply, or the server's error.
pub(super) fn checked(reply: Value) -> Result<Value> {
    match reply {
        Value::ServerError(error) => Err(error::of_reply(&error)),
        reply => Ok(reply),
    }
}

/// A string, or nil.
pub(super) fn bytes(reply: Value) -> Result<Option<Vec<u8>>> {
    match reply {
        Value::Nil => Ok(None),
        Value::BulkString(bytes) => Ok(Some(bytes)),
        other => Err(unexpected(other, Effect::Read)),
    }
}

/// The `OK` of a write.
pub(super) fn done(reply: Value) -> Result<()> {
    match reply {
        Value::Okay => Ok(()),
        other => Err(unexpected(other, Effect::Write)),
    }
}

/// The number that a write returns.
pub(super) fn number(reply: Value) -> Result<i64> {
    match reply {
        Value::Int(number) => Ok(number),
        other => Err(unexpected(other, Effect::Write)),
    }
}

/// Not found, if a command deleted nothing.
pub(super) fn deleted(kind: Kind, key: &Key, reply: Value) -> Result<()> {
    if number(reply)? == 0 { Err(Error::not_found(kind, key)) } else { Ok(()) }
}

pub(super) fn list(reply: Value) -> Result<Vec<Value>> {
    match reply {
        Value::Array(items) | Value::Set(items) => Ok(items),
        other => Err(unexpected(other, Effect::Read)),
    }
}

/// The fields of a hash and their values.
pub(super) fn fields(reply: Value) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let Value::Map(fields) = reply else { return Err(unexpected(reply, Effect::Read)) };
    fields
        .into_iter()
        .map(|field| match field {
            (Value::BulkString(name), Value::BulkString(value)) => Ok((name, value)),
            _ => Err(error::unexpected_reply(Effect::Read)),
        })
        .collect()
}

/// A usage record, or none: Redis has no empty hashes.
pub(super) fn usage(key: &Key, reply: Value) -> Result<Option<UsageRecord>> {
    let counters = fields(reply).map_err(|error| error.with_key(key))?;
    let record = counters.iter().map(|(field, count)| Some((decode_key(field).ok()?, counter(count)?)));
    let record = record.collect::<Option<UsageRecord>>().ok_or_else(|| no_counter(key))?;
    Ok(Some(record).filter(|record| !record.is_empty()))
}

#[cold]
pub(super) fn no_counter(key: &Key) -> Error {
    Error::new(ErrorKind::Corrupt, "a stored usage record has a value that is not a counter").with_key(key)
}

/// A text that HINCRBY accepts as an integer: no plus sign, no leading zeros.
pub(super) fn counter(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    let count: i64 = text.parse().ok()?;
    (count.to_string() == text).then_some(count)
}

#[cold]
fn unexpected(reply: Value, effect: Effect) -> Error {
    match reply {
        Value::ServerError(error) => error::of_reply(&error),
        _ => error::unexpected_reply(effect),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_what_the_server_accepts_as_an_integer() {
        assert_eq!(counter(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(counter(b"0"), Some(0));
        for other in ["", "+1", "01", "-0", "1.0", " 1", "1e3", "9223372036854775808"] {
            assert_eq!(counter(other.as_bytes()), None, "{other}");
        }
    }
}
