//! Batches: many items in few requests.

use std::{collections::BTreeMap, ops::Range};

use futures_util::{StreamExt, stream};

use crate::{BatchFailure, BatchReport, Error, Found, Key, Outcome, Result};

/// The most items in one chunk.
const CHUNK_ITEMS: usize = 1000;

/// The most bytes in one chunk, unless a single item is larger: other calls wait behind a large request.
pub(crate) const CHUNK_BYTES: usize = 4 << 20;

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
