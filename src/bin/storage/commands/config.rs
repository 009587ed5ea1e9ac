//! `storage config`.

use clap::Subcommand;
use gateway_storage::{ConfigStore, Key};

use super::Run;
use crate::{backends::Operated, door::Door, failure::Failure, input::Input, output::Answer};

/// Configuration: any JSON value by key
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Store a value, in place of any other under this key
    #[command(after_help = "\
Examples:
  storage config set retries 3
  storage config set region '\"eu\"'          # a string has its own quotes
  storage config set models @models.json")]
    Set {
        /// Its key
        key: Key,
        /// Any JSON value
        #[arg(value_name = "JSON|@FILE|-", allow_negative_numbers = true)]
        value: Input,
    },
    /// Show a value, as JSON
    #[command(after_help = "\
Examples:
  storage config get retries
  storage config get models | jq '.[0]'")]
    Get {
        /// Its key
        key: Key,
    },
    /// Delete a value
    #[command(after_help = "\
Example:
  storage config delete retries")]
    Delete {
        /// Its key
        key: Key,
    },
    // Configurations hold API keys, too: all of them at once are shown on demand only.
    /// List the keys, sorted, one a line
    #[command(after_help = "\
Examples:
  storage config list
  storage config list --reveal              # KEY, a tab, the value as JSON
  storage config list --reveal --output json | jq .retries")]
    List {
        /// Show the values, too
        #[arg(long)]
        reveal: bool,
    },
}

impl<B: Operated + ConfigStore> Run<B> for Command {
    async fn run(&self, door: &Door<'_, B>) -> Result<Answer, Failure> {
        match self {
            Self::Set { key, value } => {
                let value = value.config()?;
                door.create().await?.set_config(key, value).await?;
                Ok(Answer::Done)
            }
            Self::Get { key } => {
                Ok(Answer::Document(door.read().await?.get_config(key).await?.value().clone()))
            }
            Self::Delete { key } => {
                door.open().await?.delete_config(key).await?;
                Ok(Answer::Done)
            }
            Self::List { reveal } => {
                let configs = door.read().await?.list_configs().await?;
                Ok(if *reveal {
                    Answer::Configs(configs)
                } else {
                    Answer::Keys(configs.into_keys().collect())
                })
            }
        }
    }
}
