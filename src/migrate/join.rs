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
    /// Makes the same stream once more, if it breaks off.
    again: Option<Again<'f, S>>,
    /// Up to here it was read before it broke off.
    read: Option<RecordKey>,
}

type Again<'f, S> = Box<dyn Fn() -> S + Send + 'f>;

impl<'f, S: Stream<Item = Result<Record>>> Sorted<'f, S> {
    pub(super) fn new(records: S, side: &'static str, filter: &'f Filter, after: Option<RecordKey>) -> Self {
        let records = Box::pin(records);
        let (last, next, again, read) = (None, None, None, None);
        Self { records, side, filter, after, last, next, has_ended: false, again, read }
    }

    /// A stream that is made anew where it breaks off, as long as it comes further each time: a server keeps a snapshot for some
    /// minutes.
    pub(super) fn renewed(
        make: impl Fn() -> S + Send + 'f,
        side: &'static str,
        filter: &'f Filter,
        after: Option<RecordKey>,
    ) -> Self {
        let sorted = Self::new(make(), side, filter, after);
        Self { again: Some(Box::new(make)), ..sorted }
    }

    /// The next record that the filter allows.
    pub(super) async fn peek(&mut self) -> Result<Option<&RecordKey>> {
        while self.next.is_none() && !self.has_ended {
            // A stream that is always ready would keep others from their turn.
            tokio::task::consume_budget().await;
            let record = match self.records.next().await {
                Some(Ok(record)) => record,
                Some(Err(error)) => {
                    self.renew(error)?;
                    continue;
                }
                None => {
                    self.has_ended = true;
                    break;
                }
            };
            let key = RecordKey::from(&record);
            if self.read.as_ref().is_some_and(|read| key <= *read) {
                continue;
            }
            self.read = None;
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

    /// Begins again after an error, if that can help.
    fn renew(&mut self, error: Error) -> Result<()> {
        let has_come_further = self.read.is_none() && self.last.is_some();
        match &self.again {
            Some(again) if error.is_retryable() && has_come_further => {
                self.records = Box::pin(again());
                self.read.clone_from(&self.last);
                Ok(())
            }
            _ => Err(error),
        }
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

/// Whether a stream has this record.
pub(super) async fn has<S>(records: S, key: &RecordKey) -> Result<bool>
where
    S: Stream<Item = Result<Record>>,
{
    let all = Filter::default();
    let mut records = Sorted::new(records, "target", &all, None);
    Ok(match_of(key, &mut records).await?.is_some())
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
