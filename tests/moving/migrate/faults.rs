//! Targets that fail or refuse records.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use gateway_storage::{
    Backend, BatchFailure, BatchReport, Error, ErrorKind, Exportable, Memory, Outcome, Record, RecordKind,
    Result, Storage, StorageStats,
    layer::{Call, Count, Fault, Layer, Receiver},
    migrate::{CopyEvent, CopyOptions, MAX_NAMED, OnConflict, copy},
};
use serde_json::json;

use super::{
    copies::{copied, counts},
    records::{config, configs, digest, memory, of, usage},
};

#[tokio::test(start_paused = true)]
async fn transient_errors_of_the_target_are_retried() {
    let faulty = Fault::seeded(3).errors(0.2).lost_requests(0.2).lost_replies(0.2);
    let to = memory(Vec::new()).await;
    let mut options = CopyOptions::default().with_on_conflict(OnConflict::Overwrite);
    options.batch = 10;
    let mut retries = 0;
    let records = configs(1000);
    let report = copy(of(records.clone()), &to.clone().layer(faulty), &options, |event| {
        retries += u64::from(matches!(event, CopyEvent::Retrying { .. }));
    })
    .await
    .unwrap()
    .complete()
    .unwrap();
    counts(&report, RecordKind::Config, [1000, 1000, 0, 0, 0]);
    assert!(retries > 50, "{retries}");
    assert_eq!(digest(&to).await, digest(&memory(records).await).await);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_lost_stops_the_copy() {
    let count = Count::default();
    let to = memory(Vec::new()).await.layer(Fault::seeded(1).errors(1.0)).layer(count.clone());
    let mut options = CopyOptions::default().with_on_conflict(OnConflict::Overwrite);
    (options.batch, options.concurrency) = (10, 1);
    let report = copied(configs(1000), &to, &options).await;
    assert_eq!(report.stopped.as_ref().unwrap().kind(), ErrorKind::Unavailable);
    assert_eq!(report.tallies.total().written, 0);
    assert!(report.failures.is_empty(), "the error is not about single records");
    assert!((5..20).contains(&count.of("import")), "{}", count.of("import"));
}

/// Makes calls of `import` fail, by their number.
#[derive(Clone)]
struct Nth(Arc<AtomicUsize>, fn(usize) -> Option<Error>);

impl Layer for Nth {
    async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> Result<C::Output> {
        if C::OPERATION.name == "import" {
            match self.1(self.0.fetch_add(1, Ordering::Relaxed)) {
                Some(error) => return Err(error),
                // Successful calls take longer.
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        call.run(on).await
    }
}

fn nth(error: fn(usize) -> Option<Error>) -> Nth {
    Nth(Arc::default(), error)
}

#[tokio::test(start_paused = true)]
async fn writes_in_progress_when_the_copy_stops_are_counted() {
    // The first call fails permanently; the third one would be retried for long.
    let error = |at| match at {
        0 => Some(Error::new(ErrorKind::Denied, "not you")),
        2 => Some(Error::new(ErrorKind::Unavailable, "not now").with_outcome(Outcome::Unknown)),
        _ => None,
    };
    let to = memory(Vec::new()).await;
    let mut options = CopyOptions::default().with_on_conflict(OnConflict::Overwrite);
    options.batch = 10;
    let begun = tokio::time::Instant::now();
    let report = copied(configs(1000), &to.clone().layer(nth(error)), &options).await;
    let stopped = report.stopped.as_ref().unwrap();
    assert_eq!((stopped.kind(), stopped.outcome()), (ErrorKind::Denied, Outcome::Unknown));
    let stored = to.list_configs().await.unwrap().len() as u64;
    assert!(stored > 0);
    assert_eq!(report.tallies.total().written, stored);
    assert!(begun.elapsed() < Duration::from_millis(50), "the other calls are not retried");
}

#[tokio::test(start_paused = true)]
async fn the_outcome_stays_unknown_after_a_later_attempt() {
    let lost = |at| {
        let error = Error::new(ErrorKind::Unavailable, "no reply");
        Some(if at == 0 { error.with_outcome(Outcome::Unknown) } else { error })
    };
    let to = memory(Vec::new()).await.layer(nth(lost));
    let report = copied(configs(5), &to, &CopyOptions::default()).await;
    assert_eq!(report.tallies.total().written, 0);
    assert_eq!(report.stopped.unwrap().outcome(), Outcome::Unknown);
}

/// Refuses some records permanently, declares which kinds it imports, and breaks off its exports after some
/// records.
#[derive(Clone)]
struct Picky {
    memory: Memory,
    refuses: fn(&Record) -> bool,
    imports: fn(RecordKind) -> bool,
    /// After how many records each export breaks off, by the number of the export.
    ends: fn(usize) -> usize,
    exports: Arc<AtomicUsize>,
}

impl Picky {
    async fn with(records: Vec<Record>) -> Self {
        let memory = memory(records).await.backend().clone();
        Self { memory, refuses: |_| false, imports: |_| true, ends: |_| usize::MAX, exports: Arc::default() }
    }
}

impl Backend for Picky {
    fn label(&self) -> &'static str {
        "picky"
    }
    fn set_deadline(&mut self, deadline: Duration) {
        self.memory.set_deadline(deadline);
    }
    async fn health(&self) -> Result<()> {
        self.memory.health().await
    }
    async fn stats(&self) -> Result<StorageStats> {
        self.memory.stats().await
    }
    async fn close(&self) -> Result<()> {
        self.memory.close().await
    }
}

impl Exportable for Picky {
    fn export(&self) -> impl Stream<Item = Result<Record>> + Send {
        let mut left = (self.ends)(self.exports.fetch_add(1, Ordering::Relaxed));
        self.memory.export().map(move |record| {
            left = left.checked_sub(1).ok_or_else(|| Error::new(ErrorKind::Unavailable, "no snapshot"))?;
            record
        })
    }
    fn imports(&self, kind: RecordKind) -> bool {
        (self.imports)(kind)
    }
    async fn import(&self, records: &[Record]) -> Result<BatchReport> {
        let refuses = |record: &Record| (self.refuses)(record) || !(self.imports)(record.kind());
        let taken: Vec<Record> = records.iter().filter(|record| !refuses(record)).cloned().collect();
        let mut report = self.memory.import(&taken).await?;
        for (index, record) in records.iter().enumerate().filter(|(_, record)| refuses(record)) {
            let error = Error::new(ErrorKind::Unsupported, "not here");
            report.failures.push(BatchFailure::new(index, record.key(), error));
        }
        Ok(report)
    }
}

/// A target that does not store counters.
pub(crate) async fn without_usage() -> Storage<impl Exportable> {
    let mut to = Picky::with(Vec::new()).await;
    to.imports = |kind| kind != RecordKind::Usage;
    Storage::new(to)
}

#[tokio::test]
async fn refused_records_are_named_and_do_not_stop_the_copy() {
    let mut to = Picky::with(Vec::new()).await;
    to.refuses = |record| record.kind() == RecordKind::Usage || record.key().as_str() == "k00007";
    let inner = Storage::new(to.memory.clone());
    let to = Storage::new(to);
    let mut records = configs(100);
    records.extend((0..1500).map(|n| usage("u", &format!("f{n:05}"), n)));
    let mut events = 0;
    let report = copy(of(records), &to, &CopyOptions::default(), |event| {
        events += u64::from(matches!(event, CopyEvent::Failed(_)));
    })
    .await
    .unwrap();
    assert!(report.stopped.is_none() && !report.is_complete());
    counts(&report, RecordKind::Config, [100, 99, 0, 0, 1]);
    counts(&report, RecordKind::Usage, [1500, 0, 0, 0, 1500]);
    assert_eq!(inner.list_configs().await.unwrap().len(), 99);
    assert_eq!((events, report.failures.len()), (1501, MAX_NAMED), "all are counted, the first are named");
    let first = &report.failures[0];
    assert_eq!((first.kind, first.key.as_str(), &first.field), (RecordKind::Config, "k00007", &None));
    assert_eq!(report.failures[1].field.as_ref().unwrap().as_str(), "f00000");
    assert_eq!(report.complete().unwrap_err().kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn unsupported_kinds_fail_without_a_write() {
    let mut to = Picky::with(Vec::new()).await;
    to.imports = |kind| kind != RecordKind::Usage;
    let count = Count::default();
    let to = Storage::new(to).layer(count.clone());
    assert!(to.imports(RecordKind::Config) && !to.imports(RecordKind::Usage));
    let records = vec![config("a", json!(1)), usage("u", "x", 1), usage("u", "y", 1)];
    for dry_run in [true, false] {
        let mut options = CopyOptions::default();
        options.dry_run = dry_run;
        let report = copied(records.clone(), &to, &options).await;
        counts(&report, RecordKind::Config, [1, 1, 0, 0, 0]);
        counts(&report, RecordKind::Usage, [2, 0, 0, 0, 2]);
        assert_eq!(report.failures[1].error.kind(), ErrorKind::Unsupported);
    }
    assert_eq!(count.of("import"), 1);
}

#[tokio::test]
async fn the_target_is_read_again_if_its_export_breaks_off() {
    let mut records = configs(120);
    records[7] = config("k00007", json!("other"));
    let options = CopyOptions::default().with_on_conflict(OnConflict::Skip);
    let mut to = Picky::with(configs(100)).await;
    to.ends = |at| 40 * (at + 1);
    let report = copied(records.clone(), &Storage::new(to.clone()), &options).await.complete().unwrap();
    counts(&report, RecordKind::Config, [120, 20, 99, 1, 0]);
    assert_eq!(to.exports.load(Ordering::Relaxed), 3);

    // The copy stops if an export gets no further than the one before.
    let mut to = Picky::with(configs(100)).await;
    to.ends = |_| 40;
    let report = copied(records, &Storage::new(to.clone()), &options).await;
    assert_eq!(report.stopped.as_ref().unwrap().kind(), ErrorKind::Unavailable);
    counts(&report, RecordKind::Config, [40, 0, 39, 1, 0]);
    assert_eq!(to.exports.load(Ordering::Relaxed), 2);
}

/// Shortens the server's five minutes to a second.
#[cfg(feature = "mongodb")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_snapshot_of_mongodb_is_replaced() {
    let server = super::servers::mongodb::ReplicaSet::start(1);
    let shorter = mongodb::bson::doc! { "setParameter": 1, "minSnapshotHistoryWindowInSeconds": 1 };
    super::servers::mongodb::ask(server.members[0].port, "admin", shorter).unwrap();
    let to = Storage::<gateway_storage::MongoDb>::open(&*server.url("copy")).await.unwrap();
    let held = configs(3000).into_iter().step_by(2).collect();
    let _ = to.import(of(held)).await.unwrap().complete().unwrap();
    let mut options = CopyOptions::default().with_on_conflict(OnConflict::Skip);
    (options.rate, options.batch) = (std::num::NonZeroU32::new(500), 50);
    let report = copied(configs(3000), &to, &options).await.complete().unwrap();
    counts(&report, RecordKind::Config, [3000, 1500, 1500, 0, 0]);
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn a_pool_of_one_is_refused_if_the_copy_needs_two_connections() {
    let url = super::servers::postgres();
    let one = Storage::<gateway_storage::Postgres>::open(&*format!("{url}&pool_size=1")).await.unwrap();
    let two = Storage::<gateway_storage::Postgres>::open(&*format!("{url}&pool_size=2")).await.unwrap();
    let _ = two.import(of(configs(10))).await.unwrap().complete().unwrap();
    let options = CopyOptions::default().with_on_conflict(OnConflict::Skip);
    let error = copy(of(configs(20)), &one, &options, |_| ()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidValue);
    assert!(error.to_string().contains("one connection"), "{error}");
    let report = copied(configs(20), &two, &options).await.complete().unwrap();
    counts(&report, RecordKind::Config, [20, 10, 10, 0, 0]);
    // One is enough for a dry run, which does not write, and for overwriting, which does not read.
    let _ = copied(configs(20), &one, &options.with_dry_run(true)).await.complete().unwrap();
    let options = CopyOptions::default().with_on_conflict(OnConflict::Overwrite);
    let _ = copied(configs(20), &one, &options).await.complete().unwrap();
}
