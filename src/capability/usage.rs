//! [`UsageStore`]: counters.

use std::collections::BTreeMap;

use super::batch::{Deadline, WRITE};
use crate::{Backend, BatchReport, Increment, Key, Result, UsageRecord, capability};

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

    /// Adds to many counters. The backends of this crate send them together. The default body calls
    /// [`increment_usage`](UsageStore::increment_usage) for each, one after another.
    ///
    /// - Each increment is atomic; together they are not a transaction.
    /// - They are applied in order. Increments of one counter add up; one that would overflow is a failure in
    ///   the report, and the next is added to the unchanged counter.
    #[operation(write, batch = increments)]
    fn increment_many(&self, increments: &[Increment]) -> impl Future<Output = Result<BatchReport>> + Send {
        async move {
            let (deadline, mut report) = (Deadline::of(self), BatchReport::default());
            for (index, Increment { key, field, delta }) in increments.iter().enumerate() {
                let total = deadline.run(WRITE, self.increment_usage(key, field, *delta)).await;
                report.record(index, key, total);
            }
            report.settle()
        }
    }

    /// Reads one record.
    ///
    /// - [`NotFound`](crate::ErrorKind::NotFound) if none of its counters was ever incremented, or it was
    ///   reset.
    #[operation(read)]
    fn get_usage(&self, key: &Key) -> impl Future<Output = Result<UsageRecord>> + Send;

    /// Deletes one record with all its counters.
    ///
    /// - [`NotFound`](crate::ErrorKind::NotFound) if there is none.
    #[operation(write)]
    fn reset_usage(&self, key: &Key) -> impl Future<Output = Result<()>> + Send;

    /// Reads all records, sorted by key.
    #[operation(read)]
    fn list_usage(&self) -> impl Future<Output = Result<BTreeMap<Key, UsageRecord>>> + Send;
}
