//! The telemetry of the full stack, by name: metrics, statistics, and the dashboards that query them.

#[cfg(feature = "redis")]
mod dashboards;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt, StreamExt};
use gateway_storage::{
    Memory, Storage,
    layer::{Fault, Instrument, OperationKind},
};
use metrics_util::{
    MetricKind,
    debugging::{DebugValue, DebuggingRecorder, Snapshotter},
};
use serde_json::json;
#[cfg(feature = "redis")]
use testkit::servers;
use testkit::workload::{OPERATIONS, stacked, work};

/// Calls that are retried.
async fn retries() {
    let faulty = Storage::<Memory>::open("memory:").await.unwrap().layer(Fault::seeded(3).errors(0.2));
    let storage = stacked(faulty);
    for n in 0..20 {
        storage.set_config("a", json!(n)).await.unwrap();
    }
}

/// The metrics of the workload: their kinds, and their labels with values.
fn metrics() -> BTreeMap<String, (MetricKind, BTreeMap<String, BTreeSet<String>>)> {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        runtime().block_on(async {
            work().await;
            retries().await;
        });
    });
    collect(&snapshotter)
}

fn collect(snapshotter: &Snapshotter) -> BTreeMap<String, (MetricKind, BTreeMap<String, BTreeSet<String>>)> {
    let mut found = BTreeMap::new();
    for (key, ..) in snapshotter.snapshot().into_vec() {
        let (kind, key) = key.into_parts();
        let (_, labels) = found.entry(key.name().to_owned()).or_insert_with(|| (kind, BTreeMap::new()));
        for label in key.labels() {
            let values: &mut BTreeSet<String> = labels.entry(label.key().to_owned()).or_default();
            values.insert(label.value().to_owned());
        }
    }
    found
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn metrics_are_named_as_the_conventions_say() {
    let found = metrics();
    let shapes: Vec<_> = found
        .iter()
        .map(|(name, (kind, labels))| {
            (name.as_str(), *kind, labels.keys().map(String::as_str).collect::<Vec<_>>())
        })
        .collect();
    let operation = vec!["db.operation.name", "db.system.name"];
    assert_eq!(
        shapes,
        [
            (
                Instrument::DURATION,
                MetricKind::Histogram,
                vec!["db.operation.name", "db.system.name", "error.type"]
            ),
            ("gateway_storage.operation.active", MetricKind::Gauge, operation.clone()),
            (Instrument::BATCH_SIZE, MetricKind::Histogram, operation),
            (
                "gateway_storage.operation.retries",
                MetricKind::Counter,
                vec!["db.operation.name", "error.type"]
            ),
            (
                "gateway_storage.watch.events",
                MetricKind::Counter,
                vec!["db.system.name", "gateway_storage.watch.event"]
            ),
            ("gateway_storage.watch.last_event", MetricKind::Gauge, vec!["db.system.name"]),
        ]
    );
    assert_eq!(Instrument::DURATION, "db.client.operation.duration");
    assert_eq!(Instrument::BATCH_SIZE, "gateway_storage.operation.batch.size");
    let operations: Vec<_> = found[Instrument::DURATION].1["db.operation.name"].iter().collect();
    assert_eq!(operations, OPERATIONS.iter().collect::<Vec<_>>());
}

#[test]
fn metrics_have_the_values() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let pause = Duration::from_millis(50);
    metrics::with_local_recorder(&recorder, || {
        runtime().block_on(async {
            let memory = Storage::<Memory>::open("memory:").await.unwrap();
            let storage = memory.layer(Fault::seeded(1).delays(1.0, pause..=pause)).instrumented();
            storage.set_config("a", json!(1)).await.unwrap();
            storage
                .get_credentials(&["a", "b", "c"].map(|id| gateway_storage::Key::new(id).unwrap()))
                .await
                .unwrap();
            // Runs while the metrics are read.
            let mut running = Box::pin(storage.set_config("a", json!(2)));
            assert!(running.as_mut().now_or_never().is_none());
            let values = values(&snapshotter);
            assert_eq!(values("gateway_storage.operation.active", "set_config", None), [1.0]);
            assert_eq!(values("gateway_storage.operation.batch.size", "get_credentials", None), [3.0]);
            let durations = values("db.client.operation.duration", "set_config", None);
            assert!(
                durations.len() == 1 && (0.05..10.0).contains(&durations[0]),
                "in seconds: {durations:?}"
            );
            drop(running);
        });
    });
    let values = values(&snapshotter);
    // A snapshot resets the gauges, so only the end of the running call counts.
    assert_eq!(values("gateway_storage.operation.active", "set_config", None), [-1.0]);
    let cancelled = values("db.client.operation.duration", "set_config", Some("cancelled"));
    assert_eq!(cancelled.len(), 1, "a dropped call is reported, too");
}

/// The values of a metric, by its name, operation and `error.type`.
fn values(snapshotter: &Snapshotter) -> impl Fn(&str, &str, Option<&str>) -> Vec<f64> {
    let snapshot = snapshotter.snapshot().into_vec();
    move |name, operation, error| {
        let values = snapshot.iter().filter_map(|(key, _, _, value)| {
            let label =
                |name: &str| key.key().labels().find(|label| label.key() == name).map(|label| label.value());
            let is_it = key.key().name() == name
                && label("db.operation.name") == Some(operation)
                && label("error.type") == error;
            is_it.then(|| match value {
                DebugValue::Counter(count) => vec![*count as f64],
                DebugValue::Gauge(value) => vec![value.into_inner()],
                DebugValue::Histogram(values) => values.iter().map(|value| value.into_inner()).collect(),
            })
        });
        values.flatten().collect()
    }
}

#[test]
fn a_stream_that_is_never_polled_is_not_reported() {
    let recorder = DebuggingRecorder::new();
    metrics::with_local_recorder(&recorder, || {
        runtime().block_on(async {
            let storage = Storage::<Memory>::open("memory:").await.unwrap().instrumented();
            storage.set_config("a", json!(1)).await.unwrap();
            drop(storage.export());
            assert_eq!(storage.export().count().await, 1);
        });
    });
    let durations = values(&recorder.snapshotter())("db.client.operation.duration", "export", None);
    assert_eq!(durations.len(), 1);
}

#[test]
fn a_recorder_may_be_installed_later() {
    let storage = runtime().block_on(Storage::<Memory>::open("memory:")).unwrap().instrumented();
    runtime().block_on(storage.set_config("a", json!(1))).unwrap();
    let recorder = DebuggingRecorder::new();
    metrics::with_local_recorder(&recorder, || {
        runtime().block_on(storage.set_config("a", json!(2))).unwrap();
    });
    let durations = values(&recorder.snapshotter())("db.client.operation.duration", "set_config", None);
    assert_eq!(durations.len(), 1);
}

#[tokio::test]
async fn statistics_include_the_last_minute_and_the_last_export() {
    let begun = SystemTime::now();
    let storage = Storage::<Memory>::open("memory:").await.unwrap();
    let bare = storage.stats().await.unwrap();
    assert!(bare.performance.is_none() && bare.last_backup.is_none());
    let pause = Duration::from_millis(2);
    let fault = Fault::seeded(1).delays(1.0, pause..=pause);
    let storage = storage.layer(fault).instrumented();
    for n in 0..64 {
        storage.set_config("a", json!(n)).await.unwrap();
        storage.get_config("b").await.unwrap_err();
        storage.increment_usage("a", "b", i64::MAX).await.ok();
    }
    let performance = storage.stats().await.unwrap().performance.unwrap();
    assert_eq!(performance.error_rate, 0.0, "an overflow is not an error of the store: {performance:?}");
    let failing = storage.clone().layer(Fault::seeded(1).errors(1.0)).instrumented();
    for _ in 0..63 {
        failing.get_config("b").await.unwrap_err();
        failing.get_config("b").await.unwrap_err();
    }
    let performance = failing.stats().await.unwrap().performance.unwrap();
    assert!((performance.error_rate - 1.0).abs() < 0.02, "{performance:?}");
    let stats = storage.stats().await.unwrap();
    let performance = stats.performance.unwrap();
    for latency in [performance.average_read_latency, performance.average_write_latency] {
        assert!((pause..pause * 100).contains(&latency.unwrap()), "{latency:?}");
    }
    assert!(performance.operations_per_second > 1.0, "{performance:?}");
    assert!(performance.last_measurement.unwrap() >= begun);

    assert_eq!(storage.export().take(1).count().await, 1);
    assert!(storage.stats().await.unwrap().last_backup.is_none(), "a partial export is not a backup");
    assert_eq!(storage.export().count().await, 2);
    let stats = storage.stats().await.unwrap();
    assert!(stats.last_backup.unwrap() + Duration::from_millis(1) >= begun);
    let json = serde_json::to_value(&stats).unwrap();
    assert!(json["last_backup"].as_str().unwrap().ends_with('Z'), "{json}");
    assert!(json["performance"]["average_read_latency_ms"].as_f64().unwrap() >= 2.0, "{json}");
    assert!(json["performance"]["last_measurement"].is_string(), "{json}");
}

#[test]
fn only_marked_operations_are_for_operators() {
    use gateway_storage::layer::Operation;
    assert!(!Operation::new("x", OperationKind::Control).operator, "begin, commit");
    assert!(Operation::new("x", OperationKind::Control).operator().operator, "health, close");
    assert!(!Operation::new("x", OperationKind::Read).operator);
}

/// The pool's gauges are set while the storage exists, and 0 after it is closed or dropped.
#[cfg(feature = "redis")]
#[test]
fn pool_gauges_end_with_the_storage() {
    use gateway_storage::Redis;

    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        runtime().block_on(async {
            for by_close in [true, false] {
                let storage = Storage::<Redis>::open(&*servers::redis()).await.unwrap();
                let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
                let pool = Instrument::new(storage.backend()).sample_pool(storage.backend(), Duration::from_millis(5));
                let storage = storage.layer(pool);
                storage.set_config("a", json!(1)).await.unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
                assert!(gauges(&snapshotter).values().any(|value| *value > 0.0));
                if by_close { storage.close().await.unwrap() } else { drop(storage) }
                let ended = async {
                    while tasks() > 0 {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(30), ended).await.expect("the sampling task ends");
                let gauges = gauges(&snapshotter);
                let names: Vec<_> = gauges.keys().map(String::as_str).collect();
                let expected = [
                    "db.client.connection.count db.client.connection.pool.name=redis/0 db.client.connection.state=idle db.namespace=0 db.system.name=redis",
                    "db.client.connection.count db.client.connection.pool.name=redis/0 db.client.connection.state=used db.namespace=0 db.system.name=redis",
                    "db.client.connection.max db.client.connection.pool.name=redis/0 db.namespace=0 db.system.name=redis",
                    "db.client.connection.pending_requests db.client.connection.pool.name=redis/0 db.namespace=0 db.system.name=redis",
                ];
                assert_eq!(names, expected);
                assert!(gauges.values().all(|value| *value == 0.0), "{gauges:?}");
            }
        });
    });

    fn gauges(snapshotter: &Snapshotter) -> BTreeMap<String, f64> {
        let snapshot = snapshotter.snapshot().into_vec();
        let pool = snapshot.into_iter().filter_map(|(key, _, _, value)| {
            let key = key.key();
            let mut labels: Vec<_> =
                key.labels().map(|label| format!(" {}={}", label.key(), label.value())).collect();
            labels.sort();
            let DebugValue::Gauge(value) = value else { return None };
            key.name()
                .starts_with("db.client.connection")
                .then(|| (key.name().to_owned() + &labels.concat(), value.into_inner()))
        });
        pool.collect()
    }
}
