//! [`UsageStore`]: counters.

use std::collections::BTreeMap;

use futures_core::Stream;

use super::{
    batch::{Deadline, READ, WRITE},
    stream,
};
use crate::{
    Backend, Found, Increment, Key, OptionalExt, Outcome, Result, UsageRecord, capability,
    model::{ListOptions, Totals, Within},
};

/// Counts usage: each record has a key and maps fields to `i64` counters.
#[capability(wrapper = UsageStoreWrapper)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot count usage",
    note = "backends that count usage: `File`, `Memory`, `MongoDb`, `Postgres`, `Redis`"
)]
pub trait UsageStore: Backend {
    /// Adds `delta`, which may be 0, to one counter and returns the new total. A missing counter starts at 0.
    ///
    /// - Atomic and exact under any concurrency, in this process and others; as durable as any write.
    /// - [`Overflow`](crate::ErrorKind::Overflow) if the total would leave the range of `i64`; the counter is
    ///   unchanged.
    /// - A layer never repeats it after an [unknown outcome](crate::Outcome::Unknown), because that could
    ///   count twice.
    #[operation(write)]
    fn increment_usage(&self, key: &Key, field: &Key, delta: i64)
    -> impl Future<Output = Result<i64>> + Send;

    /// Adds `delta` to one counter if its new total is then at most `limit`. For budgets: see
    /// [`usage`](crate::usage).
    ///
    /// - [`Counted`](Within::Counted) with the new total, or [`Refused`](Within::Refused) with the total as
    ///   it is: then nothing is changed, and a missing counter is not made.
    /// - The comparison and the addition are one step under any concurrency, in this process and others: the
    ///   total of concurrent calls never exceeds the limit, and a call is refused only if it would.
    /// - A new total of more than `i64::MAX` is over every limit. One of less than `i64::MIN` is
    ///   [`Overflow`](crate::ErrorKind::Overflow), and the counter is unchanged.
    /// - The limit binds this call alone: [`increment_usage`](UsageStore::increment_usage) knows none.
    #[operation(write)]
    fn increment_within(
        &self,
        key: &Key,
        field: &Key,
        delta: i64,
        limit: i64,
    ) -> impl Future<Output = Result<Within>> + Send;

    /// Adds to many counters. The backends of this crate send them together. The default body calls
    /// [`increment_usage`](UsageStore::increment_usage) for each, one after another.
    ///
    /// - Each increment is atomic; together they are not a transaction.
    /// - They are applied in order. Increments of one counter add up; one that would overflow is a failure in
    ///   the report, and the next is added to the unchanged counter.
    /// - Each item gets the total that it led to. Of several items with one counter, each gets its own.
    #[operation(write, batch = increments)]
    fn increment_many(&self, increments: &[Increment]) -> impl Future<Output = Result<Totals>> + Send {
        async move {
            let (deadline, mut totals) = (Deadline::of(self), Totals::default());
            for Increment { key, field, delta } in increments {
                let total = deadline.run(WRITE, self.increment_usage(key, field, *delta)).await;
                totals.record(key, total);
            }
            totals.settle()
        }
    }

    /// Reads one record.
    ///
    /// - [`NotFound`](crate::ErrorKind::NotFound) if none of its counters was ever incremented, or it was
    ///   reset.
    #[operation(read)]
    fn get_usage(&self, key: &Key) -> impl Future<Output = Result<UsageRecord>> + Send;

    /// Reads one counter. The default body reads the record.
    ///
    /// - 0 if it is missing, or its record.
    #[operation(read)]
    fn get_counter(&self, key: &Key, field: &Key) -> impl Future<Output = Result<i64>> + Send {
        async move {
            let record = self.get_usage(key).await.optional()?;
            Ok(record.and_then(|record| record.get(field.as_str())).unwrap_or(0))
        }
    }

    /// Reads many records. The default body calls [`get_usage`](UsageStore::get_usage) once for each key, one
    /// after another.
    ///
    /// - Returns the records that exist, sorted by key, and a failure for each other key.
    /// - A key that is passed twice is returned once; if it is missing, each mention is a failure.
    #[operation(read, batch = keys)]
    fn get_usages(&self, keys: &[Key]) -> impl Future<Output = Result<Found<UsageRecord>>> + Send {
        async move {
            let deadline = Deadline::of(self);
            deadline.read_each(keys, |key| deadline.run(READ, self.get_usage(key))).await
        }
    }

    /// Deletes one record with all its counters.
    ///
    /// - [`NotFound`](crate::ErrorKind::NotFound) if there is none.
    #[operation(write)]
    fn reset_usage(&self, key: &Key) -> impl Future<Output = Result<()>> + Send;

    /// Deletes the records whose keys begin with `prefix`, and returns their number. The default body lists
    /// all records and resets each.
    ///
    /// - 0 if there is none. A prefix is a [`Key`], so it can't be empty.
    /// - Each record is deleted as a whole; together they are not a transaction. A record that is incremented
    ///   meanwhile may be deleted before or after that, or not.
    /// - After an error some of them may be deleted: its outcome is then
    ///   [`Unknown`](crate::Outcome::Unknown), and a second call deletes the others.
    #[operation(write)]
    fn reset_usage_prefix(&self, prefix: &Key) -> impl Future<Output = Result<u64>> + Send {
        async move {
            let (deadline, mut deleted) = (Deadline::of(self), 0);
            let listed = deadline.run(READ, self.list_usage()).await?;
            for key in listed.keys().filter(|key| key.as_str().starts_with(prefix.as_str())) {
                let reset = deadline.run(WRITE, self.reset_usage(key)).await.optional();
                let reset = reset.map_err(|error| match deleted {
                    0 => error,
                    _ => error.with_outcome(Outcome::Unknown),
                })?;
                deleted += u64::from(reset.is_some());
            }
            Ok(deleted)
        }
    }

    /// Reads all records, sorted by key. [`stream_usage`](UsageStore::stream_usage) has them one by one.
    #[operation(read)]
    fn list_usage(&self) -> impl Future<Output = Result<BTreeMap<Key, UsageRecord>>> + Send;

    /// Streams records, sorted by key: those that the [options](ListOptions) name. The default body lists all
    /// records.
    ///
    /// - The stream ends after the first error.
    /// - It is read page by page, and is no snapshot: a record that is there all the time is returned once.
    ///   One that is made or deleted meanwhile may be returned or not.
    #[operation(read)]
    fn stream_usage(&self, options: ListOptions) -> impl Stream<Item = Result<(Key, UsageRecord)>> + Send {
        stream::of_map(options, self.list_usage())
    }
}
