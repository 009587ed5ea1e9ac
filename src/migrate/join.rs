//! Two sorted streams, side by side.

use std::{borrow::Cow, pin::Pin};

use futures_core::Stream;
use futures_util::{StreamExt, future};

use super::Filter;
use crate::{
    Error, ErrorKind, Record, Result,
    codec::{RecordKey, encode_record},
};

/// A stream whose order is checked, and whose next record can be looked at.
pub(super) struct Sorted<'f, S> {
    records: Pin<Box<S>>,
    side: &'static str,
    filter: &'f Filter,
    /// Records up to here are as if they were not there.
    after: Option<RecordKey>,
    last: Option<RecordKey>,
    next: Option<(RecordKey, Record)>,
    has_ended: bool,
}

impl<'f, S: Stream<Item = Result<Record>>> Sorted<'f, S> {
    pub(super) fn new(records: S, side: &'static str, filter: &'f Filter, after: Option<RecordKey>) -> Self {
        let records = Box::pin(records);
        Self { records, side, filter, after, last: None, next: None, has_ended: false }
    }

    /// The next record that the filter allows.
    pub(super) async fn peek(&mut self) -> Result<Option<&RecordKey>> {
        while self.next.is_none() && !self.has_ended {
            // A stream that is always ready would keep others from their turn.
            tokio::task::consume_budget().await;
            let Some(record) = self.records.next().await.transpose()? else {
                self.has_ended = true;
                break;
            };
            let key = RecordKey::from(&record);
            if let Some(last) = &self.last
                && *last >= key
            {
                return Err(unsorted(self.side, *last == key).with_key(record.key()));
            }
            self.last = Some(key.clone());
            if self.after.as_ref().is_none_or(|after| *after < key) && self.filter.allows(&record) {
                self.next = Some((key, record));
            }
        }
        Ok(self.next.as_ref().map(|(key, _)| key))
    }

    pub(super) fn take(&mut self) -> Option<Record> {
        self.next.take().map(|(_, record)| record)
    }
}

#[cold]
fn unsorted(side: &str, is_double: bool) -> Error {
    let message: Cow<'static, str> = if is_double {
        format!("the {side} has a record twice").into()
    } else {
        format!(
            "the {side} is not sorted: credentials by id, config values by key, counters by key and field"
        )
        .into()
    };
    Error::new(ErrorKind::InvalidValue, message)
}

/// What two streams have under one key: one of them may have nothing, but not both.
pub(super) struct Pair {
    pub(super) left: Option<Record>,
    pub(super) right: Option<Record>,
}

/// Everything that either stream has.
pub(super) async fn next_of_both<L, R>(
    left: &mut Sorted<'_, L>,
    right: &mut Sorted<'_, R>,
) -> Result<Option<Pair>>
where
    L: Stream<Item = Result<Record>>,
    R: Stream<Item = Result<Record>>,
{
    let (l, r) = match future::join(left.peek(), right.peek()).await {
        (Ok(l), Ok(r)) => (l, r),
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    let (takes_left, takes_right) = match (l, r) {
        (None, None) => return Ok(None),
        (Some(l), Some(r)) => (l <= r, r <= l),
        (l, r) => (l.is_some(), r.is_some()),
    };
    let left = if takes_left { left.take() } else { None };
    let right = if takes_right { right.take() } else { None };
    Ok(Some(Pair { left, right }))
}

/// What the right stream has under the key of the left one's next record.
pub(super) async fn match_of<R>(key: &RecordKey, right: &mut Sorted<'_, R>) -> Result<Option<Record>>
where
    R: Stream<Item = Result<Record>>,
{
    while let Some(found) = right.peek().await? {
        match found.cmp(key) {
            std::cmp::Ordering::Less => drop(right.take()),
            std::cmp::Ordering::Equal => return Ok(right.take()),
            std::cmp::Ordering::Greater => break,
        }
    }
    Ok(None)
}

/// The canonical lines of two records, in memory that is used again.
#[derive(Default)]
pub(super) struct Lines {
    pub(super) left: Vec<u8>,
    pub(super) right: Vec<u8>,
}

impl Lines {
    /// Whether two records are equal to the last bit.
    pub(super) fn are_same(&mut self, left: &Record, right: &Record) -> bool {
        for (record, line) in [(left, &mut self.left), (right, &mut self.right)] {
            line.clear();
            encode_record(record, line);
        }
        self.left == self.right
    }
}
