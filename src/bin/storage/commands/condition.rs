//! The conditions of `set` and `delete`, and the output of revisions.

use clap::Args;
use gateway_storage::revision::{Condition, Revision};
use serde_json::{Value, json};

use super::Answer;

#[derive(Args)]
pub(crate) struct OnlyIf {
    /// Store it only if the stored record has this revision, which `get --revision` shows
    #[arg(long, value_name = "REVISION", conflicts_with = "if_absent")]
    if_revision: Option<Revision>,
    /// Store it only if there is none yet
    #[arg(long)]
    if_absent: bool,
}

impl OnlyIf {
    pub(crate) fn condition(&self) -> Option<Condition> {
        match self.if_revision {
            Some(revision) => Some(Condition::Unchanged(revision)),
            None => self.if_absent.then_some(Condition::Absent),
        }
    }
}

/// A revision, and the value that has it.
pub(crate) fn revised(revision: Revision, value: Option<Value>) -> Answer {
    let lines = [revision.to_string()].into_iter().chain(value.as_ref().map(Value::to_string)).collect();
    let json = match value {
        Some(value) => json!({ "revision": revision, "value": value }),
        None => json!({ "revision": revision }),
    };
    Answer::Lines { lines, json }
}
