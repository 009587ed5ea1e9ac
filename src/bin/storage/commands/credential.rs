//! `storage credential`.

use clap::Subcommand;
use gateway_storage::{CredentialStore, Key};
use serde_json::Value;

use super::Run;
use crate::{backends::Operated, door::Door, failure::Failure, input::Input, output::Answer};

/// Credentials: JSON objects by id
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Store one, in place of any other under this id
    #[command(after_help = "\
Examples:
  storage credential set alice @alice.json
  pass show alice | storage credential set alice -
  storage credential set test '{\"access_token\": \"x\"}'")]
    Set {
        /// Its id
        id: Key,
        /// A JSON object
        #[arg(value_name = "JSON|@FILE|-")]
        value: Input,
    },
    /// Show one: its fields, and with --reveal their values
    #[command(after_help = "\
Examples:
  storage credential get alice
  storage credential get alice --reveal | jq -r .access_token")]
    Get {
        /// Its id
        id: Key,
        /// Show the values, as JSON
        #[arg(long)]
        reveal: bool,
    },
    /// Delete one
    #[command(after_help = "\
Examples:
  storage credential delete alice
  storage credential delete -- -rf      # an id that begins with a dash")]
    Delete {
        /// Its id
        id: Key,
    },
    /// List the ids, sorted, one a line
    #[command(after_help = "\
Examples:
  storage credential list
  storage credential list --output json | jq length")]
    List,
}

impl<B: Operated + CredentialStore> Run<B> for Command {
    async fn run(&self, door: &Door<'_, B>) -> Result<Answer, Failure> {
        match self {
            Self::Set { id, value } => {
                let credential = value.credential()?;
                door.create().await?.set_credential(id, credential).await?;
                Ok(Answer::Done)
            }
            Self::Get { id, reveal } => {
                let credential = door.read().await?.get_credential(id).await?;
                Ok(match reveal {
                    true => Answer::Document(Value::Object(credential.fields().clone())),
                    false => Answer::Hidden(credential.fields().keys().cloned().collect()),
                })
            }
            Self::Delete { id } => {
                door.open().await?.delete_credential(id).await?;
                Ok(Answer::Done)
            }
            Self::List => Ok(Answer::Keys(door.read().await?.list_credentials().await?)),
        }
    }
}
