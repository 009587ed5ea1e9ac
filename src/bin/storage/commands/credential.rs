//! `storage credential`.

use clap::Subcommand;
use futures_util::{TryStreamExt, stream};
use gateway_storage::{
    CredentialStore, Key,
    revision::{Conditional, Revision},
};
use serde_json::Value;

use super::{
    Answer, CliBackend, Failure, Run, Session, To,
    condition::{OnlyIf, revised},
    page::Page,
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
    /// List the ids, sorted, one per line (--reveal: with the values)
    #[command(after_help = "\
Examples:
  storage credential list
  storage credential list --output json | jq length
  storage credential list --prefix acme/ --reveal    # ID, tab, the values as JSON
  storage credential list --limit 100 --after ID     # the next page")]
    List {
        /// Also show the values
        #[arg(long)]
        reveal: bool,
        #[command(flatten)]
        page: Page,
    },
}

impl<B: CliBackend + CredentialStore + Conditional> Run<B> for To<'_, Command> {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        let Self(command, output) = self;
        match command {
            Command::Set { id, value, only } => {
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
            Command::Get { id, reveal, revision: true } => {
                let (credential, revision) = session.read().await?.get_credential_with_revision(id).await?;
                Ok(revised(revision, reveal.then(|| Value::Object(credential.fields().clone()))))
            }
            Command::Get { id, reveal, revision: false } => {
                let credential = session.read().await?.get_credential(id).await?;
                Ok(match reveal {
                    true => Answer::Document(Value::Object(credential.fields().clone())),
                    false => Answer::Redacted(credential),
                })
            }
            Command::Delete { id, if_revision } => {
                let storage = session.open().await?;
                match if_revision {
                    Some(revision) => storage.delete_credential_if(id, *revision).await?,
                    None => storage.delete_credential(id).await?,
                }
                Ok(Answer::Done)
            }
            Command::List { reveal: true, page } => {
                output.list(session.read().await?.stream_credentials(page.options())).await
            }
            // No value is read, so that a credential that can't be read is listed.
            Command::List { reveal: false, page } if page.is_all() => {
                let ids = session.read().await?.list_credentials().await?;
                output.list(stream::iter(ids.into_iter().map(|id| Ok((id, ()))))).await
            }
            Command::List { reveal: false, page } => {
                let records = session.read().await?.stream_credentials(page.options());
                output.list(records.map_ok(|(id, _)| (id, ()))).await
            }
        }
    }
}
