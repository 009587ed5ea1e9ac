//! Records that are read together, for exports and streams.

use super::snapshot::Stored;
use crate::{Error, Result};

/// A piece ends with the record that brings it to this number of bytes or records.
const BYTES: usize = 256 << 10;
const RECORDS: usize = 512;

/// Records as they are stored. They are parsed together: an allocator is slow while large pages and small
/// parts of documents take turns.
#[derive(Default)]
pub(super) struct Piece {
    pub(super) stored: Vec<Stored>,
    bytes: usize,
    /// None: there may be a next piece. An error: the store itself can't be read.
    pub(super) end: Option<Result<()>>,
}

impl Piece {
    pub(super) fn failed(error: Error) -> Self {
        Self { end: Some(Err(error)), ..Self::default() }
    }

    pub(super) const fn is_full(&self) -> bool {
        self.stored.len() >= RECORDS || self.bytes >= BYTES
    }

    /// The number of bytes of the values.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the next record, or the end.
    pub(super) fn add(&mut self, next: Option<Result<Stored>>) {
        match next {
            Some(Ok(record)) => {
                self.bytes += record.value().len();
                self.stored.push(record);
            }
            Some(Err(error)) => self.end = Some(Err(error)),
            None => self.end = Some(Ok(())),
        }
    }

    /// At most `most` items of these records: whole usage records, however many counters one has, or
    /// documents. None: they are more than `stored` records.
    pub(super) fn of_items(
        mut records: impl Iterator<Item = Result<Stored>>,
        most: usize,
        stored: usize,
    ) -> Option<Self> {
        let (mut piece, mut items) = (Self::default(), 0);
        while piece.end.is_none() {
            let next = records.next();
            let begins_item = match (&next, piece.stored.last()) {
                (Some(Ok(next)), Some(last)) => next.raw_key() != last.raw_key(),
                (Some(Ok(_)), None) => true,
                _ => false,
            };
            if begins_item {
                if items == most || piece.is_full() {
                    break;
                }
                items += 1;
            }
            piece.add(next);
            if piece.stored.len() > stored {
                return None;
            }
        }
        Some(piece)
    }
}
