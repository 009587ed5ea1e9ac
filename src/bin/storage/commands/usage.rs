//! `storage usage`.

use clap::Subcommand;
use gateway_storage::{Key, UsageStore, usage::Within};
use serde_json::json;

use super::{Answer, CliBackend, Failure, Run, Session, To, page::Page};

/// Manage usage counters, by key and field
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Add to a counter and print its new total
    #[command(after_help = "\
Examples:
  storage usage increment alice requests 1
  storage usage increment alice credit -50
  storage usage increment alice/2026-11-30 tokens 800 --within 100000    # exit code 1 if it is refused")]
    Increment {
        /// The key
        key: Key,
        /// The counter's name
        field: Key,
        /// The amount to add; may be negative
        #[arg(allow_negative_numbers = true)]
        delta: i64,
        /// Add only if the new total is then at most N
        #[arg(long, value_name = "N", allow_negative_numbers = true)]
        within: Option<i64>,
    },
    /// Show the counters of a key, one per line: FIELD, tab, count
    #[command(after_help = "\
Examples:
  storage usage get alice
  storage usage get alice --output json | jq .requests")]
    Get {
        /// The key
        key: Key,
    },
    /// Delete the record of a key with all its counters, or all records with a prefix
    #[command(after_help = "\
Examples:
  storage usage reset alice
  storage usage reset --prefix 2025-    # prints the number of deleted records")]
    Reset {
        /// The key
        #[arg(required_unless_present = "prefix")]
        key: Option<Key>,
        /// Delete all records whose keys begin with this text, and print their number
        #[arg(long, value_name = "TEXT", conflicts_with = "key")]
        prefix: Option<Key>,
    },
    /// List counters, sorted by key, one per line: KEY, tab, FIELD, tab, count
    #[command(after_help = "\
Examples:
  storage usage list
  storage usage list --prefix alice/
  storage usage list --limit 100 --after KEY    # the next page
  storage usage list | sort -t $'\\t' -k 3 -n -r | head")]
    List(Page),
}

impl<B: CliBackend + UsageStore> Run<B> for To<'_, Command> {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        let Self(command, output) = self;
        match command {
            Command::Increment { key, field, delta, within: None } => {
                Ok(Answer::Total(session.create().await?.increment_usage(key, field, *delta).await?))
            }
            Command::Increment { key, field, delta, within: Some(limit) } => {
                let within = session.create().await?.increment_within(key, field, *delta, *limit).await?;
                Ok(counted(within, *limit))
            }
            Command::Get { key } => Ok(Answer::Counters(session.read().await?.get_usage(key).await?)),
            Command::Reset { prefix: Some(prefix), .. } => {
                let deleted = session.open().await?.reset_usage_prefix(prefix).await?;
                let lines = vec![deleted.to_string()];
                Ok(Answer::Lines { lines, json: json!({ "deleted": deleted }) })
            }
            Command::Reset { key, prefix: None } => {
                // clap requires one of them.
                let key = key.as_ref().ok_or_else(|| Failure::usage("no key is given"))?;
                session.open().await?.reset_usage(key).await?;
                Ok(Answer::Done)
            }
            Command::List(page) => output.list(session.read().await?.stream_usage(page.options())).await,
        }
    }
}

/// The total, or a failure if nothing was added.
fn counted(within: Within, limit: i64) -> Answer {
    let (total, is_refused) = (within.total(), !within.is_counted());
    let lines = if is_refused { vec![] } else { vec![total.to_string()] };
    let json = json!({ "total": total, "limit": limit, "refused": is_refused });
    Answer::Lines { lines, json }.with_failure(is_refused.then(|| Failure::over_limit(total, limit)))
}
