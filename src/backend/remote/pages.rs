//! Streams of records that are read page by page.

use futures_core::Stream;
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::Result;

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
