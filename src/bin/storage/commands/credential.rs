//! `storage credential`.

use clap::Subcommand;
use gateway_storage::{
    CredentialStore, Key,
    revision::{Conditional, Revision},
};
use serde_json::Value;

use super::{
    Answer, CliBackend, Failure, Run, Session,
    condition::{OnlyIf, revised},
};
use crate::io::input::Input;

/// Manage credentials: JSON objects by id
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Store a credential, replacing any under this id
    #[command(after_help = "\
Examples:
  storage credential set alice @alice.json
  pass show alice | storage credential set alice -
  storage credential set test '{\"access_token\": \"x\"}'
  storage credential set alice @alice.json --if-absent    # shows the new revision")]
    Set {
        /// The id
        id: Key,
        /// A JSON object
        #[arg(value_name = "JSON|@FILE|-")]
        value: Input,
        #[command(flatten)]
        only: OnlyIf,
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
        /// Show the revision, on a line before the values
        #[arg(long)]
        revision: bool,
    },
    /// Delete a credential
    #[command(after_help = "\
Examples:
  storage credential delete alice
  storage credential delete -- -rf      # an id that begins with a dash")]
    Delete {
        /// The id
        id: Key,
        /// Delete it only if it has this revision, which `get --revision` shows
        #[arg(long, value_name = "REVISION")]
        if_revision: Option<Revision>,
    },
    /// List the ids, sorted, one per line
    #[command(after_help = "\
Examples:
  storage credential list
  storage credential list --output json | jq length")]
    List,
}

impl<B: CliBackend + CredentialStore + Conditional> Run<B> for Command {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        match self {
            Self::Set { id, value, only } => {
                let credential = value.credential()?;
                let storage = session.create().await?;
                Ok(match only.condition() {
                    Some(condition) => {
                        revised(storage.set_credential_if(id, credential, condition).await?, None)
                    }
                    None => {
                        storage.set_credential(id, credential).await?;
                        Answer::Done
                    }
                })
            }
            Self::Get { id, reveal, revision: true } => {
                let (credential, revision) = session.read().await?.get_credential_with_revision(id).await?;
                Ok(revised(revision, reveal.then(|| Value::Object(credential.fields().clone()))))
            }
            Self::Get { id, reveal, revision: false } => {
                let credential = session.read().await?.get_credential(id).await?;
                Ok(match reveal {
                    true => Answer::Document(Value::Object(credential.fields().clone())),
                    false => Answer::Redacted(credential),
                })
            }
            Self::Delete { id, if_revision } => {
                let storage = session.open().await?;
                match if_revision {
                    Some(revision) => storage.delete_credential_if(id, *revision).await?,
                    None => storage.delete_credential(id).await?,
                }
                Ok(Answer::Done)
            }
            Self::List => Ok(Answer::Keys(session.read().await?.list_credentials().await?)),
        }
    }
}
