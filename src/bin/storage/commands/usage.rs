//! `storage usage`.

use clap::Subcommand;
use gateway_storage::{Key, UsageStore};

use super::{Answer, CliBackend, Failure, Run, Session};

/// Manage usage counters, by key and field
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Add to a counter and print its new total
    #[command(after_help = "\
Examples:
  storage usage increment alice requests 1
  storage usage increment alice credit -50")]
    Increment {
        /// The key
        key: Key,
        /// The counter's name
        field: Key,
        /// The amount to add; may be negative
        #[arg(allow_negative_numbers = true)]
        delta: i64,
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
    /// Remove all counters of a key
    #[command(after_help = "\
Example:
  storage usage reset alice")]
    Reset {
        /// The key
        key: Key,
    },
    /// List all counters, one per line: KEY, tab, FIELD, tab, count
    #[command(after_help = "\
Examples:
  storage usage list
  storage usage list | sort -t $'\\t' -k 3 -n -r | head")]
    List,
}

impl<B: CliBackend + UsageStore> Run<B> for Command {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        match self {
            Self::Increment { key, field, delta } => {
                Ok(Answer::Total(session.create().await?.increment_usage(key, field, *delta).await?))
            }
            Self::Get { key } => Ok(Answer::Counters(session.read().await?.get_usage(key).await?)),
            Self::Reset { key } => {
                session.open().await?.reset_usage(key).await?;
                Ok(Answer::Done)
            }
            Self::List => Ok(Answer::Usage(session.read().await?.list_usage().await?)),
        }
    }
}
