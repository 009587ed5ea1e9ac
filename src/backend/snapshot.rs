//! Streams over data in memory.

use std::iter;

use futures_core::Stream;
use futures_util::{StreamExt, future, stream};
use tokio::task::consume_budget;

use crate::{Key, Result, model::KeyRange};

/// The entries of a sorted map in a range. `first` looks up the first one from the range's
/// [start](KeyRange::start), so that the map is borrowed for no longer than that.
pub(super) fn entries<V>(
    mut range: KeyRange,
    mut first: impl FnMut(&KeyRange) -> Option<(Key, V)>,
) -> impl Iterator<Item = (Key, V)> {
    iter::from_fn(move || {
        let entry = first(&range).filter(|(key, _)| key.as_str() < range.end())?;
        range.begin_after(&entry.0);
        Some(entry)
    })
}

/// A stream of these items, or of the error alone.
///
/// It is always ready, so it yields to other tasks now and then.
pub(super) fn stream_of<T: Send>(
    items: Result<impl Iterator<Item = Result<T>> + Send>,
) -> impl Stream<Item = Result<T>> + Send {
    let items = match items {
        Ok(items) => stream::iter(items).left_stream(),
        Err(error) => stream::once(future::ready(Err(error))).right_stream(),
    };
    items.then(|item| async {
        consume_budget().await;
        item
    })
}
