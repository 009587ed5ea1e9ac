//! `storage ping`.

use std::time::{Duration, Instant};

use clap::Args;
use gateway_storage::{Backend, Storage};
use serde_json::{Value, json};

use super::{Answer, CliBackend, Failure, Run, Session};

/// Check that the store can serve reads and writes
#[derive(Args)]
#[command(after_help = "\
Examples:
  storage ping --url file:./data
  storage ping > /dev/null && echo up")]
pub(crate) struct Ping {}

impl<B: CliBackend> Run<B> for Ping {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        let storage = session.read().await?;
        let latency = round_trip(storage).await?;
        Ok(Answer::report(
            vec![(storage.label().into(), format!("ok, {}", milliseconds(latency)))],
            json!({ "backend": storage.label(), "latency_ms": as_json(latency), "ok": true }),
        ))
    }
}

/// The duration of a health check.
pub(super) async fn round_trip(storage: &Storage<impl Backend>) -> gateway_storage::Result<Duration> {
    let start = Instant::now();
    storage.health().await?;
    Ok(start.elapsed())
}

/// A duration as text.
pub(super) fn milliseconds(duration: Duration) -> String {
    format!("{:.3} ms", duration.as_secs_f64() * 1e3)
}

/// A duration as JSON.
pub(super) fn as_json(duration: Duration) -> Value {
    (duration.as_secs_f64() * 1e3).into()
}
