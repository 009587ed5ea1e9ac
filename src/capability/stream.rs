//! Streams that are read page by page, and the default bodies of the operations that stream records.

use std::{collections::BTreeMap, vec};

use futures_core::Stream;
use futures_util::{FutureExt, StreamExt, TryFutureExt, TryStreamExt, stream};
use tokio::task::consume_budget;

use crate::{
    ErrorKind, Found, Key, Result,
    model::{KeyRange, ListOptions},
};

/// How many values a default body reads at a time.
const PAGE: usize = 100;

/// Streams the items of pages, which are read on demand. `read` returns a page and the position of the next
/// one, or None at the end. The stream ends after an error.
pub(crate) fn pages<P: Send, T: Send, F>(
    first: P,
    read: impl FnMut(P) -> F + Send,
) -> impl Stream<Item = Result<T>> + Send
where
    F: Future<Output = Result<Option<(Vec<T>, P)>>> + Send,
{
    stream::try_unfold(first, read).map_ok(|page| stream::iter(page).map(Ok)).try_flatten()
}

/// The records of a list that the options name.
pub(super) fn of_map<V: Send>(
    options: ListOptions,
    list: impl Future<Output = Result<BTreeMap<Key, V>>> + Send,
) -> impl Stream<Item = Result<(Key, V)>> + Send {
    let select = move |all: BTreeMap<Key, V>| {
        let range = KeyRange::of(&options);
        let named =
            all.into_iter().filter(move |(key, _)| range.as_ref().is_some_and(|range| range.contains(key)));
        stream::iter(named.take(options.limit.unwrap_or(usize::MAX))).then(|record| async {
            // A stream that is always ready would starve other tasks.
            consume_budget().await;
            Ok(record)
        })
    };
    list.map_ok(select).into_stream().try_flatten()
}

/// The values of the listed keys that the options name.
pub(super) fn of_keys<V: Send, F: Future<Output = Result<Found<V>>> + Send>(
    options: ListOptions,
    list: impl Future<Output = Result<Vec<Key>>> + Send,
    get: impl Fn(Vec<Key>) -> F + Send,
) -> impl Stream<Item = Result<(Key, V)>> + Send {
    let select = move |all: Vec<Key>| {
        let range = KeyRange::of(&options);
        let is_named = |key: &Key| range.as_ref().is_some_and(|range| range.contains(key));
        let named: Vec<Key> = all.into_iter().filter(is_named).collect();
        let first = (named.into_iter(), options.limit.unwrap_or(usize::MAX));
        pages(first, move |(mut keys, left): (vec::IntoIter<Key>, usize)| {
            let page: Vec<Key> = keys.by_ref().take(PAGE.min(left)).collect();
            let reading = (!page.is_empty()).then(|| get(page));
            async move {
                let Some(reading) = reading else { return Ok(None) };
                let values = existing(reading.await?)?;
                let left = left - values.len();
                Ok(Some((values, (keys, left))))
            }
        })
    };
    list.map_ok(select).into_stream().try_flatten()
}

/// The values found. A key that has been deleted since it was listed is no failure.
pub(crate) fn existing<V>(found: Found<V>) -> Result<Vec<(Key, V)>> {
    let failed = found.failures.into_iter().find(|failure| failure.error.kind() != ErrorKind::NotFound);
    match failed {
        Some(failure) => Err(failure.error.with_key(&failure.key)),
        None => Ok(found.values.into_iter().collect()),
    }
}
