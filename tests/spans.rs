//! The spans that OpenTelemetry receives, by name. In a process of its own, because `tracing` caches for all
//! threads which call sites are enabled.

#![cfg(all(feature = "conformance", feature = "memory"))]

use std::collections::BTreeSet;

use opentelemetry::trace::{SpanKind, Status, TracerProvider};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use testkit::workload::{self, OPERATIONS, work};
use tracing_subscriber::layer::SubscriberExt;

/// The spans that OpenTelemetry receives from some work.
async fn spans(work: impl Future<Output = ()>) -> Vec<SpanData> {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let layer = tracing_opentelemetry::layer()
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_level(false)
        .with_target(false)
        .with_tracer(provider.tracer("test"));
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
    work.await;
    exporter.get_finished_spans().unwrap()
}

/// The operations of [`History`], which `Memory` does not have.
#[cfg(feature = "git")]
async fn history_work() {
    use gateway_storage::{Git, History, Key, Storage, history::DocumentKind};

    let folder = tempfile::tempdir().unwrap();
    let opened = Storage::<Git>::open(&*format!("git:{}/store", folder.path().display())).await.unwrap();
    let (storage, key) = (workload::stacked(opened), Key::new("a").unwrap());
    storage.set_config("a", serde_json::json!(1)).await.unwrap();
    let on = storage.backend();
    let newest = on.history(DocumentKind::Config, &key, 9).await.unwrap()[0].id;
    on.value_at(newest, DocumentKind::Config, &key).await.unwrap();
    on.revert(newest).await.unwrap();
}

#[tokio::test]
async fn spans_are_named_as_the_conventions_say() {
    let spans = spans(work()).await;
    let names: BTreeSet<&str> = spans.iter().map(|span| &*span.name).collect();
    assert_eq!(names.into_iter().collect::<Vec<_>>(), OPERATIONS);
    let mut attributes = BTreeSet::new();
    for span in &spans {
        assert_eq!(span.span_kind, SpanKind::Client);
        let value = |name: &str| {
            let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == name);
            found.map(|attribute| attribute.value.to_string())
        };
        assert_eq!(value("db.system.name").as_deref(), Some("memory"));
        assert_eq!(value("db.operation.name").as_deref(), Some(&*span.name));
        let of_caller = ["conflict", "invalid_value", "overflow", "too_large"];
        let of_store = value("error.type").is_some_and(|kind| !of_caller.contains(&&*kind));
        assert_eq!(of_store, matches!(span.status, Status::Error { .. }), "{span:?}");
        assert_ne!(value("db.operation.batch.size").as_deref(), Some("1"), "one item is not a batch");
        assert_eq!(span.events.len(), 1, "one event, at the end: {span:?}");
        let level = span.events[0].attributes.iter().find(|attribute| attribute.key.as_str() == "level");
        let level = level.unwrap().value.to_string();
        assert_eq!(level, if of_store { "WARN" } else { "DEBUG" }, "{span:?}");
        attributes.extend(span.attributes.iter().map(|attribute| attribute.key.to_string()));
    }
    let expected = [
        "db.operation.batch.size",
        "db.operation.name",
        "db.response.returned_rows",
        "db.system.name",
        "error.type",
    ];
    assert_eq!(attributes.into_iter().collect::<Vec<_>>(), expected);

    let errors: BTreeSet<(String, String)> = spans
        .iter()
        .filter_map(|span| {
            let error = span.attributes.iter().find(|attribute| attribute.key.as_str() == "error.type")?;
            Some((span.name.to_string(), error.value.to_string()))
        })
        .collect();
    let expected = [
        ("apply_plan", "conflict"),
        ("claim_lease", "invalid_value"),
        ("commit", "conflict"),
        ("delete_if", "conflict"),
        ("get_config", "closed"),
        ("increment_many", "overflow"),
        ("increment_usage", "overflow"),
        ("increment_within", "overflow"),
        ("release_lease", "invalid_value"),
        ("renew_lease", "conflict"),
        ("renew_lease", "invalid_value"),
        ("set_cache", "invalid_value"),
        ("set_cache", "too_large"),
        ("set_cache_if_absent", "invalid_value"),
        ("set_cache_many", "too_large"),
        ("set_if", "conflict"),
    ];
    let expected = expected.map(|(operation, error)| (operation.to_owned(), error.to_owned()));
    assert_eq!(errors.into_iter().collect::<Vec<_>>(), expected, "NotFound is not an error here");

    #[cfg(feature = "git")]
    {
        let spans = self::spans(history_work()).await;
        let names: Vec<&str> = spans.iter().map(|span| &*span.name).collect();
        // The branch is the namespace.
        assert_eq!(names, ["set_config main", "history main", "value_at main", "revert main"]);
    }
}
