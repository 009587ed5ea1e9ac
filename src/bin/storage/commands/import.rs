//! `storage import`.

use std::path::PathBuf;

use clap::Args;
use gateway_storage::Exportable;
use serde_json::json;

use super::Run;
use crate::{
    archives::{Archive, Kind, document_source},
    backends::Operated,
    door::Door,
    failure::Failure,
    output::{Answer, described},
    transfer::Transfer,
};

/// Store the records of an exported file
#[derive(Args)]
#[command(after_help = "\
The file is read twice: it is checked to its end, and only if it is whole its records are stored. A pipe can be read once, so it
needs --no-verify-first: each line is then checked when it comes and the whole at the end, and damage that shows only there is
told when the records before it are stored.

What else the store holds stays. By default nothing is stored if it has one of the records with another value. The Go module's
document is recognized; it has no sum by which damage could be seen.

Examples:
  storage import backup.ndjson --dry-run
  storage import backup.ndjson --on-conflict skip
  zstd -d < backup.ndjson.zst | storage import - --no-verify-first
  storage import exported-by-go.json --on-conflict overwrite --verify")]
pub(crate) struct Import {
    /// The file; - or nothing is stdin
    #[arg(value_name = "FILE|-")]
    file: Option<PathBuf>,
    /// Do not read the file to its end first
    #[arg(long)]
    no_verify_first: bool,
    /// Of the Go module's document: leave out what is no record, and import the rest
    #[arg(long)]
    leave_out: bool,
    #[command(flatten)]
    transfer: Transfer,
}

impl<B: Operated + Exportable> Run<B> for Import {
    async fn run(&self, door: &Door<'_, B>) -> Result<Answer, Failure> {
        // Before a long file is read.
        door.config()?;
        let mut archive = Archive::open(self.file.as_deref())?;
        match archive.kind().await? {
            Kind::Export if self.no_verify_first => {
                let answer = self.transfer.run(archive.source(None), door).await?;
                Ok(told(answer, "the file is whole: it was checked while it was imported", false))
            }
            Kind::Export if archive.is_pipe() => {
                let failure =
                    Failure::line("a pipe can be read once, so it can't be checked before it is imported");
                Err(failure.hint("name a file, or add --no-verify-first"))
            }
            Kind::Export => {
                let contents = archive.check().await?;
                let answer = self.transfer.run(archive.source(Some(&contents)), door).await?;
                Ok(told(answer, "the file is whole: it was checked before anything was imported", true))
            }
            Kind::Go => {
                let document = archive.go().await?;
                let remarks = document.remarks;
                if !remarks.is_empty() && !self.leave_out {
                    return Err(Failure::not_understood(&remarks));
                }
                let answer = self.transfer.run(document_source(document.records), door).await?;
                let answer = answer.and_json("remarks", json!(remarks));
                let named = remarks.iter().map(|remark| format!("left out: {}", described(remark)));
                Ok(named.fold(answer, Answer::and_line))
            }
        }
    }
}

/// Whether it was checked first; what did not end well has been read in part only.
fn told(answer: Answer, whole: &str, first: bool) -> Answer {
    let answer = answer.and_json("verified_first", json!(first));
    if matches!(answer, Answer::But { .. }) { answer } else { answer.and_line(whole.to_owned()) }
}
