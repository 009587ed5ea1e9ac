//! `storage doctor`.

use std::time::Instant;

use clap::Args;
use serde_json::{Map, Value, json};

use super::{
    Answer, CliBackend, Failure, Run, Session,
    ping::{as_json, milliseconds, round_trip},
};
use crate::term::text::{counts, row};

/// Number of latency samples.
const SAMPLES: usize = 9;

/// Examine the store: connection, latency, TLS, durability, topology, format, warnings
#[derive(Args)]
#[command(after_help = "\
If the store can't be opened, the error says why and the exit code is 5.

Examples:
  storage doctor
  storage doctor --output json | jq -r '.warnings[]'")]
pub(crate) struct Doctor {}

impl<B: CliBackend> Run<B> for Doctor {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        let start = Instant::now();
        let storage = session.read().await?;
        let opened_in = start.elapsed();
        let mut latencies = Vec::with_capacity(SAMPLES);
        for _ in 0..SAMPLES {
            latencies.push(round_trip(storage).await?);
        }
        latencies.sort_unstable();
        let (median, slowest) = (latencies[SAMPLES / 2], latencies[SAMPLES - 1]);
        let stats = storage.stats().await?;

        let mut facts: Map<String, Value> =
            B::FACTS.iter().map(|(name, text)| ((*name).to_owned(), json!(text))).collect();
        facts.extend(stats.details.clone());
        let found = facts.remove("warnings");
        let found = found.iter().filter_map(Value::as_array).flatten().filter_map(Value::as_str);
        let warnings: Vec<&str> = B::WARNINGS.iter().copied().chain(found).collect();

        let mut rows = vec![
            ("backend".into(), stats.backend.into()),
            ("connection".into(), format!("ok, opened in {}", milliseconds(opened_in))),
            (
                "latency".into(),
                format!("{} (median of {SAMPLES}, slowest {})", milliseconds(median), milliseconds(slowest)),
            ),
        ];
        rows.extend(facts.iter().map(|(name, value)| row(name, value)));
        rows.extend(counts(&stats));
        rows.extend(warnings.iter().map(|warning| ("warning".into(), (*warning).into())));
        if warnings.is_empty() {
            rows.push(("warnings".into(), "none".into()));
        }

        let json = json!({
            "backend": stats.backend,
            "connection": { "ok": true, "opened_in_ms": as_json(opened_in) },
            "latency_ms": { "median": as_json(median), "slowest": as_json(slowest) },
            "facts": facts,
            "stats": stats,
            "warnings": warnings,
        });
        Ok(Answer::report(rows, json))
    }
}
