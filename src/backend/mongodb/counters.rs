//! How the counters of a usage record are stored in its document.

use mongodb::bson::{RawBsonRef, RawDocument, RawDocumentBuf, raw::CString};

use super::document::{self, corrupt, damaged};
use crate::{Error, Key, Result, UsageRecord, codec::decode_key};

/// The field of a document that holds the counters under their encoded names.
const COUNTS: &str = "counts";

/// The path of a counter in its document, percent-encoded: `.` and `$` have a meaning in paths.
pub(super) fn path_of(field: &Key) -> String {
    let mut path = String::with_capacity(COUNTS.len() + 1 + field.as_str().len());
    path.push_str(COUNTS);
    path.push('.');
    for character in field.as_str().chars() {
        match character {
            '.' => path.push_str("%2E"),
            '$' => path.push_str("%24"),
            '%' => path.push_str("%25"),
            other => path.push(other),
        }
    }
    path
}

/// Decodes a name that [`path_of`] encoded. Any other name is Corrupt.
fn field_of(name: &str) -> Result<Key> {
    let (mut field, mut rest) = (String::with_capacity(name.len()), name);
    while let Some(at) = rest.find(['%', '.', '$']) {
        field.push_str(&rest[..at]);
        field.push(match rest.get(at..at + 3) {
            Some("%2E") => '.',
            Some("%24") => '$',
            Some("%25") => '%',
            _ => return Err(corrupt("the name of a stored counter can't be read")),
        });
        rest = &rest[at + 3..];
    }
    field.push_str(rest);
    decode_key(field.as_bytes())
}

/// `{ verb: { path: count, .. } }`, such as `$inc`.
pub(super) fn change<'f>(
    verb: &'static mongodb::bson::raw::CStr,
    counts: impl Iterator<Item = (&'f Key, i64)>,
) -> RawDocumentBuf {
    let mut fields = RawDocumentBuf::new();
    for (field, count) in counts {
        let path = CString::try_from(path_of(field)).expect("a key has no control characters");
        fields.append(path, count);
    }
    let mut change = RawDocumentBuf::new();
    change.append(verb, fields);
    change
}

pub(super) fn record(document: &RawDocument) -> Result<UsageRecord> {
    let counts =
        document.get_document(COUNTS).map_err(|_| corrupt("a stored usage record has no counters"))?;
    counts
        .into_iter()
        .map(|counter| {
            let (name, count) = counter.map_err(damaged)?;
            let count = whole(count).ok_or_else(|| corrupt("a stored counter is not a whole number"))?;
            Ok((field_of(name.as_str())?, count))
        })
        .collect()
}

fn whole(count: RawBsonRef<'_>) -> Option<i64> {
    match count {
        RawBsonRef::Int64(count) => Some(count),
        RawBsonRef::Int32(count) => Some(count.into()),
        _ => None,
    }
}

/// One counter of a document, if there is one.
pub(super) fn counter(document: &RawDocument, path: &str) -> Result<Option<i64>> {
    let counts = document.get_document(COUNTS).ok();
    let Some(count) = path.split_once('.').and_then(|(_, name)| counts?.get(name).ok()?) else {
        return Ok(None);
    };
    whole(count).map(Some).ok_or_else(|| corrupt("a stored counter is not a whole number"))
}

pub(super) fn record_of(key: &Key, document: &RawDocument) -> Result<UsageRecord> {
    record(document).map_err(|error| error.with_key(key))
}

pub(super) fn keyed_record(document: &RawDocument) -> Result<(Key, UsageRecord)> {
    let key = document::key(document)?;
    let record = record_of(&key, document)?;
    Ok((key, record))
}

/// `BadValue`. With `$inc` it only means that the sum exceeds the range of an `i64`.
const BAD_VALUE: &str = "2";

pub(super) fn overflow(error: Error) -> Error {
    if error.code() == Some(BAD_VALUE) { Error::overflow().with_code(BAD_VALUE) } else { error }
}

#[cfg(test)]
mod tests {
    use super::{super::error, *};
    use crate::ErrorKind;

    #[test]
    fn counter_names_are_encoded_and_decoded() {
        for (field, path) in [
            ("requests", "counts.requests"),
            ("a.b", "counts.a%2Eb"),
            ("$where", "counts.%24where"),
            ("100%", "counts.100%25"),
            ("%2E", "counts.%252E"),
            ("0", "counts.0"),
        ] {
            let field = Key::new(field).unwrap();
            assert_eq!(path_of(&field), path);
            assert_eq!(field_of(path.strip_prefix("counts.").unwrap()).unwrap(), field);
        }
        for foreign in ["", "a.b", "$a", "%", "%2", "%2e", "a%41", "\n"] {
            assert_eq!(field_of(foreign).unwrap_err().kind(), ErrorKind::Corrupt, "{foreign}");
        }
    }

    #[test]
    fn only_bad_value_is_an_overflow() {
        assert_eq!(overflow(error::of_code(2)).kind(), ErrorKind::Overflow);
        assert_eq!(overflow(error::of_code(14)).kind(), ErrorKind::Corrupt);
    }
}
