//! `storage history`, `show` and `revert`: what was stored earlier.

use clap::{Args, ValueEnum};
use gateway_storage::{Key, Record, Revision, RevisionId, Versioned, VersionedKind, rfc3339_seconds};
use serde_json::json;

use super::Run;
use crate::{backends::Operated, door::Door, failure::Failure, output::Answer};

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Credential,
    Config,
}

impl From<Kind> for VersionedKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Credential => Self::Credential,
            Kind::Config => Self::Config,
        }
    }
}

/// List who changed a record, and when, newest first
#[derive(Args)]
#[command(after_help = "\
Examples:
  storage history config retries
  storage history credential alice --limit 5 --output json | jq -r '.[].id'")]
pub(crate) struct History {
    /// What it is
    kind: Kind,
    /// Its id or key
    key: Key,
    /// So many at most
    #[arg(long, default_value_t = 100)]
    limit: usize,
}

impl<B: Operated + Versioned> Run<B> for History {
    async fn run(&self, door: &Door<'_, B>) -> Result<Answer, Failure> {
        let storage = door.open().await?;
        let revisions = storage.backend().history(self.kind.into(), &self.key, self.limit).await?;
        let json = json!(revisions);
        Ok(Answer::Lines { lines: revisions.iter().map(line).collect(), json })
    }
}

/// Whoever makes a commit writes their name: it must not steer the terminal.
fn line(revision: &Revision) -> String {
    let what = if revision.is_deleted { "deleted" } else { "set" };
    let Revision { id, time, author, email, .. } = revision;
    let who: String = format!("{author} <{email}>").chars().filter(|each| !each.is_control()).collect();
    format!("{id}  {}  {what:7}  {who}", rfc3339_seconds(*time))
}

/// Show a record as it was right after a revision
#[derive(Args)]
#[command(after_help = "\
Examples:
  storage show 5f2a... config retries
  storage show 5f2a... credential alice --reveal")]
pub(crate) struct Show {
    /// The revision, as `storage history` names it
    revision: RevisionId,
    /// What it is
    kind: Kind,
    /// Its id or key
    key: Key,
    /// Show a credential's values, too
    #[arg(long)]
    reveal: bool,
}

impl<B: Operated + Versioned> Run<B> for Show {
    async fn run(&self, door: &Door<'_, B>) -> Result<Answer, Failure> {
        let storage = door.open().await?;
        Ok(match storage.backend().value_at(self.revision, self.kind.into(), &self.key).await? {
            Record::Credential { credential, .. } if self.reveal => {
                Answer::Document(credential.fields().clone().into())
            }
            Record::Credential { credential, .. } => {
                Answer::Hidden(credential.fields().keys().cloned().collect())
            }
            Record::Config { value, .. } => Answer::Document(value.value().clone()),
            other => Answer::Keys(vec![other.key().clone()]),
        })
    }
}

/// Undo what a revision did, as a new one
#[derive(Args)]
#[command(after_help = "\
Example:
  storage revert 5f2a...")]
pub(crate) struct Revert {
    /// The revision, as `storage history` names it
    revision: RevisionId,
}

impl<B: Operated + Versioned> Run<B> for Revert {
    async fn run(&self, door: &Door<'_, B>) -> Result<Answer, Failure> {
        let id = door.open().await?.backend().revert(self.revision).await?;
        Ok(Answer::report(vec![("newest revision".into(), id.to_string())], json!({ "revision": id })))
    }
}
