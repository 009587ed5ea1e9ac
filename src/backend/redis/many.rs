//! Batches: each key is sent once, in chunks.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::CONCURRENT_CHUNKS;
use crate::{
    BatchFailure, BatchReport, Error, Found, Key, Result,
    backend::remote::batch::{self, run},
};

/// Runs chunks of the items concurrently. The results are in the order of the items.
pub(super) async fn in_chunks<'i, T, R, F: Future<Output = Vec<R>>>(
    items: &'i [T],
    bytes: impl Fn(&T) -> usize,
    chunk: impl Fn(&'i [T]) -> F,
) -> Vec<R> {
    let chunks = run(items, bytes, CONCURRENT_CHUNKS, chunk).await;
    chunks.into_iter().flat_map(|(_, results)| results).collect()
}

/// Each key once, sorted.
pub(super) fn distinct(keys: &[Key]) -> Vec<Key> {
    keys.iter().collect::<BTreeSet<_>>().into_iter().cloned().collect()
}

/// The result of reading a batch, from the result of each of its [`distinct`] keys.
pub(super) fn found<V>(keys: &[Key], distinct: &[Key], results: Vec<Result<V>>) -> Result<Found<V>> {
    let (mut failures, mut found) = (BTreeMap::new(), Found::default());
    // Sorted, so that the map is built at once.
    found.values = distinct
        .iter()
        .zip(results)
        .filter_map(|(key, result)| {
            let failed = |error| drop(failures.insert(key, error));
            Some((key.clone(), result.map_err(failed).ok()?))
        })
        .collect();
    for (index, key) in keys.iter().enumerate().filter(|_| !failures.is_empty()) {
        if let Some(error) = failures.get(key).cloned() {
            found.failures.push(BatchFailure { index, key: key.clone(), error });
        }
    }
    found.settle()
}

/// The last item of each key.
pub(super) fn last<V>(items: &[(Key, V)]) -> HashMap<&Key, &V> {
    items.iter().map(|(key, value)| (key, value)).collect()
}

/// The report on a batch of writes, from its distinct keys and their results.
pub(super) fn report<'k>(
    items: impl Iterator<Item = &'k Key>,
    results: impl Iterator<Item = (&'k Key, Result<()>)>,
) -> Result<BatchReport> {
    let failed = results.filter_map(|(key, result)| Some((key, result.err()?)));
    batch::report(items, &failed.collect::<BTreeMap<&Key, Error>>())
}
