//! `storage pull` and `storage push`: a Git store and its remote.

use clap::Args;
use gateway_storage::{Git, GitConfig, GitSync};
use serde_json::{Map, Value};

use super::Run;
use crate::{door::Door, failure::Failure, output::Answer};

/// Bring the remote's commits here, with ours on top of them
#[derive(Args)]
#[command(after_help = "\
Makes the store if there is none: as a clone of the remote.

Examples:
  storage --url 'git:./settings?remote=git@git.example:team/settings.git' pull
  storage pull && storage config list")]
pub(crate) struct Pull {}

impl Run<Git> for Pull {
    async fn run(&self, door: &Door<'_, Git>) -> Result<Answer, Failure> {
        if door.config()?.remote.is_none() {
            return Err(Failure::line("the store has no remote: its URL names none").hint(
                "add `remote=` to the URL: `git:./settings?remote=git@git.example:team/settings.git`",
            ));
        }
        // Opening fetches, so that a clone which can't be made leaves no empty store.
        let fetching = |mut config: GitConfig| {
            config.pull = GitSync::Interval;
            config
        };
        let storage = door.enter(fetching).await?;
        storage.backend().inner().pull().await?;
        Ok(standing(&storage.stats().await?.details))
    }
}

/// Send the commits that are only here to the remote
#[derive(Args)]
#[command(after_help = "\
Examples:
  storage push
  storage --url 'git:./settings?remote=/srv/settings.git&push=manual' push")]
pub(crate) struct Push {}

impl Run<Git> for Push {
    async fn run(&self, door: &Door<'_, Git>) -> Result<Answer, Failure> {
        let storage = door.open().await?;
        storage.backend().inner().push().await?;
        Ok(standing(&storage.stats().await?.details))
    }
}

/// How many commits each side does not have.
fn standing(details: &Map<String, Value>) -> Answer {
    let counts: Map<String, Value> = ["ahead", "behind"]
        .map(|name| (name.to_owned(), details.get(name).cloned().unwrap_or_default()))
        .into_iter()
        .collect();
    let rows = counts.iter().map(|(name, count)| (name.clone(), count.to_string())).collect();
    Answer::report(rows, counts.into())
}
