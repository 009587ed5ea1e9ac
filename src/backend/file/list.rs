//! Streams of credentials, config values and usage records.

use futures_core::Stream;

use super::{
    File,
    document::Document,
    piece::Piece,
    snapshot::{Snapshot, Stored},
    work::{FEW, SMALL_STORE, work},
};
use crate::{
    Error, Key, RecordKind, Result,
    capability::pages,
    codec::RecordKey,
    history::DocumentKind,
    model::{KeyRange, ListOptions},
};

/// What a stream lists.
pub(super) trait Listed: Sized + Send + 'static {
    const KIND: RecordKind;

    /// Parses the stored records of one key: a document, or all counters of a usage record.
    fn parse(stored: &[Stored]) -> Result<(Key, Self)>;
}

impl<D: Document> Listed for D {
    const KIND: RecordKind = match D::KIND {
        DocumentKind::Credential => RecordKind::Credential,
        DocumentKind::Config => RecordKind::Config,
    };

    fn parse(stored: &[Stored]) -> Result<(Key, Self)> {
        D::read(&stored[0])
    }
}

/// Where a stream goes on.
enum Position {
    /// At most this number of items are left.
    At(KeyRange, usize),
    /// After the items before it were returned.
    Failed(Error),
    End,
}

/// The items of one state of the store, and where the next page begins.
type Page<L> = (Vec<(Key, L)>, Position);

impl File {
    /// Each page is read from a snapshot of its own: a stream that is read slowly must not keep the space of
    /// all that is deleted meanwhile, nor the file that a compaction has replaced.
    pub(super) fn stream<L: Listed>(
        &self,
        options: ListOptions,
    ) -> impl Stream<Item = Result<(Key, L)>> + Send {
        let left = options.limit.unwrap_or(usize::MAX);
        let first = KeyRange::of(&options).map_or(Position::End, |range| Position::At(range, left));
        pages(first, move |position| async move {
            match position {
                Position::At(range, left) => self.page(range, left).await.map(Some),
                Position::Failed(error) => Err(error),
                Position::End => Ok(None),
            }
        })
    }

    /// Reads a page, here if it has few records.
    async fn page<L: Listed>(&self, range: KeyRange, left: usize) -> Result<Page<L>> {
        let snapshot = self.store.reader.snapshot()?;
        let is_short = left <= FEW || snapshot.len()? <= FEW as u64;
        let piece = if is_short { items::<L>(&snapshot, &range, left, FEW)? } else { None };
        match piece {
            Some(piece) => {
                let is_small = piece.bytes() as u64 <= SMALL_STORE;
                work(self.deadline, is_small, move || Ok(parsed(piece, range, left))).await
            }
            None => {
                let read = move || {
                    let piece = items::<L>(&snapshot, &range, left, usize::MAX)?;
                    Ok(parsed(piece.unwrap_or_default(), range, left))
                };
                work(self.deadline, false, read).await
            }
        }
    }
}

/// The next items of a range. None: they are more than `stored` records.
fn items<L: Listed>(
    snapshot: &Snapshot,
    range: &KeyRange,
    left: usize,
    stored: usize,
) -> Result<Option<Piece>> {
    let records = snapshot.records(RecordKey::in_range(L::KIND, range))?;
    Ok(Piece::of_items(records, left, stored))
}

fn parsed<L: Listed>(piece: Piece, mut range: KeyRange, left: usize) -> Page<L> {
    let mut items = Vec::new();
    for stored in piece.stored.chunk_by(|one, next| one.raw_key() == next.raw_key()) {
        match L::parse(stored) {
            Ok(item) => items.push(item),
            Err(error) => return (items, Position::Failed(error)),
        }
    }
    let left = left - items.len();
    let next = match (piece.end, items.last()) {
        (Some(Err(error)), _) => Position::Failed(error),
        (None, Some((last, _))) if left > 0 && range.begin_after(last) => Position::At(range, left),
        _ => Position::End,
    };
    (items, next)
}
