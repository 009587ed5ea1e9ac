//! `storage stats`.

use clap::Args;
use serde_json::json;

use super::{Answer, CliBackend, Failure, Run, Session};
use crate::term::text::{counts, row};

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
