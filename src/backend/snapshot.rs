//! Streams over data in memory.

use futures_core::Stream;
use futures_util::{StreamExt, future, stream};
use tokio::task::consume_budget;

use crate::Result;

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
