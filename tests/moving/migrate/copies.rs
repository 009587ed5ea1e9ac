//! The rules of a copy.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use gateway_storage::{
    ErrorKind, Exportable, Memory, Record, RecordKind, Result, Storage,
    layer::{Call, Count, Layer, Receiver},
    migrate::{CopyEvent, CopyOptions, CopyReport, Filter, OnConflict, Tally, copy},
};
use serde_json::json;

use super::records::{config, configs, digest, key, memory, of, usage};

pub(crate) async fn copied<B: Exportable>(
    records: Vec<Record>,
    target: &Storage<B>,
    options: &CopyOptions,
) -> CopyReport {
    copy(of(records), target, options, |_| ()).await.unwrap()
}

#[track_caller]
pub(crate) fn counts(report: &CopyReport, kind: RecordKind, wanted: [u64; 5]) {
    let Tally { read, written, unchanged, skipped, failed, .. } = *report.tallies.of(kind);
    assert_eq!(
        [read, written, unchanged, skipped, failed],
        wanted,
        "read, written, unchanged, skipped, failed"
    );
}

fn three() -> Vec<Record> {
    vec![config("a", json!(1)), config("b", json!(1)), config("c", json!(1))]
}

/// A store with a different value for `b`, and the same for `c`.
async fn target() -> Storage<Memory> {
    memory(vec![config("b", json!(1.0)), config("c", json!(1)), config("d", json!(1))]).await
}

async fn values(target: &Storage<Memory>) -> String {
    let configs = target.list_configs().await.unwrap();
    configs.iter().map(|(key, value)| format!("{}={} ", key.as_str(), value.to_json())).collect()
}

#[tokio::test]
async fn policies() {
    let with = |policy| CopyOptions::default().with_on_conflict(policy);

    let to = target().await;
    let report = copied(three(), &to, &with(OnConflict::Overwrite)).await;
    counts(&report, RecordKind::Config, [3, 3, 0, 0, 0]);
    assert_eq!(values(&to).await, "a=1 b=1 c=1 d=1 ");

    let to = target().await;
    let report = copied(three(), &to, &with(OnConflict::Skip)).await;
    counts(&report, RecordKind::Config, [3, 1, 1, 1, 0]);
    assert!(report.is_complete());
    assert_eq!(values(&to).await, "a=1 b=1.0 c=1 d=1 ");

    let to = target().await;
    let report = copied(three(), &to, &with(OnConflict::Fail)).await;
    counts(&report, RecordKind::Config, [2, 1, 0, 0, 1]);
    assert_eq!(values(&to).await, "a=1 b=1.0 c=1 d=1 ", "the records before the conflict are written");
    assert_eq!((report.failures.len(), report.failures[0].key.as_str()), (1, "b"));
    let error = report.complete().unwrap_err();
    assert_eq!((error.kind(), error.key()), (ErrorKind::Conflict, Some(&key("b"))));
}

#[tokio::test]
async fn a_dry_run_reports_everything_and_writes_nothing() {
    let two =
        vec![config("a", json!(2)), config("b", json!(2)), config("c", json!(1)), config("e", json!(2))];
    let base = || memory(vec![config("a", json!(1)), config("b", json!(1)), config("c", json!(1))]);
    for (policy, wanted) in [
        (OnConflict::Overwrite, [4, 3, 1, 0, 0]),
        (OnConflict::Skip, [4, 1, 1, 2, 0]),
        (OnConflict::Fail, [4, 1, 1, 0, 2]),
    ] {
        let count = Count::default();
        let to = base().await.layer(count.clone());
        let before = digest(&to).await;
        let options = CopyOptions::default().with_on_conflict(policy).with_dry_run(true);
        let report = copied(two.clone(), &to, &options).await;
        counts(&report, RecordKind::Config, wanted);
        assert!(report.dry_run && report.stopped.is_none());
        assert_eq!(count.of("import"), 0);
        assert_eq!(digest(&to).await, before);
    }
}

#[tokio::test]
async fn overwriting_does_not_read_the_target() {
    let count = Count::default();
    let to = memory(Vec::new()).await.layer(count.clone());
    let _ = copied(three(), &to, &CopyOptions::default().with_on_conflict(OnConflict::Overwrite)).await;
    assert_eq!((count.of("export"), count.of("import")), (0, 1));
}

#[tokio::test]
async fn filters() {
    let mut records =
        vec![Record::Credential { id: key("team-1"), credential: json!({}).try_into().unwrap() }];
    records.extend([config("team-1", json!(1)), config("team-2", json!(1)), config("x", json!(1))]);
    records.extend([usage("team-1", "x", 1), usage("x", "team-1", 1)]);
    let with = |kinds: &[RecordKind], include: &[&str], exclude: &[&str]| {
        let mut filter = Filter::default();
        filter.kinds = kinds.to_vec();
        filter.include = include.iter().map(|glob| glob.parse().unwrap()).collect();
        filter.exclude = exclude.iter().map(|glob| glob.parse().unwrap()).collect();
        CopyOptions::default().with_filter(filter)
    };
    for (options, wanted) in [
        (with(&[], &[], &[]), [1, 3, 2]),
        (with(&[RecordKind::Config], &[], &[]), [0, 3, 0]),
        (with(&[RecordKind::Credential, RecordKind::Usage], &[], &[]), [1, 0, 2]),
        (with(&[], &["team-*"], &[]), [1, 2, 1]),
        (with(&[], &["team-?", "x"], &["*-1"]), [0, 2, 1]),
        (with(&[], &["team-*"], &["*"]), [0, 0, 0]),
    ] {
        let report = copied(records.clone(), &memory(Vec::new()).await, &options).await;
        assert_eq!(RecordKind::ALL.map(|kind| report.tallies.of(kind).written), wanted);
        assert_eq!(RecordKind::ALL.map(|kind| report.tallies.of(kind).read), wanted);
    }
}

#[tokio::test]
async fn an_unsorted_source_stops_the_copy_after_its_sorted_part() {
    for (records, text) in [
        (vec![config("a", json!(1)), config("c", json!(1)), config("b", json!(1))], "not sorted"),
        (vec![config("a", json!(1)), config("c", json!(1)), config("c", json!(1))], "twice"),
        (vec![config("a", json!(1)), usage("a", "b", 1), usage("a", "a", 1)], "not sorted"),
        (vec![config("a", json!(1)), usage("a", "a", 1), config("b", json!(1))], "not sorted"),
    ] {
        let to = memory(Vec::new()).await;
        let report = copied(records, &to, &CopyOptions::default()).await;
        let error = report.stopped.clone().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidValue);
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(report.tallies.total().written, 2);
        assert!(to.list_configs().await.unwrap().contains_key("a"));
    }
}

#[tokio::test]
async fn invalid_options_are_refused() {
    let to = memory(Vec::new()).await;
    let (mut batch, mut concurrency) = (CopyOptions::default(), CopyOptions::default());
    (batch.batch, concurrency.concurrency) = (0, 0);
    for options in [batch, concurrency] {
        let error = copy(of(three()), &to, &options, |_| ()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidValue);
    }
}

/// A target that never answers.
#[derive(Clone)]
struct Stuck;

impl Layer for Stuck {
    async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> Result<C::Output> {
        if C::OPERATION.name == "import" {
            std::future::pending::<()>().await;
        }
        call.run(on).await
    }
}

#[tokio::test(start_paused = true)]
async fn the_source_is_read_no_faster_than_the_target_writes() {
    let read = Arc::new(AtomicUsize::new(0));
    let counter = read.clone();
    let endless = stream::iter(0_u64..).map(move |n| {
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(config(&format!("k{n:020}"), json!(n)))
    });
    let to = memory(Vec::new()).await.layer(Stuck);
    let options = CopyOptions::default().with_batch(100).with_concurrency(3);
    let copying = copy(endless, &to, &options, |_| ());
    assert!(tokio::time::timeout(Duration::from_secs(60), copying).await.is_err());
    let read = read.load(Ordering::Relaxed);
    assert!((300..=400).contains(&read), "{read}");
}

#[tokio::test]
async fn large_records_are_written_a_few_at_a_time() {
    let count = Count::default();
    let to = memory(Vec::new()).await.layer(count.clone());
    let large = (0..20).map(|n| config(&format!("k{n:02}"), json!("x".repeat(1 << 19)))).collect();
    let report = copied(large, &to, &CopyOptions::default()).await.complete().unwrap();
    assert_eq!(report.tallies.configs.bytes, 20 * ((1 << 19) + 2 + 3));
    assert_eq!(count.of("import"), 3, "10 MiB in chunks of 4 MiB");
}

#[tokio::test(start_paused = true)]
async fn the_rate_is_kept() {
    for (rate, count, seconds) in [(100, 1000, 10), (3, 30, 10), (10_000, 20_000, 2)] {
        let to = memory(Vec::new()).await;
        let options = CopyOptions::default().with_rate(NonZeroU32::new(rate).unwrap());
        let begun = tokio::time::Instant::now();
        let report = copied(configs(count), &to, &options).await;
        assert_eq!(report.tallies.total().written, count as u64);
        let took = begun.elapsed().as_secs_f64();
        assert!(
            (0.9..1.1).contains(&(took / f64::from(seconds))),
            "{count} records at {rate} per second took {took} s"
        );
    }
}

#[tokio::test]
async fn progress_is_reported_and_never_decreases() {
    let to = memory(Vec::new()).await;
    let options = CopyOptions::default().with_batch(10);
    // A channel makes a stream of the events.
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let report = copy(of(configs(100)), &to, &options, move |event| drop(sender.send(event))).await.unwrap();
    let mut last = Tally::default();
    let mut events = 0;
    while let Some(event) = receiver.recv().await {
        let CopyEvent::Progress(tallies) = event else { panic!("{event:?}") };
        assert!(tallies.total().written >= last.written);
        last = tallies.total();
        events += 1;
    }
    assert!(events >= 10, "{events}");
    assert_eq!(last, report.tallies.total());
}

/// Compiles only if a copy between any two backends is `Send`.
#[tokio::test]
async fn a_copy_can_be_spawned() {
    fn spawn<S: Exportable, T: Exportable>(
        source: Storage<S>,
        target: Storage<T>,
    ) -> tokio::task::JoinHandle<Result<CopyReport>> {
        tokio::spawn(async move { copy(source.export(), &target, &CopyOptions::default(), |_| ()).await })
    }
    let to = memory(Vec::new()).await;
    let report = spawn(memory(three()).await, to.clone()).await.unwrap().unwrap();
    assert_eq!(report.tallies.total().written, 3);
    assert_eq!(values(&to).await, "a=1 b=1 c=1 ");
}

#[tokio::test]
async fn debug_output_contains_no_key() {
    let secret = "sk-secret";
    let to = memory(vec![config(secret, json!(1))]).await;
    let mut options = CopyOptions::default();
    options.filter.include = vec![secret.parse().unwrap()];
    let mut output = format!("{options:?}");
    let report =
        copy(of(vec![config(secret, json!(2))]), &to, &options, |event| output += &format!("{event:?}"))
            .await
            .unwrap();
    output += &format!("{report:?} {:?}", report.clone().complete());
    assert!(output.contains("conflict") && !output.contains(secret), "{output}");
}
