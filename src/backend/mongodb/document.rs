//! Stored documents: JSON values as BSON, so that every value comes back equal.
//!
//! BSON can hold most JSON values. A value that it can't hold (with a number above `i64::MAX`, or U+0000 in a
//! field name), or that the server would interpret (with a name that begins with `$`), is stored as JSON text
//! in another field.

use mongodb::bson::{
    RawArrayBuf, RawBson, RawBsonRef, RawDocument, RawDocumentBuf,
    raw::{CStr, cstr},
};
use serde_json::{Map, Number, Value};

use crate::{
    ConfigValue, Credential, Error, ErrorKind, Key, Result,
    codec::decode_key,
    model::{Revision, parse_any},
};

/// The field for a value as BSON.
const VALUE: &CStr = cstr!("value");

/// The field for a value as JSON text.
const JSON: &CStr = cstr!("json");

/// The field for the revision.
const REVISION: &CStr = cstr!("rev");

pub(super) const ID: &CStr = cstr!("_id");

/// The stored fields of a credential, without its `_id`.
pub(super) fn from_credential(credential: &Credential) -> RawDocumentBuf {
    stored(object(credential.fields()).map(RawBson::Document), credential.to_json())
}

/// The stored fields of a config value, without its `_id`.
pub(super) fn from_config(value: &ConfigValue) -> RawDocumentBuf {
    stored(bson(value.value()), value.to_json())
}

fn stored(value: Option<RawBson>, json: String) -> RawDocumentBuf {
    let mut document = RawDocumentBuf::new();
    let revision = Revision::of(json.as_bytes()).to_string();
    match value {
        Some(value) => document.append(VALUE, value),
        None => document.append(JSON, json),
    }
    document.append(REVISION, revision);
    document
}

/// None for values that are stored as JSON text.
fn bson(value: &Value) -> Option<RawBson> {
    Some(match value {
        Value::Null => RawBson::Null,
        Value::Bool(is) => RawBson::Boolean(*is),
        Value::Number(number) => number_as_bson(number)?,
        Value::String(text) => RawBson::String(text.clone()),
        Value::Array(items) => {
            let mut array = RawArrayBuf::new();
            for item in items {
                array.push(bson(item)?);
            }
            RawBson::Array(array)
        }
        Value::Object(fields) => RawBson::Document(object(fields)?),
    })
}

fn object(fields: &Map<String, Value>) -> Option<RawDocumentBuf> {
    let mut document = RawDocumentBuf::new();
    for (name, value) in fields {
        if name.starts_with('$') {
            return None;
        }
        document.append(<&CStr>::try_from(name.as_str()).ok()?, bson(value)?);
    }
    Some(document)
}

/// Prefers `Int32`, which a shell prints as a bare number.
fn number_as_bson(number: &Number) -> Option<RawBson> {
    if number.is_f64() {
        return number.as_f64().map(RawBson::Double);
    }
    let whole = number.as_i64()?;
    Some(i32::try_from(whole).map_or(RawBson::Int64(whole), RawBson::Int32))
}

/// The key in a document's `_id`.
pub(super) fn key(document: &RawDocument) -> Result<Key> {
    // No key is empty.
    decode_key(document.get_str("_id").unwrap_or_default().as_bytes())
}

pub(super) fn credential(id: &Key, document: &RawDocument) -> Result<Credential> {
    let corrupt = |why| corrupt("a stored credential can't be read").with_source(why);
    let read = || value(document)?.try_into().map_err(corrupt);
    read().map_err(|error| error.with_key(id))
}

pub(super) fn config(key: &Key, document: &RawDocument) -> Result<ConfigValue> {
    let corrupt = |why| corrupt("a stored config value can't be read").with_source(why);
    let read = || ConfigValue::new(value(document)?).map_err(corrupt);
    read().map_err(|error| error.with_key(key))
}

/// None: the document is from an older version of this crate, or another program.
pub(super) fn revision(document: &RawDocument) -> Option<Revision> {
    let text = document.get_str(REVISION.as_str()).ok()?;
    let revision: Revision = text.parse().ok()?;
    // The server compares texts.
    (revision.to_string() == text).then_some(revision)
}

/// The stored value.
fn value(document: &RawDocument) -> Result<Value> {
    for field in document {
        match field.map_err(damaged)? {
            (name, value) if name == VALUE => return json_with(value, |_| None),
            (name, RawBsonRef::String(text)) if name == JSON => {
                let unreadable = |why| corrupt("a stored value can't be read").with_source(why);
                return parse_any(text.as_bytes()).map_err(unreadable);
            }
            _ => {}
        }
    }
    Err(corrupt("a stored document has neither `value` nor `json`"))
}

/// Converts a BSON value, by `other` if it can. Types that JSON lacks (dates, object ids) are Corrupt: this
/// crate stores none.
pub(super) fn json_with(value: RawBsonRef<'_>, other: fn(RawBsonRef<'_>) -> Option<Value>) -> Result<Value> {
    if let Some(value) = other(value) {
        return Ok(value);
    }
    Ok(match value {
        RawBsonRef::Null => Value::Null,
        RawBsonRef::Boolean(is) => Value::Bool(is),
        RawBsonRef::Int32(number) => number.into(),
        RawBsonRef::Int64(number) => number.into(),
        RawBsonRef::Double(number) => Number::from_f64(number)
            .map(Value::Number)
            .ok_or_else(|| corrupt("a stored number is not finite, which JSON can't represent"))?,
        RawBsonRef::String(text) => Value::String(text.to_owned()),
        RawBsonRef::Array(items) => {
            let items = items.into_iter().map(|item| json_with(item.map_err(damaged)?, other));
            Value::Array(items.collect::<Result<_>>()?)
        }
        RawBsonRef::Document(fields) => {
            let mut object = Map::new();
            for field in fields {
                let (name, value) = field.map_err(damaged)?;
                object.insert(name.as_str().to_owned(), json_with(value, other)?);
            }
            Value::Object(object)
        }
        _ => return Err(corrupt("a stored value has a BSON type that JSON lacks")),
    })
}

/// Drops the driver's error, which may quote the document.
#[cold]
pub(super) fn damaged(_: mongodb::bson::error::Error) -> Error {
    corrupt("a document is not valid BSON")
}

#[cold]
pub(super) fn corrupt(message: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn round_trip(value: Value) -> (Value, bool) {
        let stored = from_config(&ConfigValue::new(value).unwrap());
        let is_bson = stored.get("value").unwrap().is_some();
        (config(&Key::new("k").unwrap(), &stored).unwrap().value().clone(), is_bson)
    }

    #[test]
    fn values_come_back_equal_and_are_bson_if_possible() {
        for (value, is_bson) in [
            (json!(null), true),
            (json!([true, [], {}, "", "a\u{0}b", -1, 2_147_483_648_u64, 9_007_199_254_740_993_i64]), true),
            (json!({ "a.b": 1, "": { "_id": 2 }, "a$": 3, "1": i64::MIN, "2": i64::MAX }), true),
            (json!([1.0, 1e300, 5e-324, 1e16]), true),
            (json!([u64::MAX]), false),
            (json!(i64::MAX as u64 + 1), false),
            (json!({ "a": { "$set": 1 } }), false),
            (json!({ "a\u{0}": 1 }), false),
            (json!({ "$ref": "x", "$id": 1 }), false),
        ] {
            assert_eq!(round_trip(value.clone()), (value.clone(), is_bson), "{value}");
        }
        let (minus_zero, _) = round_trip(json!(-0.0));
        assert!(minus_zero.as_f64().unwrap().is_sign_negative());
    }

    #[test]
    fn foreign_documents_are_corrupt_and_not_quoted() {
        let key = Key::new("k").unwrap();
        let mut date = RawDocumentBuf::new();
        date.append(VALUE, mongodb::bson::DateTime::from_millis(42));
        let mut nan = RawDocumentBuf::new();
        nan.append(VALUE, f64::NAN);
        let mut text = RawDocumentBuf::new();
        text.append(JSON, "{secret");
        let mut list = RawDocumentBuf::new();
        list.append(VALUE, RawArrayBuf::new());
        for (document, is_config) in [
            (RawDocumentBuf::new(), false),
            (date, false),
            (nan, false),
            (text, false),
            // A config value may be a list, a credential may not.
            (list, true),
        ] {
            assert_eq!(config(&key, &document).is_ok(), is_config);
            let error = credential(&key, &document).unwrap_err();
            assert_eq!((error.kind(), error.key()), (ErrorKind::Corrupt, Some(&key)));
            assert!(!format!("{error:?}").contains("secret"));
        }
    }
}
