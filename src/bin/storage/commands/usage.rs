//! `storage usage`.

use clap::Subcommand;
use gateway_storage::{Key, UsageStore};

use super::Run;
use crate::{backends::Operated, door::Door, failure::Failure, output::Answer};

/// Usage: counters, by key and field
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Add to a counter and print its new total
    #[command(after_help = "\
Examples:
  storage usage increment alice requests 1
  storage usage increment alice credit -50")]
    Increment {
        /// The record's key
        key: Key,
        /// The counter in it
        field: Key,
        /// What is added; may be negative
        #[arg(allow_negative_numbers = true)]
        delta: i64,
    },
    /// Show the counters of one record: FIELD, a tab, the count
    #[command(after_help = "\
Examples:
  storage usage get alice
  storage usage get alice --output json | jq .requests")]
    Get {
        /// The record's key
        key: Key,
    },
    /// Remove one record with all its counters
    #[command(after_help = "\
Example:
  storage usage reset alice")]
    Reset {
        /// The record's key
        key: Key,
    },
    /// List all counters: KEY, a tab, FIELD, a tab, the count
    #[command(after_help = "\
Examples:
  storage usage list
  storage usage list | sort -t $'\\t' -k 3 -n -r | head")]
    List,
}

impl<B: Operated + UsageStore> Run<B> for Command {
    async fn run(&self, door: &Door<'_, B>) -> Result<Answer, Failure> {
        match self {
            Self::Increment { key, field, delta } => {
                Ok(Answer::Total(door.create().await?.increment_usage(key, field, *delta).await?))
            }
            Self::Get { key } => Ok(Answer::Counters(door.read().await?.get_usage(key).await?)),
            Self::Reset { key } => {
                door.open().await?.reset_usage(key).await?;
                Ok(Answer::Done)
            }
            Self::List => Ok(Answer::Usage(door.read().await?.list_usage().await?)),
        }
    }
}
