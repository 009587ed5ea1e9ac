//! `storage history`, `show` and `revert`: earlier values.

use clap::{Args, ValueEnum};
use gateway_storage::{
    History, Key, Record,
    history::{Commit, CommitId, DocumentKind},
    rfc3339_seconds,
};
use serde_json::json;

use super::{Answer, CliBackend, Failure, Run, Session};

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Credential,
    Config,
}

impl From<Kind> for DocumentKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Credential => Self::Credential,
            Kind::Config => Self::Config,
        }
    }
}

/// List the changes of a record, newest first
#[derive(Args)]
#[command(after_help = "\
Examples:
  storage history config retries
  storage history credential alice --limit 5 --output json | jq -r '.[].id'")]
pub(crate) struct Changes {
    /// The kind of record
    kind: Kind,
    /// The id or key
    key: Key,
    /// Maximum number of changes
    #[arg(long, default_value_t = 100)]
    limit: usize,
}

impl<B: CliBackend + History> Run<B> for Changes {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        let storage = session.open().await?;
        let commits = storage.backend().history(self.kind.into(), &self.key, self.limit).await?;
        let json = json!(commits);
        Ok(Answer::Lines { lines: commits.iter().map(line).collect(), json })
    }
}

/// An author chooses the name of a commit: control characters are removed, because terminals interpret them.
fn line(commit: &Commit) -> String {
    let what = if commit.is_deleted { "deleted" } else { "set" };
    let Commit { id, time, author, email, .. } = commit;
    let who: String = format!("{author} <{email}>").chars().filter(|each| !each.is_control()).collect();
    format!("{id}  {}  {what:7}  {who}", rfc3339_seconds(*time))
}

/// Show the value of a record after a commit
#[derive(Args)]
#[command(after_help = "\
Examples:
  storage show 5f2a... config retries
  storage show 5f2a... credential alice --reveal")]
pub(crate) struct Show {
    /// The commit, as `storage history` names it
    commit: CommitId,
    /// The kind of record
    kind: Kind,
    /// The id or key
    key: Key,
    /// Show the values of a credential
    #[arg(long)]
    reveal: bool,
}

impl<B: CliBackend + History> Run<B> for Show {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        let storage = session.open().await?;
        Ok(match storage.backend().value_at(self.commit, self.kind.into(), &self.key).await? {
            Record::Credential { credential, .. } if self.reveal => {
                Answer::Document(credential.fields().clone().into())
            }
            Record::Credential { credential, .. } => Answer::Redacted(credential),
            Record::Config { value, .. } => Answer::Document(value.value().clone()),
            other => Answer::Keys(vec![other.key().clone()]),
        })
    }
}

/// Undo the changes of a commit in a new commit
#[derive(Args)]
#[command(after_help = "\
Example:
  storage revert 5f2a...")]
pub(crate) struct Revert {
    /// The commit, as `storage history` names it
    commit: CommitId,
}

impl<B: CliBackend + History> Run<B> for Revert {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        let id = session.open().await?.backend().revert(self.commit).await?;
        Ok(Answer::report(vec![("newest commit".into(), id.to_string())], json!({ "commit": id })))
    }
}
