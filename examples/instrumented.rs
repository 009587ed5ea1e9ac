//! Telemetry: metrics for Prometheus, spans for OpenTelemetry, and the store's own statistics.
//!
//!     cargo run --example instrumented
//!
//! This example prints them. An application serves the metrics under `/metrics` and sends the spans to a
//! collector with another exporter. `examples/monitoring` has a Grafana dashboard and Prometheus alerts for
//! these metrics.

use std::error::Error;

use gateway_storage::{File, Storage, layer::Instrument};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
use serde_json::json;
use tracing_subscriber::layer::SubscriberExt;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Metrics. The recommended naming is the one of OpenTelemetry's collector: `..._seconds`, `..._total`.
    let metrics = PrometheusBuilder::new()
        .with_recommended_naming(true)
        .set_buckets_for_metric(Matcher::Full(Instrument::DURATION.into()), &Instrument::DURATION_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(Instrument::BATCH_SIZE.into()), &[1.0, 10.0, 100.0, 1000.0])?
        .install_recorder()?;

    // Traces.
    let spans = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).build();
    let layer = tracing_opentelemetry::layer()
        .with_location(false)
        .with_threads(false)
        .with_tracer(provider.tracer("example"));
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer))?;

    let folder = tempfile::tempdir()?;
    let url = format!("file:{}/data", folder.path().display());
    let storage = Storage::<File>::open(url).await?.instrumented();

    storage.set_credential("cred-001", json!({ "access_token": "token" })).await?;
    for _ in 0..100 {
        storage.get_credential("cred-001").await?;
        storage.increment_usage("cred-001", "requests", 1).await?;
    }
    // An error, to show how it is reported.
    storage.increment_usage("cred-001", "requests", i64::MAX).await.expect_err("it would overflow");

    println!("# Prometheus\n\n{}", metrics.render());

    println!("# OpenTelemetry\n");
    for span in spans.get_finished_spans()?.iter().rev().take(3) {
        let took = span.end_time.duration_since(span.start_time)?;
        println!("{} {took:?} {:?}", span.name, span.status);
        for attribute in &span.attributes {
            println!("    {} = {}", attribute.key, attribute.value);
        }
    }

    let stats = storage.stats().await?;
    println!("\n# Statistics\n\n{}", serde_json::to_string_pretty(&stats)?);
    storage.close().await?;
    Ok(())
}
