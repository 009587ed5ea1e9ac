//! Reads two sorted streams side by side.

use std::{borrow::Cow, pin::Pin};

use futures_core::Stream;
use futures_util::{StreamExt, future};

use super::Filter;
use crate::{
    Error, ErrorKind, Record, Result,
    codec::{RecordKey, encode_record},
};

/// A stream that checks the order of its records, filters them, and allows peeking.
pub(super) struct Sorted<'f, S> {
    records: Pin<Box<S>>,
    side: &'static str,
    filter: &'f Filter,
    /// Only records after this one are returned.
    after: Option<RecordKey>,
    last: Option<RecordKey>,
    next: Option<(RecordKey, Record)>,
    has_ended: bool,
    /// Opens the same stream again if it breaks off.
    reopen: Option<Reopen<'f, S>>,
    /// The last record before the stream broke off, until the new one has passed it.
    skip_through: Option<RecordKey>,
}

type Reopen<'f, S> = Box<dyn Fn() -> S + Send + 'f>;

impl<'f, S: Stream<Item = Result<Record>>> Sorted<'f, S> {
    pub(super) fn new(records: S, side: &'static str, filter: &'f Filter, after: Option<RecordKey>) -> Self {
        let records = Box::pin(records);
        let (last, next, reopen, skip_through) = (None, None, None, None);
        Self { records, side, filter, after, last, next, has_ended: false, reopen, skip_through }
    }

    /// A stream that is opened again if it breaks off, as long as it gets further each time. A server keeps a
    /// snapshot only for some minutes.
    pub(super) fn reopening(
        open: impl Fn() -> S + Send + 'f,
        side: &'static str,
        filter: &'f Filter,
        after: Option<RecordKey>,
    ) -> Self {
        let sorted = Self::new(open(), side, filter, after);
        Self { reopen: Some(Box::new(open)), ..sorted }
    }

    /// The next record that the filter allows.
    pub(super) async fn peek(&mut self) -> Result<Option<&RecordKey>> {
        while self.next.is_none() && !self.has_ended {
            // Yields now and then, because a stream that is always ready would starve other tasks.
            tokio::task::consume_budget().await;
            let record = match self.records.next().await {
                Some(Ok(record)) => record,
                Some(Err(error)) => {
                    self.reopen_after(error)?;
                    continue;
                }
                None => {
                    self.has_ended = true;
                    break;
                }
            };
            let key = RecordKey::from(&record);
            if self.skip_through.as_ref().is_some_and(|through| key <= *through) {
                continue;
            }
            self.skip_through = None;
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

    /// Opens the stream again after an error, if that can help.
    fn reopen_after(&mut self, error: Error) -> Result<()> {
        let got_further = self.skip_through.is_none() && self.last.is_some();
        match &self.reopen {
            Some(reopen) if error.is_retryable() && got_further => {
                self.records = Box::pin(reopen());
                self.skip_through.clone_from(&self.last);
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
fn unsorted(side: &str, is_duplicate: bool) -> Error {
    let message: Cow<'static, str> = if is_duplicate {
        format!("the {side} contains a record twice").into()
    } else {
        format!(
            "the {side} is not sorted: credentials by id, config values by key, counters by key and field"
        )
        .into()
    };
    Error::new(ErrorKind::InvalidValue, message)
}

/// The records of two streams under one key. At least one of them is `Some`.
pub(super) struct Pair {
    pub(super) left: Option<Record>,
    pub(super) right: Option<Record>,
}

/// The next key of either stream, with the records of both under it.
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

/// The record under this key in the right stream. Skips the records before it.
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

/// Whether a stream contains this record.
pub(super) async fn has<S>(records: S, key: &RecordKey) -> Result<bool>
where
    S: Stream<Item = Result<Record>>,
{
    let all = Filter::default();
    let mut records = Sorted::new(records, "target", &all, None);
    Ok(match_of(key, &mut records).await?.is_some())
}

/// The canonical lines of two records, in reused buffers.
#[derive(Default)]
pub(super) struct Lines {
    pub(super) left: Vec<u8>,
    pub(super) right: Vec<u8>,
}

impl Lines {
    /// Whether two records are equal in every bit.
    pub(super) fn are_same(&mut self, left: &Record, right: &Record) -> bool {
        for (record, line) in [(left, &mut self.left), (right, &mut self.right)] {
            line.clear();
            encode_record(record, line);
        }
        self.left == self.right
    }
}
