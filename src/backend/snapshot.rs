//! How a state in memory becomes a stream.

use futures_core::Stream;
use futures_util::{StreamExt, future, stream};
use tokio::task::consume_budget;

use crate::Result;

/// All items of a state, or why there is none.
///
/// It never waits for anything, so it gives other tasks of its thread their turn now and then.
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
