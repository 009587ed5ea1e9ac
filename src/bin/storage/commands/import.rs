//! `storage import`.

use std::path::PathBuf;

use clap::Args;
use gateway_storage::Exportable;
use serde_json::json;

use super::{Answer, CliBackend, Failure, Run, Session};
use crate::{
    io::archive::{Archive, Kind, document_source},
    term::text::described,
    transfer::copy::Transfer,
};

/// Store the records of an export file
#[derive(Args)]
#[command(after_help = "\
The file is read twice: first it is checked to its end, then its records are stored. A pipe can be
read only once and needs --no-verify-first: each line is checked as it arrives, and the whole file
at its end. So damage is reported only after earlier records were imported.

Other records in the store are kept. By default nothing is stored if the store has a different value
for any of the records. A gcli2api-go document is recognized; it has no checksum to detect damage.

Examples:
  storage import backup.ndjson --dry-run
  storage import backup.ndjson --on-conflict skip
  zstd -d < backup.ndjson.zst | storage import - --no-verify-first
  storage import exported-by-go.json --on-conflict overwrite --verify")]
pub(crate) struct Import {
    /// The file; - or no argument reads stdin
    #[arg(value_name = "FILE|-")]
    file: Option<PathBuf>,
    /// Do not check the file before importing it
    #[arg(long)]
    no_verify_first: bool,
    /// Skip parts of a gcli2api-go document that are not records
    #[arg(long)]
    leave_out: bool,
    #[command(flatten)]
    transfer: Transfer,
}

impl<B: CliBackend + Exportable> Run<B> for Import {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        // Checks the URL before a long file is read.
        session.options()?;
        let mut archive = Archive::open(self.file.as_deref())?;
        match archive.kind().await? {
            Kind::Export if self.no_verify_first => {
                let answer = self.transfer.run(archive.source(None), session).await?;
                Ok(with_summary(answer, "the file is complete: it was checked during the import", false))
            }
            Kind::Export if archive.is_pipe() => {
                let failure =
                    Failure::usage("a pipe can be read only once, so it can't be checked before the import");
                Err(failure.hint("name a file, or add --no-verify-first"))
            }
            Kind::Export => {
                let contents = archive.check().await?;
                let answer = self.transfer.run(archive.source(Some(&contents)), session).await?;
                Ok(with_summary(answer, "the file is complete: it was checked before the import", true))
            }
            Kind::Go => {
                let document = archive.go().await?;
                let remarks = document.remarks;
                if !remarks.is_empty() && !self.leave_out {
                    return Err(Failure::not_understood(&remarks));
                }
                let answer = self.transfer.run(document_source(document.records), session).await?;
                let answer = answer.and_json("remarks", json!(remarks));
                let named = remarks.iter().map(|remark| format!("left out: {}", described(remark)));
                Ok(named.fold(answer, Answer::and_line))
            }
        }
    }
}

/// Adds when the file was checked. A failed import may have read only part of it.
fn with_summary(answer: Answer, checked: &str, first: bool) -> Answer {
    let answer = answer.and_json("verified_first", json!(first));
    if matches!(answer, Answer::WithFailure { .. }) { answer } else { answer.and_line(checked.to_owned()) }
}
