//! Usage records, one document each, so that a record is read, reset and changed as a whole.

use std::collections::BTreeMap;

use futures_core::Stream;
use mongodb::bson::{Document, RawBsonRef, RawDocument, RawDocumentBuf, doc, raw::CString};

use super::{
    MongoDb,
    command::{FindOneAnd, by_id, delete, find_one, find_one_and},
    document::{self, corrupt, damaged},
    error,
    increments::increment,
    pool::Permit,
    scan::{collect, get_documents},
};
use crate::{
    Error, Found, Increment, Key, Result, UsageRecord, UsageStore,
    backend::remote::{Effect, listing},
    codec::decode_key,
    error::Kind,
    model::{KeyRange, ListOptions, Totals, Within},
};

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
fn counter(document: &RawDocument, path: &str) -> Result<Option<i64>> {
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

/// The lowest and the highest total to which `delta` is added within a limit: those of which
/// [`Within::decide`] says Counted.
fn countable(delta: i64, limit: i64) -> (i64, i64) {
    let lowest = i64::MIN - delta.min(0);
    let highest = (i128::from(limit) - i128::from(delta)).min(i64::MAX.into());
    // No total is under the lowest number, nor over 0 and under 1.
    i64::try_from(highest).map_or((1, 0), |highest| (lowest, highest))
}

/// A pipeline that changes one counter, if its total is countable. Else it leaves the document as it is, and
/// the server writes nothing. What is no whole number is left, too.
fn add_within(path: &str, delta: i64, (lowest, highest): (i64, i64)) -> Vec<Document> {
    let count = format!("${path}");
    let total = doc! { "$ifNull": [&count, 0_i64] };
    let counts = doc! { "$and": [
        { "$in": [{ "$type": &count }, ["missing", "int", "long"]] },
        { "$gte": [&total, lowest] },
        { "$lte": [&total, highest] },
    ] };
    vec![doc! { "$set": { path: { "$cond": [counts, { "$add": [total, delta] }, count] } } }]
}

impl UsageStore for MongoDb {
    async fn increment_usage(&self, key: &Key, field: &Key, delta: i64) -> Result<i64> {
        let totals = increment(&self.call()?, key, &[(field, delta)]).await?;
        totals.first().copied().ok_or_else(|| error::unexpected_reply(Effect::Write).with_key(key))
    }

    /// One command. The document as it was tells what the server has decided.
    async fn increment_within(&self, key: &Key, field: &Key, delta: i64, limit: i64) -> Result<Within> {
        let (path, countable) = (path_of(field), countable(delta, limit));
        let pipeline = add_within(&path, delta, countable);
        // A missing counter is 0.
        let creates = (countable.0..=countable.1).contains(&0);
        let compute = || FindOneAnd::Compute { path: path.clone(), pipeline: pipeline.clone(), creates };
        let before = find_one_and(&self.call()?, |pool| &pool.usage, &by_id(key), compute).await;
        let total = before.and_then(|before| before.map_or(Ok(None), |before| counter(&before, &path)));
        let total = total.map_err(|error| error.with_key(key))?.unwrap_or(0);
        Within::decide(key, total, delta, limit)
    }

    async fn increment_many(&self, increments: &[Increment]) -> Result<Totals> {
        self.add_many(increments).await
    }

    async fn get_usage(&self, key: &Key) -> Result<UsageRecord> {
        let found = find_one(&self.call()?, |pool| &pool.usage, Kind::Usage, key).await?;
        record_of(key, &found)
    }

    async fn get_counter(&self, key: &Key, field: &Key) -> Result<i64> {
        let (call, path) = (self.call()?, path_of(field));
        let find = |permit: Permit| {
            let (query, only) = (by_id(key), doc! { &path: 1 });
            async move { permit.usage.find_one(query).projection(only).await }
        };
        let count = call.read(find).await?.map_or(Ok(None), |found| counter(&found, &path));
        count.map(Option::unwrap_or_default).map_err(|error| error.with_key(key))
    }

    async fn get_usages(&self, keys: &[Key]) -> Result<Found<UsageRecord>> {
        get_documents(&self.call()?, (Kind::Usage, |pool| &pool.usage), keys, record_of).await
    }

    async fn reset_usage(&self, key: &Key) -> Result<()> {
        delete(&self.call()?, |pool| &pool.usage, Kind::Usage, key).await
    }

    async fn reset_usage_prefix(&self, prefix: &Key) -> Result<u64> {
        self.call()?.delete_range(|pool| &pool.usage, &KeyRange::of_prefix(prefix.as_str())).await
    }

    fn stream_usage(&self, options: ListOptions) -> impl Stream<Item = Result<(Key, UsageRecord)>> + Send {
        listing::list(options, |range, most| self.page(|pool| &pool.usage, range, most, record_of))
    }

    async fn list_usage(&self) -> Result<BTreeMap<Key, UsageRecord>> {
        let call = self.call()?;
        let list = |permit: Permit| async move {
            collect(&permit, permit.usage.find(doc! {}).batch_size(1000), keyed_record).await
        };
        Ok(call.read(list).await??.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
    fn countable_totals_are_those_that_are_counted() {
        let key = Key::new("k").unwrap();
        let edges = [i64::MIN, i64::MIN + 1, -2, -1, 0, 1, 2, i64::MAX - 1, i64::MAX];
        for (total, delta) in edges.iter().flat_map(|total| edges.map(|delta| (*total, delta))) {
            for limit in edges {
                let decided = Within::decide(&key, total, delta, limit);
                let is_counted = decided.is_ok_and(Within::is_counted);
                let (lowest, highest) = countable(delta, limit);
                assert_eq!((lowest..=highest).contains(&total), is_counted, "{total} {delta} {limit}");
            }
        }
    }

    #[test]
    fn only_bad_value_is_an_overflow() {
        assert_eq!(overflow(error::of_code(2)).kind(), ErrorKind::Overflow);
        assert_eq!(overflow(error::of_code(14)).kind(), ErrorKind::Corrupt);
    }
}
