//! Compares records one by one.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use futures_util::Stream;
use gateway_storage::{
    Record, Result as StorageResult,
    migrate::{self, Filter, VerifyOptions, VerifyReport},
};

use super::source::counted;
use crate::term::{failure::Failure, interrupt::Interrupt, progress::Bar};

/// Compares two streams under a progress bar. `total` is the number of records in both.
pub(crate) async fn compare(
    source: impl Stream<Item = StorageResult<Record>> + Send,
    target: impl Stream<Item = StorageResult<Record>> + Send,
    total: Option<u64>,
    filter: &Filter,
    interrupt: &Interrupt,
) -> Result<VerifyReport, Failure> {
    let done = Arc::new(AtomicU64::new(0));
    let source = interrupt.interruptible(counted(source, done.clone()));
    // Both streams are counted, because either can be much longer than the other.
    let target = interrupt.interruptible(counted(target, done.clone()));
    let mut bar = Bar::new("verifying", total);
    let options = VerifyOptions::default().with_filter(filter.clone());
    let report = migrate::verify(source, target, &options, |report| {
        let total = report.total();
        bar.at(done.load(Ordering::Relaxed), total.same + total.different + total.missing + total.extra);
    });
    // Ending the streams is not enough: the comparison may be waiting for one that does not answer.
    interrupt.unless(report).await?.map_err(|error| match interrupt.is_set() {
        true => Failure::interrupted(),
        false => error.into(),
    })
}

/// The failure for stores that differ.
pub(crate) fn failure(report: &VerifyReport) -> Failure {
    let total = report.total();
    let counts = [(total.different, "different"), (total.missing, "missing"), (total.extra, "extra")];
    let counts = counts.into_iter().filter(|(count, _)| *count > 0);
    let texts: Vec<String> = counts.map(|(count, what)| format!("{count} {what}")).collect();
    Failure::differences(format!("source and target differ: {}", texts.join(", ")))
}
