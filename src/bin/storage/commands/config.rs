//! `storage config`.

use clap::Subcommand;
use gateway_storage::{
    ConfigStore, Key,
    revision::{Conditional, Revision},
};

use super::{
    Answer, CliBackend, Failure, Run, Session,
    condition::{OnlyIf, revised},
};
use crate::io::input::Input;

/// Manage the configuration: any JSON value by key
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Store a value, replacing any under this key
    #[command(after_help = "\
Examples:
  storage config set retries 3
  storage config set region '\"eu\"'          # a string needs its own quotes
  storage config set models @models.json
  storage config set retries 4 --if-revision REVISION    # shows the new revision")]
    Set {
        /// The key
        key: Key,
        /// Any JSON value
        #[arg(value_name = "JSON|@FILE|-", allow_negative_numbers = true)]
        value: Input,
        #[command(flatten)]
        only: OnlyIf,
    },
    /// Show a value as JSON
    #[command(after_help = "\
Examples:
  storage config get retries
  storage config get models | jq '.[0]'
  storage config get retries --revision")]
    Get {
        /// The key
        key: Key,
        /// Show the revision, on a line before the value
        #[arg(long)]
        revision: bool,
    },
    /// Delete a value
    #[command(after_help = "\
Example:
  storage config delete retries")]
    Delete {
        /// The key
        key: Key,
        /// Delete it only if it has this revision, which `get --revision` shows
        #[arg(long, value_name = "REVISION")]
        if_revision: Option<Revision>,
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

impl<B: CliBackend + ConfigStore + Conditional> Run<B> for Command {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        match self {
            Self::Set { key, value, only } => {
                let value = value.config()?;
                let storage = session.create().await?;
                Ok(match only.condition() {
                    Some(condition) => revised(storage.set_config_if(key, value, condition).await?, None),
                    None => {
                        storage.set_config(key, value).await?;
                        Answer::Done
                    }
                })
            }
            Self::Get { key, revision: true } => {
                let (value, revision) = session.read().await?.get_config_with_revision(key).await?;
                Ok(revised(revision, Some(value.value().clone())))
            }
            Self::Get { key, revision: false } => {
                Ok(Answer::Document(session.read().await?.get_config(key).await?.value().clone()))
            }
            Self::Delete { key, if_revision } => {
                let storage = session.open().await?;
                match if_revision {
                    Some(revision) => storage.delete_config_if(key, *revision).await?,
                    None => storage.delete_config(key).await?,
                }
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
