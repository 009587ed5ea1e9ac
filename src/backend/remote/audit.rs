//! The audit of plans, read page by page.

use std::future;

use futures_core::Stream;
use futures_util::{StreamExt, TryStreamExt, future::OptionFuture};

use crate::{
    Result, capability,
    plan::{AuditEntry, AuditFilter},
};

/// A page of entries, and the position of the next page if there may be one.
pub(crate) type Page<C> = (Vec<AuditEntry>, Option<C>);

/// Streams the entries that match the filter, and reads pages on demand.
pub(crate) fn pages<C: Send, F: Future<Output = Result<Page<C>>> + Send>(
    filter: AuditFilter,
    first: C,
    page: impl Fn(C) -> F + Send,
) -> impl Stream<Item = Result<AuditEntry>> + Send {
    let limit = filter.limit.unwrap_or(usize::MAX);
    let page = move |position: Option<C>| {
        let page = OptionFuture::from(position.map(&page));
        async move { page.await.transpose() }
    };
    capability::pages(Some(first), page)
        .try_filter(move |entry| future::ready(filter.wants(entry)))
        .take(limit)
}
