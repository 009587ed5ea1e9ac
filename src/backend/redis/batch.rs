//! Many items in few round trips.

use std::{collections::HashMap, ops::Range};

use futures_util::{StreamExt, stream};

use crate::{BatchReport, Error, Key, Result};

/// The most items of one chunk.
const CHUNK_ITEMS: usize = 1000;

/// A chunk ends when it has this many bytes: other calls wait behind it on its connection.
pub(super) const CHUNK_BYTES: usize = 4 << 20;

/// How many chunks are under way at once.
const CONCURRENT_CHUNKS: usize = 10;

/// Cuts items into chunks, by their number and their size.
pub(super) fn chunks<T>(items: &[T], bytes: impl Fn(&T) -> usize) -> Vec<Range<usize>> {
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

/// Runs the chunks, several at once, and gathers what they gave for their items, in the order of these.
///
/// The items must have different keys: a chunk does not wait for the one before it.
pub(super) async fn run<'i, T, R, F: Future<Output = Vec<R>>>(
    items: &'i [T],
    bytes: impl Fn(&T) -> usize,
    chunk: impl Fn(&'i [T]) -> F,
) -> Vec<R> {
    let runs = chunks(items, bytes).into_iter().map(|range| chunk(&items[range]));
    let results: Vec<Vec<R>> = stream::iter(runs).buffered(CONCURRENT_CHUNKS).collect().await;
    results.into_iter().flatten().collect()
}

/// What failed, of items with different keys.
pub(super) fn failures<'k, T>(
    keys: impl Iterator<Item = &'k Key>,
    results: Vec<Result<T>>,
) -> HashMap<&'k Key, Error> {
    keys.zip(results).filter_map(|(key, result)| Some((key, result.err()?))).collect()
}

/// The report for the items as they were asked for, some of them twice.
pub(super) fn report<'k>(
    asked: impl Iterator<Item = &'k Key>,
    failures: &HashMap<&Key, Error>,
) -> BatchReport {
    let mut report = BatchReport::default();
    for (index, key) in asked.enumerate() {
        report.record(index, key, failures.get(key).map_or(Ok(()), |error| Err(error.clone())));
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_have_a_number_and_a_size() {
        assert_eq!(chunks(&[0; 0], |_| 1), []);
        assert_eq!(chunks(&[1; 2001], |_| 1), [0..1000, 1000..2000, 2000..2001]);
        let half = CHUNK_BYTES / 2;
        assert_eq!(chunks(&[half, half, 1, 5 * half, 1], |size| *size), [0..2, 2..3, 3..4, 4..5]);
    }
}
