//! Batches: many items in few requests.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use futures_util::{StreamExt, stream};

use crate::{
    BatchFailure, BatchReport, ConfigValue, Credential, Error, Found, Key, Outcome, Record, Result,
    error::Kind,
};

/// The most items in one chunk.
const CHUNK_ITEMS: usize = 1000;

/// The most bytes in one chunk, unless a single item is larger: other calls wait behind a large request.
pub(crate) const CHUNK_BYTES: usize = 4 << 20;

/// Each key once, in order.
pub(crate) fn distinct(keys: &[Key]) -> Vec<&Key> {
    keys.iter().collect::<BTreeSet<_>>().into_iter().collect()
}

/// Splits items into chunks by number and size.
pub(crate) fn chunks<T>(items: &[T], bytes: impl Fn(&T) -> usize) -> Vec<Range<usize>> {
    let (mut chunks, mut begin, mut filled) = (Vec::new(), 0, 0);
    for (at, item) in items.iter().enumerate() {
        let size = bytes(item);
        if at > begin && (at - begin == CHUNK_ITEMS || filled + size > CHUNK_BYTES) {
            chunks.push(begin..at);
            (begin, filled) = (at, 0);
        }
        filled += size;
    }
    if begin < items.len() {
        chunks.push(begin..items.len());
    }
    chunks
}

/// Runs `chunk` for each chunk, up to `at_once` concurrently, and returns the results in the order of the
/// items.
///
/// The items must have distinct keys, because chunks run in any order.
pub(crate) async fn run<'i, T, R, F: Future<Output = R>>(
    items: &'i [T],
    bytes: impl Fn(&T) -> usize,
    at_once: usize,
    chunk: impl Fn(&'i [T]) -> F,
) -> Vec<(&'i [T], R)> {
    let runs = chunks(items, bytes).into_iter().map(|range| {
        let (items, run) = (&items[range.clone()], chunk(&items[range]));
        async move { (items, run.await) }
    });
    stream::iter(runs).buffered(at_once).collect().await
}

/// The report on a batch in which a key may occur several times, from the error of each key that failed.
pub(crate) fn report<'k>(
    items: impl Iterator<Item = &'k Key>,
    failed: &BTreeMap<&Key, Error>,
) -> Result<BatchReport> {
    report_each(items.map(|key| (key, failed.get(key).cloned())))
}

/// The report on a batch, from the key of each item and its error.
pub(crate) fn report_each<'k>(items: impl Iterator<Item = (&'k Key, Option<Error>)>) -> Result<BatchReport> {
    settle(BatchReport::collect(items.map(|(key, error)| (key, error.map_or(Ok(()), Err)))))
}

/// Returns the report, or an error for the whole call: see [`common_error`].
pub(crate) fn settle(report: BatchReport) -> Result<BatchReport> {
    match report.succeeded {
        0 => common_error(&report.failures).map_or(Ok(report), Err),
        _ => Ok(report),
    }
}

/// Returns the credentials found, or an error for the whole call: see [`common_error`].
pub(crate) fn settle_found(found: Found) -> Result<Found> {
    match found.credentials.len() {
        0 => common_error(&found.failures).map_or(Ok(found), Err),
        _ => Ok(found),
    }
}

/// The error of the call if every item failed with the same retryable error: the store failed then, not the
/// items, and retries and their budget depend on it. The outcome is Unknown if that of any item is.
fn common_error(failures: &[BatchFailure]) -> Option<Error> {
    let first = &failures.first()?.error;
    let alike =
        |error: &Error| error.is_retryable() && (error.kind(), error.code()) == (first.kind(), first.code());
    if !failures.iter().all(|failure| alike(&failure.error)) {
        return None;
    }
    let unknown = failures.iter().find(|failure| failure.error.outcome() == Outcome::Unknown);
    let error = unknown.map_or(first, |failure| &failure.error).clone();
    Some(if failures.len() == 1 { error } else { error.without_key() })
}

/// The credentials of a chunk that exist, each with the result of decoding it.
pub(crate) type FoundChunk = Result<Vec<(Key, Result<Credential>)>>;

/// The result of reading a batch in which an id may occur several times, from the result of each chunk.
pub(crate) fn found(ids: &[Key], chunks: Vec<(&[&Key], FoundChunk)>) -> Result<Found> {
    let mut results = BTreeMap::new();
    for (chunk, result) in chunks {
        match result {
            Ok(found) => results.extend(found),
            Err(error) => results.extend(chunk.iter().map(|id| ((*id).clone(), Err(error.clone())))),
        }
    }
    let mut found = Found::default();
    for (index, id) in ids.iter().enumerate() {
        let error = match results.get(id) {
            Some(Ok(_)) => continue,
            Some(Err(error)) => error.clone(),
            None => Error::not_found(Kind::Credential, id),
        };
        found.failures.push(BatchFailure { index, key: id.clone(), error });
    }
    found.credentials = results.into_iter().filter_map(|(id, result)| Some((id, result.ok()?))).collect();
    settle_found(found)
}

/// The errors of the ids that a request did not delete, given those that it deleted.
pub(crate) fn not_deleted<'k>(
    ids: &[&'k Key],
    deleted: &Result<BTreeSet<Key>>,
) -> impl Iterator<Item = (&'k Key, Error)> {
    ids.iter().filter_map(move |id| match deleted {
        Ok(deleted) if deleted.contains(*id) => None,
        Ok(_) => Some((*id, Error::not_found(Kind::Credential, id))),
        Err(error) => Some((*id, error.clone())),
    })
}

/// The errors of the items in chunks that failed as a whole.
pub(crate) fn failures<K: Copy + Ord, V, R>(chunks: Vec<(&[(K, V)], Result<R>)>) -> BTreeMap<K, Error> {
    let failed = chunks.into_iter().filter_map(|(chunk, result)| Some((chunk, result.err()?)));
    failed.flat_map(|(chunk, error)| chunk.iter().map(move |(key, _)| (*key, error.clone()))).collect()
}

/// The records of an import by kind. Of several records with the same key, the last one counts.
#[derive(Default)]
pub(crate) struct Records<'r> {
    pub(crate) credentials: BTreeMap<&'r Key, &'r Credential>,
    pub(crate) configs: BTreeMap<&'r Key, &'r ConfigValue>,
    /// By the keys of the usage record and of the counter.
    pub(crate) counters: BTreeMap<(&'r Key, &'r Key), i64>,
}

impl<'r> Records<'r> {
    pub(crate) fn of(records: &'r [Record]) -> Self {
        let mut found = Self::default();
        for record in records {
            match record {
                Record::Credential { id, credential } => drop(found.credentials.insert(id, credential)),
                Record::Config { key, value } => drop(found.configs.insert(key, value)),
                Record::Usage { key, field, count } => drop(found.counters.insert((key, field), *count)),
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn settled(errors: impl IntoIterator<Item = Option<Error>>) -> Result<BatchReport> {
        let mut report = BatchReport::default();
        for (index, error) in errors.into_iter().enumerate() {
            let key = Key::new(&format!("k{index}")).unwrap();
            report.record(index, &key, error.map_or(Ok(()), |error| Err(error.with_key(&key))));
        }
        settle(report)
    }

    #[test]
    fn a_batch_fails_if_all_items_failed_with_the_same_retryable_error() {
        let gone = || Some(Error::new(ErrorKind::Unavailable, "gone"));
        let lost = || gone().map(|error| error.with_outcome(Outcome::Unknown));
        let bad = || Some(Error::new(ErrorKind::Overflow, "too much"));

        let error = settled([gone(), gone()]).unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
        assert!(error.is_retryable() && error.key().is_none(), "the error is about no single item");
        let error = settled([gone(), lost(), gone()]).unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unknown, "one chunk may have been applied");
        assert!(settled([gone()]).unwrap_err().key().is_some());

        let busy = || Some(Error::new(ErrorKind::Busy, "busy"));
        for errors in
            [vec![], vec![gone(), None], vec![gone(), bad()], vec![gone(), busy()], vec![bad(), bad()]]
        {
            assert!(settled(errors).is_ok());
        }
    }

    #[test]
    fn chunks_are_limited_in_items_and_bytes() {
        assert!(chunks(&[0; 0], |_| 1).is_empty());
        assert_eq!(chunks(&[1; 2001], |_| 1), [0..1000, 1000..2000, 2000..2001]);
        let half = CHUNK_BYTES / 2;
        assert_eq!(chunks(&[half, half, 1, 5 * half, 1], |size| *size), [0..2, 2..3, 3..4, 4..5]);
    }
}
