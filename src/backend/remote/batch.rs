//! Batches: many items in few requests.

use std::{collections::BTreeMap, ops::Range};

use futures_util::{StreamExt, stream};

use crate::{BatchReport, Error, Key, Result};

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
    BatchReport::collect(items.map(|(key, error)| (key, error.map_or(Ok(()), Err)))).settle()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_limited_in_items_and_bytes() {
        assert!(chunks(&[0; 0], |_| 1).is_empty());
        assert_eq!(chunks(&[1; 2001], |_| 1), [0..1000, 1000..2000, 2000..2001]);
        let half = CHUNK_BYTES / 2;
        assert_eq!(chunks(&[half, half, 1, 5 * half, 1], |size| *size), [0..2, 2..3, 3..4, 4..5]);
    }
}
