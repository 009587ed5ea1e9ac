//! `storage credential`.

use std::future;

use clap::Subcommand;
use futures_util::{TryStreamExt, stream};
use gateway_storage::{
    CredentialStore, Error, Key,
    revision::{Conditional, Revision},
};
use serde_json::{Map, Value};

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
    /// Change some fields of a credential, and keep the others
    #[command(after_help = "\
FIELDS is a JSON merge patch: a field with null is removed, and an object is merged into the stored object.
A change that another program makes meanwhile is not lost.

Examples:
  storage credential patch alice @changes.json
  storage credential patch alice '{\"disabled\": true, \"note\": null}'")]
    Patch {
        /// The id
        id: Key,
        /// A JSON object with the fields that change
        #[arg(value_name = "FIELDS|@FILE|-")]
        fields: Input,
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
            Command::Patch { id, fields } => {
                let patch = fields.credential()?;
                let change = |mut stored: Map<String, Value>| {
                    merge(&mut stored, patch.fields());
                    future::ready(Ok::<_, Error>(stored))
                };
                session.open().await?.update_credential(id, change).await?;
                Ok(Answer::Done)
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

/// Merges a patch into an object, as [RFC 7396](https://www.rfc-editor.org/rfc/rfc7396) says.
fn merge(fields: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (name, change) in patch {
        match change {
            Value::Null => drop(fields.remove(name)),
            Value::Object(changes) => {
                let field = fields.entry(name.clone()).or_insert(Value::Null);
                if !field.is_object() {
                    *field = Value::Object(Map::new());
                }
                if let Value::Object(inner) = field {
                    merge(inner, changes);
                }
            }
            change => drop(fields.insert(name.clone(), change.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The examples of RFC 7396 whose target and patch are objects.
    #[test]
    fn a_patch_is_merged() {
        for (target, patch, wanted) in [
            (json!({ "a": "b" }), json!({ "a": "c" }), json!({ "a": "c" })),
            (json!({ "a": "b" }), json!({ "b": "c" }), json!({ "a": "b", "b": "c" })),
            (json!({ "a": "b" }), json!({ "a": null }), json!({})),
            (json!({ "a": "b", "b": "c" }), json!({ "a": null }), json!({ "b": "c" })),
            (json!({ "a": ["b"] }), json!({ "a": "c" }), json!({ "a": "c" })),
            (json!({ "a": "c" }), json!({ "a": ["b"] }), json!({ "a": ["b"] })),
            (
                json!({ "a": { "b": "c" } }),
                json!({ "a": { "b": "d", "c": null } }),
                json!({ "a": { "b": "d" } }),
            ),
            (json!({ "a": [{ "b": "c" }] }), json!({ "a": [1] }), json!({ "a": [1] })),
            (json!({ "e": null }), json!({ "a": 1 }), json!({ "e": null, "a": 1 })),
            (json!({}), json!({ "a": { "bb": { "ccc": null } } }), json!({ "a": { "bb": {} } })),
        ] {
            let mut fields = target.as_object().unwrap().clone();
            merge(&mut fields, patch.as_object().unwrap());
            assert_eq!(Value::Object(fields), wanted, "{target} {patch}");
        }
    }
}
