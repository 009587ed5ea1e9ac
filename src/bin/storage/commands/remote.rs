//! `storage pull` and `storage push`: a Git store and its remote.

use clap::Args;
#[cfg(feature = "git")]
use gateway_storage::{Git, GitOptions, git::GitSync};
use serde_json::{Map, Value};

use super::{Answer, Failure, Run, Session};

/// Fetch remote commits and rebase local ones onto them
#[derive(Args)]
#[command(after_help = "\
If the store does not exist, it is created as a clone of the remote.

Examples:
  storage --url 'git:./settings?remote=git@git.example:team/settings.git' pull
  storage pull && storage config list")]
pub(crate) struct Pull {}

#[cfg(feature = "git")]
impl Run<Git> for Pull {
    async fn run(&self, session: &Session<'_, Git>) -> Result<Answer, Failure> {
        if session.options()?.remote.is_none() {
            return Err(Failure::usage("the URL of the store names no remote").hint(
                "add `remote=` to the URL: `git:./settings?remote=git@git.example:team/settings.git`",
            ));
        }
        // Fetches when it opens, so that a failed clone leaves no empty store.
        let fetching = |mut options: GitOptions| {
            options.pull = GitSync::Interval;
            options
        };
        let storage = session.open_with(fetching).await?;
        storage.backend().inner().pull().await?;
        Ok(sync_state(&storage.stats().await?.details))
    }
}

/// Push local commits to the remote
#[derive(Args)]
#[command(after_help = "\
Examples:
  storage push
  storage --url 'git:./settings?remote=/srv/settings.git&push=manual' push")]
pub(crate) struct Push {}

#[cfg(feature = "git")]
impl Run<Git> for Push {
    async fn run(&self, session: &Session<'_, Git>) -> Result<Answer, Failure> {
        let storage = session.open().await?;
        storage.backend().inner().push().await?;
        Ok(sync_state(&storage.stats().await?.details))
    }
}

/// The numbers of commits that the other side does not have.
fn sync_state(details: &Map<String, Value>) -> Answer {
    let counts: Map<String, Value> = ["ahead", "behind"]
        .map(|name| (name.to_owned(), details.get(name).cloned().unwrap_or_default()))
        .into_iter()
        .collect();
    let rows = counts.iter().map(|(name, count)| (name.clone(), count.to_string())).collect();
    Answer::report(rows, counts.into())
}
