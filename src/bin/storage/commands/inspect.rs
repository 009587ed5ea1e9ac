//! `storage inspect`.

use std::path::PathBuf;

use clap::Args;
use gateway_storage::{
    RecordKind,
    archive::{ARCHIVE_VERSION, Contents, GoDocument},
    rfc3339_seconds,
};
use serde_json::{Value, json};

use super::{Answer, Failure};
use crate::{
    io::archive::{Archive, Kind},
    term::text::{described, grouped, printable, several, size},
};

/// Summarize an export file and check its integrity
#[derive(Args)]
#[command(after_help = "\
The file is read to its end. Keys and values are not shown. The digest is the SHA-256 of all
records, as `storage verify` prints it for a store.

Examples:
  storage inspect backup.ndjson
  zstd -d < backup.ndjson.zst | storage inspect
  storage inspect backup.ndjson --output json | jq -r .digest")]
pub(crate) struct Inspect {
    /// The file; - or no argument reads stdin
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

/// The summary of an export, as rows and as JSON.
pub(super) fn rows(contents: &Contents) -> (Rows, Value) {
    let snapshot = contents.header.snapshot;
    let rows = [
        ("format", format!("gateway-storage {ARCHIVE_VERSION}")),
        ("source", printable(&contents.header.source.escape_debug().to_string())),
        ("created", rfc3339_seconds(contents.header.created)),
        (
            "snapshot",
            (if snapshot { "yes: one state of the store" } else { "no: it may mix states of the store" })
                .into(),
        ),
        ("credentials", grouped(contents.credentials)),
        ("configs", grouped(contents.configs)),
        ("usage", counters(contents.usage, contents.usage_records)),
        ("size", size(contents.bytes)),
        ("digest", format!("sha256:{}", contents.digest)),
    ];
    let mut json = json!(contents);
    json["format"] = json!("gateway-storage");
    json["version"] = json!(ARCHIVE_VERSION);
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
    let stated = |text: &Option<String>| {
        text.as_deref()
            .map_or_else(|| "unknown".to_owned(), |text| printable(&text.escape_debug().to_string()))
    };
    let mut rows: Rows = [
        ("format", "a gcli2api-go document; it has no checksum".to_owned()),
        ("source", stated(&document.backend)),
        ("created", stated(&document.exported_at)),
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
