//! `storage ping`.

use std::time::{Duration, Instant};

use clap::Args;
use gateway_storage::{Backend, Storage};
use serde_json::{Value, json};

use super::Run;
use crate::{backends::Operated, door::Door, failure::Failure, output::Answer};

/// Ask whether the store can serve reads and writes now
#[derive(Args)]
#[command(after_help = "\
Examples:
  storage ping --url file:./data
  storage ping > /dev/null && echo up")]
pub(crate) struct Ping {}

impl<B: Operated> Run<B> for Ping {
    async fn run(&self, door: &Door<'_, B>) -> Result<Answer, Failure> {
        let storage = door.read().await?;
        let latency = round_trip(storage).await?;
        Ok(Answer::report(
            vec![(storage.label().into(), format!("ok, {}", milliseconds(latency)))],
            json!({ "backend": storage.label(), "latency_ms": as_json(latency), "ok": true }),
        ))
    }
}

/// How long the store takes to say that it is well.
pub(super) async fn round_trip(storage: &Storage<impl Backend>) -> gateway_storage::Result<Duration> {
    let start = Instant::now();
    storage.health().await?;
    Ok(start.elapsed())
}

/// For people.
pub(super) fn milliseconds(duration: Duration) -> String {
    format!("{:.3} ms", duration.as_secs_f64() * 1e3)
}

/// For programs.
pub(super) fn as_json(duration: Duration) -> Value {
    (duration.as_secs_f64() * 1e3).into()
}
