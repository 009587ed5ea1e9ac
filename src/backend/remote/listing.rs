//! Streams of records sorted by key: each page is a call of its own, and begins behind the last key of the page
//! before it.

use futures_core::Stream;

use crate::{
    Key, Result,
    capability::pages,
    model::{KeyRange, ListOptions},
};

/// A page ends after this many records, or with the one that exceeds this many bytes.
pub(crate) const PAGE: usize = 250;
pub(crate) const PAGE_BYTES: usize = 4 << 20;

/// The next records of a range, and whether they are its last.
pub(crate) struct Page<V> {
    pub(crate) records: Vec<(Key, V)>,
    pub(crate) is_last: bool,
}

/// Where the next page begins, and how many records it has at most.
struct Position {
    range: KeyRange,
    most: usize,
    /// How many records the stream may still return.
    left: usize,
}

impl Position {
    fn first(options: &ListOptions) -> Option<Self> {
        let left = options.limit.unwrap_or(usize::MAX);
        let range = KeyRange::of(options).filter(|_| left > 0)?;
        Some(Self { range, most: PAGE.min(left), left })
    }

    /// The position after a page. A page of a few large records is followed by a small one, because a server
    /// may read all records of a page to know their sizes.
    fn after<V>(mut self, page: &Page<V>) -> Option<Self> {
        let (last, _) = page.records.last()?;
        self.left = self.left.saturating_sub(page.records.len());
        self.most = PAGE.min(2 * page.records.len()).min(self.left);
        let goes_on = self.range.begin_after(last) && self.left > 0 && !page.is_last;
        goes_on.then_some(self)
    }
}

/// Streams the records that the options name, and reads pages on demand: `page` reads the first records of a
/// range, up to a number of them.
pub(crate) fn list<V: Send, F: Future<Output = Result<Page<V>>> + Send>(
    options: ListOptions,
    page: impl Fn(KeyRange, usize) -> F + Send,
) -> impl Stream<Item = Result<(Key, V)>> + Send {
    pages(Position::first(&options), move |position| {
        let reading = position.map(|position| (page(position.range.clone(), position.most), position));
        async move {
            let Some((page, position)) = reading else { return Ok(None) };
            let page = page.await?;
            let next = position.after(&page);
            Ok(Some((page.records, next)))
        }
    })
}
