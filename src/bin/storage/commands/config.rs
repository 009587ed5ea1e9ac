//! `storage config`.

use clap::Subcommand;
use gateway_storage::{ConfigStore, Key};

use super::{Answer, CliBackend, Failure, Run, Session};
use crate::io::input::Input;

/// Manage the configuration: any JSON value by key
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Store a value, replacing any under this key
    #[command(after_help = "\
Examples:
  storage config set retries 3
  storage config set region '\"eu\"'          # a string needs its own quotes
  storage config set models @models.json")]
    Set {
        /// The key
        key: Key,
        /// Any JSON value
        #[arg(value_name = "JSON|@FILE|-", allow_negative_numbers = true)]
        value: Input,
    },
    /// Show a value as JSON
    #[command(after_help = "\
Examples:
  storage config get retries
  storage config get models | jq '.[0]'")]
    Get {
        /// The key
        key: Key,
    },
    /// Delete a value
    #[command(after_help = "\
Example:
  storage config delete retries")]
    Delete {
        /// The key
        key: Key,
    },
    // Config values can be API keys, so a list shows them only on request.
    /// List the keys, sorted, one per line
    #[command(after_help = "\
Examples:
  storage config list
  storage config list --reveal              # KEY, tab, the value as JSON
  storage config list --reveal --output json | jq .retries")]
    List {
        /// Also show the values
        #[arg(long)]
        reveal: bool,
    },
}

impl<B: CliBackend + ConfigStore> Run<B> for Command {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        match self {
            Self::Set { key, value } => {
                let value = value.config()?;
                session.create().await?.set_config(key, value).await?;
                Ok(Answer::Done)
            }
            Self::Get { key } => {
                Ok(Answer::Document(session.read().await?.get_config(key).await?.value().clone()))
            }
            Self::Delete { key } => {
                session.open().await?.delete_config(key).await?;
                Ok(Answer::Done)
            }
            Self::List { reveal } => {
                let configs = session.read().await?.list_configs().await?;
                Ok(if *reveal {
                    Answer::Configs(configs)
                } else {
                    Answer::Keys(configs.into_keys().collect())
                })
            }
        }
    }
}
