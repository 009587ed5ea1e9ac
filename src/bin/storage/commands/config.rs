//! `storage config`.

use clap::Subcommand;
use futures_util::TryStreamExt;
use gateway_storage::{
    BatchReport, ConfigStore, ConfigValue, ErrorKind, Found, Key,
    revision::{Conditional, Revision},
};
use serde_json::Value;

use super::{
    Answer, CliBackend, Failure, Run, Session, To,
    condition::{OnlyIf, revised},
    page::Page,
};
use crate::io::input::Input;

/// Manage the configuration: any JSON value by key
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Store a value, replacing any under this key, or many
    #[command(after_help = "\
Examples:
  storage config set retries 3
  storage config set region '\"eu\"'          # a string needs its own quotes
  storage config set models @models.json
  storage config set --many @settings.json    # each field of a JSON object under its name
  storage config set retries 4 --if-revision REVISION    # shows the new revision")]
    Set {
        /// The key
        #[arg(required_unless_present = "many")]
        key: Option<Key>,
        /// Any JSON value
        #[arg(value_name = "JSON|@FILE|-", allow_negative_numbers = true, required_unless_present = "many")]
        value: Option<Input>,
        /// Store each field of a JSON object under its name; at most 1 MiB in all
        #[arg(
            long,
            value_name = "JSON|@FILE|-",
            conflicts_with_all = ["key", "value", "if_revision", "if_absent"]
        )]
        many: Option<Input>,
        #[command(flatten)]
        only: OnlyIf,
    },
    /// Show a value as JSON, or many as one JSON object
    #[command(after_help = "\
Examples:
  storage config get retries
  storage config get models | jq '.[0]'
  storage config get retries --revision
  storage config get --many retries models    # exit code 1 if one is missing; the others are shown")]
    Get {
        /// The key
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<Key>,
        /// Show the revision, on a line before the value
        #[arg(long)]
        revision: bool,
        /// Show the values of one or more keys as one JSON object
        #[arg(long, conflicts_with = "revision")]
        many: bool,
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
  storage config list --reveal                  # KEY, tab, the value as JSON
  storage config list --limit 100 --after KEY   # the next page
  storage config list --reveal --output json | jq .retries")]
    List {
        /// Also show the values
        #[arg(long)]
        reveal: bool,
        #[command(flatten)]
        page: Page,
    },
}

impl<B: CliBackend + ConfigStore + Conditional> Run<B> for To<'_, Command> {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        let Self(command, output) = self;
        match command {
            Command::Set { many: Some(input), .. } => {
                let values = each_field(input)?;
                stored(session.create().await?.set_configs(&values).await?)
            }
            Command::Set { key, value, only, many: None } => {
                // clap requires both.
                let (Some(key), Some(value)) = (key, value) else {
                    return Err(Failure::usage("no key or no value is given"));
                };
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
            Command::Get { keys, many: true, .. } => {
                Ok(found(session.read().await?.get_configs(keys).await?))
            }
            Command::Get { keys, revision, many: false } => {
                let [key] = &keys[..] else {
                    return Err(Failure::usage("`config get` takes one key").hint("add --many for more keys"));
                };
                if !revision {
                    let value = session.read().await?.get_config(key).await?;
                    return Ok(Answer::Document(value.value().clone()));
                }
                let (value, revision) = session.read().await?.get_config_with_revision(key).await?;
                Ok(revised(revision, Some(value.value().clone())))
            }
            Command::Delete { key, if_revision } => {
                let storage = session.open().await?;
                match if_revision {
                    Some(revision) => storage.delete_config_if(key, *revision).await?,
                    None => storage.delete_config(key).await?,
                }
                Ok(Answer::Done)
            }
            Command::List { reveal, page } => {
                let records = session.read().await?.stream_configs(page.options());
                match reveal {
                    true => output.list(records).await,
                    false => output.list(records.map_ok(|(key, _)| (key, ()))).await,
                }
            }
        }
    }
}

/// The fields of an object, each as a value under its name.
fn each_field(input: &Input) -> Result<Vec<(Key, ConfigValue)>, Failure> {
    let object = input.config()?;
    let Value::Object(fields) = object.value() else {
        return Err(Failure::usage("the value of --many is not a JSON object"));
    };
    let each = fields.iter().map(|(name, value)| Ok((Key::new(name)?, ConfigValue::new(value.clone())?)));
    each.collect::<gateway_storage::Result<_>>().map_err(|error| Failure::invalid(&error))
}

fn stored(report: BatchReport) -> Result<Answer, Failure> {
    let succeeded = report.succeeded;
    match report.complete() {
        Ok(_) => Ok(Answer::Done),
        Err(error) if succeeded > 0 => Err(Failure::stopped(&error)),
        Err(error) => Err(error.into()),
    }
}

/// The values found, and a failure if one is missing or can't be read.
fn found(found: Found<ConfigValue>) -> Answer {
    let missing: Vec<&Key> = found
        .failures
        .iter()
        .filter(|failure| failure.error.kind() == ErrorKind::NotFound)
        .map(|failure| &failure.key)
        .collect();
    let unread = found.failures.iter().find(|failure| failure.error.kind() != ErrorKind::NotFound);
    let failure = match unread {
        Some(failure) => Some(failure.error.clone().with_key(&failure.key).into()),
        None => (!missing.is_empty()).then(|| Failure::no_configs(&missing)),
    };
    let values = found.values.iter().map(|(key, value)| (key.as_str().to_owned(), value.value().clone()));
    Answer::Document(Value::Object(values.collect())).with_failure(failure)
}
