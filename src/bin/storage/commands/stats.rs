//! `storage stats`.

use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use gateway_storage::{StorageStats, rfc3339_seconds};
use serde_json::{Value, json};

use super::Run;
use crate::{backends::CliBackend, failure::Failure, output::Answer, session::Session};

/// Count the records and describe the store
#[derive(Args)]
#[command(after_help = "\
Examples:
  storage stats
  storage stats --output json | jq .credential_count")]
pub(crate) struct Stats {}

impl<B: CliBackend> Run<B> for Stats {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        let stats = session.read().await?.stats().await?;
        let mut rows = vec![("backend".into(), stats.backend.into())];
        rows.push(("healthy".into(), (if stats.healthy { "yes" } else { "no" }).into()));
        rows.extend(counts(&stats));
        rows.extend(stats.details.iter().map(|(name, value)| row(name, value)));
        Ok(Answer::report(rows, json!(stats)))
    }
}

/// The counts, as rows.
pub(super) fn counts(stats: &StorageStats) -> Vec<(String, String)> {
    let mut rows = vec![
        ("credentials".into(), stats.credential_count.to_string()),
        ("configs".into(), stats.config_count.to_string()),
        ("usage records".into(), stats.usage_record_count.to_string()),
    ];
    rows.extend(stats.connection_count.map(|count| ("connections".into(), count.to_string())));
    rows.extend(stats.total_size.map(|bytes| ("size".into(), size(bytes))));
    rows
}

/// A detail as a row: `format_version` is "format version".
pub(super) fn row(name: &str, value: &Value) -> (String, String) {
    let text = match (name, value.as_u64()) {
        // Redis reports no limit as 0.
        ("maxmemory", Some(0)) => "no limit".to_owned(),
        ("maxmemory" | "used_memory", Some(bytes)) => size(bytes),
        // Up to the year 9999; a larger number is shown unchanged.
        ("rdb_last_save_time", Some(seconds @ ..=253_402_300_799)) => {
            rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds))
        }
        _ => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
    };
    (if name == "tls" { "TLS".into() } else { name.replace('_', " ") }, text)
}

/// A number of bytes as text.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let (mut shown, mut unit) = (bytes as f64, "bytes");
    for next in units {
        if shown < 1024.0 {
            break;
        }
        (shown, unit) = (shown / 1024.0, next);
    }
    if unit == "bytes" { format!("{bytes} bytes") } else { format!("{shown:.1} {unit}") }
}
