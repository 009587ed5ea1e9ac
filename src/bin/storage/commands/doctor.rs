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
  storage doctor --output json | jq -r '.warnings[]'
  storage doctor --check           # of a `file:` store: reads every record, and says what is damaged")]
pub(crate) struct Doctor {
    /// Read and decode every record of a `file:` store, and verify its checksums if no other process has it
    /// open; exit code 1 if it is damaged
    #[arg(long)]
    pub(crate) check: bool,
}

/// `storage doctor --check`.
pub(crate) struct Check;

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

#[cfg(feature = "file")]
mod file {
    use gateway_storage::{
        CheckReport, CheckedRecords, Error, ErrorKind, File, FileOptions, Open, Storage, Verify,
    };
    use serde_json::json;

    use super::{
        super::{Answer, CliBackend, Failure, Run, Session},
        Check,
    };
    use crate::term::text::{grouped, several, size};

    impl Run<File> for Check {
        async fn run(&self, session: &Session<'_, File>) -> Result<Answer, Failure> {
            let (storage, is_damaged) =
                opened(session.options()?).await.map_err(|error| Failure::opening(session.url, &error))?;
            let checked = storage.backend().check().await;
            // It was only read.
            drop(storage.close().await);
            let report = checked?;
            let checksums = match (is_damaged, report.checksums_verified) {
                (true, _) => "damaged",
                (false, true) => "verified",
                (false, false) => "not_verified",
            };
            let failure = damage(&report, is_damaged).map(Failure::damaged);
            let mut json = json!(report);
            json["checksums"] = json!(checksums);
            json["sound"] = json!(failure.is_none());
            Ok(Answer::report(rows(&report, checksums), json).with_failure(failure))
        }
    }

    /// Opens the store and verifies its checksums; else opens it for reading. The second result: whether the
    /// checksums are wrong.
    async fn opened(options: FileOptions) -> Result<(Storage<File>, bool), Error> {
        let verified = options.clone().with_create(false).with_verify(Verify::Always);
        let error = match Storage::<File>::open(verified).await {
            Err(error) => error,
            Ok(storage) => return Ok((storage, false)),
        };
        if !matches!(error.kind(), ErrorKind::Busy | ErrorKind::Corrupt | ErrorKind::Denied) {
            return Err(error);
        }
        // What can be read of a damaged store is checked all the same, and nothing is changed.
        for options in File::to_read(options) {
            if let Ok(storage) = Storage::open(options.with_verify(Verify::Unclean)).await {
                return Ok((storage, error.kind() == ErrorKind::Corrupt));
            }
        }
        Err(error)
    }

    fn damage(report: &CheckReport, is_damaged: bool) -> Option<String> {
        let unreadable = match report.unreadable() {
            0 => None,
            count => Some(format!("{} can't be read", several(count, "record"))),
        };
        let miscounts = match report.miscounts.len() as u64 {
            0 => None,
            count => Some(format!("{} of the store differ from what it has", several(count, "number"))),
        };
        let checksums = is_damaged.then(|| "checksums are wrong".to_owned());
        let found: Vec<String> = [checksums, unreadable, miscounts].into_iter().flatten().collect();
        (!found.is_empty()).then(|| format!("the store is damaged: {}", found.join(", ")))
    }

    fn rows(report: &CheckReport, checksums: &str) -> Vec<(String, String)> {
        let checksums = match checksums {
            "not_verified" => "not verified: another process has the store open, or it can't be written",
            known => known,
        };
        let mut rows =
            vec![("backend".into(), File::SCHEMES[0].into()), ("checksums".into(), checksums.into())];
        rows.extend(report.records.iter().map(|(kind, records)| ((*kind).into(), counted(records))));
        rows.extend(report.miscounts.iter().map(|wrong| {
            let text = format!("stored {}, found {}", grouped(wrong.stored), grouped(wrong.found));
            (format!("wrong {}", wrong.name.replace('_', " ")), text)
        }));
        rows.extend(report.file_bytes.map(|bytes| ("file".into(), size(bytes))));
        rows.push(("stored".into(), size(report.stored_bytes)));
        rows.push(("allocated".into(), size(report.allocated_bytes)));
        rows.push(("fragmented".into(), size(report.fragmented_bytes)));
        rows.extend(report.free_bytes.map(|bytes| ("free".into(), size(bytes))));
        rows
    }

    fn counted(records: &CheckedRecords) -> String {
        let count = grouped(records.count);
        match records.unreadable {
            0 => count,
            unreadable => {
                let keys: Vec<&str> = records.unreadable_keys.iter().map(|key| key.as_str()).collect();
                let text = format!("{count}, of which {} can't be read", grouped(unreadable));
                if keys.is_empty() { text } else { format!("{text}: {}", keys.join(", ")) }
            }
        }
    }
}
