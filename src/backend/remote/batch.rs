//! Many items in few requests.

use std::{collections::BTreeMap, ops::Range};

use futures_util::{StreamExt, stream};

use crate::{BatchFailure, BatchReport, Credential, Error, Found, Key, error::Kind};

/// The most items of one chunk.
const CHUNK_ITEMS: usize = 1000;

/// A chunk ends when it has this many bytes: others wait behind it.
pub(crate) const CHUNK_BYTES: usize = 4 << 20;

/// Cuts items into chunks, by their number and their size.
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

/// Runs something for each chunk, several at once, and gives what they gave in the order of the items.
///
/// The items must have different names: a chunk does not wait for the one before it.
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

/// The report for the items as they were asked for, some of them twice, given those that failed.
pub(crate) fn report<'k>(
    asked: impl Iterator<Item = &'k Key>,
    failed: &BTreeMap<&Key, Error>,
) -> BatchReport {
    let mut report = BatchReport::default();
    for (index, key) in asked.enumerate() {
        report.record(index, key, failed.get(key).map_or(Ok(()), |error| Err(error.clone())));
    }
    report
}

/// What was found for the ids as they were asked for, given what there is under some of them.
pub(crate) fn found(ids: &[Key], results: BTreeMap<Key, Result<Credential, Error>>) -> Found {
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
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_have_a_number_and_a_size() {
        assert!(chunks(&[0; 0], |_| 1).is_empty());
        assert_eq!(chunks(&[1; 2001], |_| 1), [0..1000, 1000..2000, 2000..2001]);
        let half = CHUNK_BYTES / 2;
        assert_eq!(chunks(&[half, half, 1, 5 * half, 1], |size| *size), [0..2, 2..3, 3..4, 4..5]);
    }
}
