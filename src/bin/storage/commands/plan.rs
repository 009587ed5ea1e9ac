//! `storage plan`.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    pin::pin,
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand};
use futures_util::TryStreamExt;
use gateway_storage::{
    ConfigBatch, ConfigValue, Key, Storage,
    plan::{
        Applied, ApplyOptions, AuditEntry, AuditFilter, AuditStatus, Expect, Mutation, Plan, PlanAction,
        Rollback, RollbackOptions,
    },
    rfc3339_millis,
};
use serde_json::{Map, Value, json};

use super::{Answer, CliBackend, Failure, Run, Session};
use crate::{io::input::Input, term::text::printable};

/// Apply several config changes under a key, all or none; roll them back
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Apply a plan, all or none, once
    #[command(after_help = r#"FILE is a JSON array of changes, applied in order:
  [
    { "set": "retries", "value": 3, "expect": 2 },
    { "set": "models", "value": ["gemini-2.5-pro"], "expect_absent": true },
    { "delete": "debug" }
  ]
`expect` is the value that must be stored now; `expect_absent` requires that no value is stored. If
an expectation does not hold, nothing is applied.

Applying the same plan under the same key again is `replayed` and changes nothing; a different
plan under the key is refused. A dry run looks the key up in the audit and assumes that the plan
was applied with its --ttl.

Examples:
  storage plan apply release-42.json --key release-42 --stage canary --dry-run
  storage plan apply release-42.json --key release-42 --stage canary
  jq '[.[] | {set: .key, value: .value}]' all.json | storage plan apply - --key import-7"#)]
    Apply(Apply),
    /// Restore the values before a plan, unless they were changed since
    #[command(after_help = "\
Examples:
  storage plan rollback release-42
  storage plan rollback release-42 --force      # also values that were changed since")]
    Rollback {
        /// The plan's key
        key: Key,
        /// Also restore values that were changed since
        #[arg(long)]
        force: bool,
        /// Source of the rollback, recorded in the audit
        #[arg(long, default_value = SOURCE)]
        source: String,
    },
    /// List all attempts, newest first: time, status, action, key, mutations, stage, source, error
    #[command(after_help = "\
Examples:
  storage plan audit --limit 20
  storage plan audit --status failed --since 24h
  storage plan audit --key release-42 --output json | jq '.[0].payload_hash'")]
    Audit {
        /// Only attempts at the plan with this key
        #[arg(long)]
        key: Option<Key>,
        /// Only attempts with this stage
        #[arg(long)]
        stage: Option<String>,
        /// Only attempts with this status: committed, replayed or failed
        #[arg(long)]
        status: Option<AuditStatus>,
        /// Only attempts of the last 24h (any duration), or since 2026-01-31T12:00:00Z
        #[arg(long, value_parser = since)]
        since: Option<SystemTime>,
        /// Maximum number of attempts
        #[arg(long)]
        limit: Option<usize>,
    },
}

#[derive(Args)]
pub(crate) struct Apply {
    /// A file with the changes, or - for stdin
    #[arg(value_name = "FILE|-")]
    file: OsString,
    /// The plan's key; applying the same plan under it again changes nothing
    #[arg(long)]
    key: Key,
    /// A label, recorded in the audit
    #[arg(long)]
    stage: Option<String>,
    /// How long the key is reserved and the plan can be rolled back
    #[arg(long, default_value = "14d", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// Source of the plan, recorded in the audit
    #[arg(long, default_value = SOURCE)]
    source: String,
    /// Show the changes without applying them; the exit code is that of a real run
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: also show the values
    #[arg(long, requires = "dry_run")]
    reveal: bool,
}

const SOURCE: &str = "storage plan";

fn since(text: &str) -> Result<SystemTime, &'static str> {
    let ago = humantime::parse_duration(text).ok().and_then(|ago| SystemTime::now().checked_sub(ago));
    ago.or_else(|| humantime::parse_rfc3339_weak(text).ok())
        .ok_or("expected a duration (24h) or a time (2026-01-31T12:00:00Z)")
}

impl<B: CliBackend + ConfigBatch> Run<B> for Command {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        match self {
            Self::Apply(apply) => apply.run(session).await,
            Self::Rollback { key, force, source } => {
                let options = RollbackOptions::default().with_source(source).with_force(*force);
                match session.open().await?.rollback_plan(key, &options).await? {
                    Rollback::RolledBack => Ok(word("rolled_back", &[])),
                    Rollback::AlreadyRolledBack => Ok(word("already_rolled_back", &[])),
                    Rollback::Refused { changed } => Err(Failure::changed(&changed)),
                }
            }
            Self::Audit { key, stage, status, since, limit } => {
                let mut filter = AuditFilter::default();
                (filter.key, filter.stage, filter.status) = (key.clone(), stage.clone(), *status);
                (filter.since, filter.limit) = (*since, *limit);
                let entries: Vec<AuditEntry> =
                    session.read().await?.audit_plans(filter).try_collect().await?;
                Ok(Answer::Lines { lines: entries.iter().map(line).collect(), json: json!(entries) })
            }
        }
    }
}

impl Apply {
    async fn run<B: CliBackend + ConfigBatch>(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        let input = if self.file == "-" { Input::Stdin } else { Input::File(self.file.clone()) };
        let plan = Plan::from_json(input.json()?)
            .map_err(|error| Failure::invalid(&error).hint("`storage plan apply --help` shows the format"))?;
        let mut options = ApplyOptions::default().with_ttl(self.ttl).with_source(&self.source);
        options.stage.clone_from(&self.stage);
        if self.dry_run {
            options.check()?;
            return self.dry_run(&plan, session.open().await?).await;
        }
        let storage = session.open().await?;
        let applied = storage.apply_plan(&self.key, &plan, &options).await?;
        let hash = json!(plan.payload_hash());
        Ok(match applied {
            Applied::Applied => word("applied", &[("payload_hash", hash)]),
            Applied::Replayed => word("replayed", &[("payload_hash", hash)]),
        })
    }

    /// Shows what the real run would do, and fails if it would.
    async fn dry_run<B: ConfigBatch>(&self, plan: &Plan, storage: &Storage<B>) -> Result<Answer, Failure> {
        let stored = storage.list_configs().await?;
        let key = self.key_state(plan, storage).await?;
        let is_replay = key == Some(KeyState::Replay);
        // A replay checks no expectation.
        let unexpected = plan.mutations().iter().filter(|mutation| !is_replay && !holds(mutation, &stored));
        let unexpected: Vec<&Key> = unexpected.map(|mutation| &mutation.key).collect();
        let refused = match (key, unexpected.first()) {
            (Some(KeyState::Other), _) => {
                Some(Failure::would_refuse("another plan was applied under this key"))
            }
            (Some(KeyState::RolledBack), _) => Some(
                Failure::would_refuse("the plan of this key was rolled back")
                    .hint("apply it under another key"),
            ),
            (_, Some(key)) => Some(Failure {
                key: Some(Box::new((*key).clone())),
                ..Failure::would_refuse("a value is not what the plan expects")
            }),
            _ => None,
        };
        let answer = differences(plan, &stored, &unexpected.into_iter().collect(), is_replay, self.reveal);
        Ok(answer.with_failure(refused))
    }

    /// The state of the key according to the audit, which has no TTL: this run's `--ttl` is assumed.
    async fn key_state<B: ConfigBatch>(
        &self,
        plan: &Plan,
        storage: &Storage<B>,
    ) -> Result<Option<KeyState>, Failure> {
        let filter = AuditFilter::default().with_key(&self.key).with_status(AuditStatus::Committed);
        let mut entries = pin!(storage.audit_plans(filter));
        let mut is_rolled_back = false;
        while let Some(entry) = entries.try_next().await? {
            if entry.action != PlanAction::Apply {
                is_rolled_back = true;
                continue;
            }
            let is_kept = entry.finished.checked_add(self.ttl).is_none_or(|end| SystemTime::now() < end);
            return Ok(is_kept.then(|| match entry.payload_hash {
                Some(hash) if hash != plan.payload_hash() => KeyState::Other,
                _ if is_rolled_back => KeyState::RolledBack,
                _ => KeyState::Replay,
            }));
        }
        Ok(None)
    }
}

/// The plan that was applied under the key.
#[derive(Clone, Copy, PartialEq)]
enum KeyState {
    Replay,
    Other,
    RolledBack,
}

/// Whether the expectation of a mutation holds.
fn holds(mutation: &Mutation, stored: &BTreeMap<Key, ConfigValue>) -> bool {
    match (&mutation.expect, stored.get(&mutation.key)) {
        (None, _) => true,
        (Some(Expect::Absent), found) => found.is_none(),
        (Some(Expect::Value(wanted)), found) => {
            found.is_some_and(|found| found.to_json() == wanted.to_json())
        }
    }
}

/// One word as text, or a document with it.
fn word(word: &str, more: &[(&str, Value)]) -> Answer {
    let more = more.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    let json: Map<String, Value> = more.chain([("result".to_owned(), json!(word))]).collect();
    Answer::Lines { lines: vec![word.to_owned()], json: json.into() }
}

/// The changes of the plan, by key.
fn differences(
    plan: &Plan,
    stored: &BTreeMap<Key, ConfigValue>,
    unexpected: &BTreeSet<&Key>,
    is_replay: bool,
    reveal: bool,
) -> Answer {
    let last: BTreeMap<&Key, &Mutation> =
        plan.mutations().iter().map(|mutation| (&mutation.key, mutation)).collect();
    let mut rows = Vec::new();
    let mut documents = Vec::new();
    for (key, mutation) in last {
        let before = stored.get(key);
        let after = if is_replay { before } else { mutation.value.as_ref() };
        let change = match (before, after) {
            (None, None) => "none",
            (None, Some(_)) => "set",
            (Some(_), None) => "delete",
            (Some(before), Some(after)) if before.to_json() == after.to_json() => "none",
            (Some(_), Some(_)) => "change",
        };
        let holds = !unexpected.contains(key);
        let mut text = change.to_owned();
        let mut document = json!({ "key": key, "change": change, "expected": holds });
        if reveal {
            let shown = |value: Option<&ConfigValue>| {
                value.map_or_else(|| "nothing".to_owned(), |value| printable(&value.to_json()))
            };
            text.push_str(&format!("  {} -> {}", shown(before), shown(after)));
            for (name, value) in [("before", before), ("after", after)] {
                if let Some(value) = value {
                    document[name] = value.value().clone();
                }
            }
        }
        if !holds {
            text.push_str("  (not what the plan expects: it would be refused)");
        }
        if is_replay {
            text.push_str("  (the plan was applied before: it would be replayed)");
        }
        rows.push((key.as_str().to_owned(), text));
        documents.push(document);
    }
    Answer::report(rows, Value::from(documents))
}

fn line(entry: &AuditEntry) -> String {
    let label = |label: &Option<String>| label.clone().unwrap_or_else(|| "-".to_owned());
    [
        &*rfc3339_millis(entry.finished),
        entry.status.as_str(),
        entry.action.as_str(),
        entry.key.as_str(),
        &*entry.mutations.to_string(),
        &*label(&entry.stage),
        &*label(&entry.source),
        entry.error.map_or("-", |error| error.as_str()),
    ]
    .join("\t")
}
