//! `storage inspect`.

use std::path::PathBuf;

use clap::Args;
use gateway_storage::{
    RecordKind,
    archive::{ARCHIVE_VERSION, Contents, GoDocument},
    rfc3339_seconds,
};
use serde_json::{Value, json};

use super::stats::size;
use crate::{
    archives::{Archive, Kind},
    failure::Failure,
    output::{Answer, described, printable},
    progress::{grouped, several},
};

/// Say what an exported file holds, and whether it is whole
#[derive(Args)]
#[command(after_help = "\
The file is read to its end. Keys and values are not shown. The digest is the SHA-256 of all records: `storage verify` shows the
same for a store that holds the same.

Examples:
  storage inspect backup.ndjson
  zstd -d < backup.ndjson.zst | storage inspect
  storage inspect backup.ndjson --output json | jq -r .digest")]
pub(crate) struct Inspect {
    /// The file; - or nothing is stdin
    #[arg(value_name = "FILE|-")]
    file: Option<PathBuf>,
}

impl Inspect {
    pub(crate) async fn run(&self) -> Result<Answer, Failure> {
        let mut archive = Archive::open(self.file.as_deref())?;
        let (rows, json) = match archive.kind().await? {
            Kind::Export => rows(&archive.check().await?),
            Kind::Go => go_rows(&archive.go().await?),
        };
        Ok(Answer::report(rows, json))
    }
}

type Rows = Vec<(String, String)>;

/// What an export holds, for people and for programs.
pub(super) fn rows(contents: &Contents) -> (Rows, Value) {
    let created = rfc3339_seconds(contents.header.created);
    let snapshot = contents.header.snapshot;
    let rows = [
        ("format", format!("gateway-storage {ARCHIVE_VERSION}")),
        ("source", printable(&contents.header.source.escape_debug().to_string())),
        ("created", created.clone()),
        ("snapshot", (if snapshot { "yes: one state of the store" } else { "no: writes went on" }).into()),
        ("credentials", grouped(contents.credentials)),
        ("configs", grouped(contents.configs)),
        ("usage", counters(contents.usage, contents.usage_records)),
        ("size", size(contents.bytes)),
        ("digest", format!("sha256:{}", contents.digest)),
    ];
    let json = json!({
        "format": "gateway-storage",
        "version": ARCHIVE_VERSION,
        "source": contents.header.source,
        "created": created,
        "snapshot": snapshot,
        "credentials": contents.credentials,
        "configs": contents.configs,
        "usage": contents.usage,
        "usage_records": contents.usage_records,
        "bytes": contents.bytes,
        "digest": contents.digest,
    });
    (rows.map(|(name, text)| (name.to_owned(), text)).into(), json)
}

fn counters(counters: u64, records: u64) -> String {
    match counters {
        0 => "0".to_owned(),
        _ => format!("{} of {}", several(counters, "counter"), several(records, "key")),
    }
}

fn go_rows(document: &GoDocument) -> (Rows, Value) {
    let count = |kind| document.records.iter().filter(|record| record.kind() == kind).count();
    let [credentials, configs, usage] = RecordKind::ALL.map(count);
    let said = |text: &Option<String>| {
        text.as_deref()
            .map_or_else(|| "unknown".to_owned(), |text| printable(&text.escape_debug().to_string()))
    };
    let mut rows: Rows = [
        ("format", "the Go module's document; no sum says whether it is whole".to_owned()),
        ("source", said(&document.backend)),
        ("created", said(&document.exported_at)),
        ("credentials", grouped(credentials as u64)),
        ("configs", grouped(configs as u64)),
        ("usage", several(usage as u64, "counter")),
    ]
    .map(|(name, text)| (name.to_owned(), text))
    .into();
    let remarks = document.remarks.iter();
    rows.extend(remarks.map(|remark| ("not understood".to_owned(), described(remark))));
    let json = json!({
        "format": "go",
        "source": document.backend,
        "created": document.exported_at,
        "credentials": credentials,
        "configs": configs,
        "usage": usage,
        "remarks": document.remarks,
    });
    (rows, json)
}
