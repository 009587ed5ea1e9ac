//! `storage credential`.

use clap::Subcommand;
use gateway_storage::{CredentialStore, Key};
use serde_json::Value;

use super::{Answer, CliBackend, Failure, Run, Session};
use crate::io::input::Input;

/// Manage credentials: JSON objects by id
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Store a credential, replacing any under this id
    #[command(after_help = "\
Examples:
  storage credential set alice @alice.json
  pass show alice | storage credential set alice -
  storage credential set test '{\"access_token\": \"x\"}'")]
    Set {
        /// The id
        id: Key,
        /// A JSON object
        #[arg(value_name = "JSON|@FILE|-")]
        value: Input,
    },
    /// Show a credential's fields (--reveal: values)
    #[command(after_help = "\
Examples:
  storage credential get alice
  storage credential get alice --reveal | jq -r .access_token")]
    Get {
        /// The id
        id: Key,
        /// Show the values, as JSON
        #[arg(long)]
        reveal: bool,
    },
    /// Delete a credential
    #[command(after_help = "\
Examples:
  storage credential delete alice
  storage credential delete -- -rf      # an id that begins with a dash")]
    Delete {
        /// The id
        id: Key,
    },
    /// List the ids, sorted, one per line
    #[command(after_help = "\
Examples:
  storage credential list
  storage credential list --output json | jq length")]
    List,
}

impl<B: CliBackend + CredentialStore> Run<B> for Command {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        match self {
            Self::Set { id, value } => {
                let credential = value.credential()?;
                session.create().await?.set_credential(id, credential).await?;
                Ok(Answer::Done)
            }
            Self::Get { id, reveal } => {
                let credential = session.read().await?.get_credential(id).await?;
                Ok(match reveal {
                    true => Answer::Document(Value::Object(credential.fields().clone())),
                    false => Answer::Redacted(credential.fields().keys().cloned().collect()),
                })
            }
            Self::Delete { id } => {
                session.open().await?.delete_credential(id).await?;
                Ok(Answer::Done)
            }
            Self::List => Ok(Answer::Keys(session.read().await?.list_credentials().await?)),
        }
    }
}
