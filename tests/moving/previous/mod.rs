//! Stores of an earlier version of this crate, from `tests/fixtures/bd77b1c/`: they open, migrate, and are
//! read and written like new ones.

mod file;
#[cfg(feature = "git")]
pub(crate) mod git;
#[cfg(feature = "mongodb")]
pub(crate) mod mongodb;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;

use std::{fs, path::PathBuf};

use futures_util::TryStreamExt;
use gateway_storage::{
    ConfigBatch, ConfigStore, ErrorKind, Exportable, Key, Memory, OptionalExt, Record, RecordKind, Storage,
    UsageStore, archive,
    history::DocumentKind,
    plan::{Applied, ApplyOptions, AuditFilter, Plan, PlanRefusal, Rollback, RollbackOptions},
    revision::{
        Condition::{Absent, Unchanged},
        Conditional, Revision,
    },
};
use serde_json::{Value, json};

pub(crate) type Result<T = ()> = gateway_storage::Result<T>;

pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bd77b1c").join(name)
}

/// The JSON documents of a file, one per line.
#[cfg(any(feature = "mongodb", feature = "redis"))]
fn lines(name: &str) -> Vec<Value> {
    let text = fs::read_to_string(fixture(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The records of the export file, which that version wrote.
pub(crate) async fn exported() -> Vec<Record> {
    let file = fs::read(fixture("export.ndjson")).unwrap();
    archive::read(&file[..]).try_collect().await.expect("the export file is intact")
}

pub(crate) fn plan(changes: &Value) -> Plan {
    Plan::from_json(changes.to_string()).unwrap()
}

/// The plans of the stores, in the order of their first attempts.
pub(crate) const PLANS: [(&str, &str); 4] = [
    ("release-41", r#"[{"set":"retries","value":1},{"set":"mode","value":"canary"},{"delete":"空"}]"#),
    (
        "release-42",
        r#"[{"set":"retries","value":3,"expect":2},{"set":"models","value":["gemini-2.5-pro"],"expect_absent":true},
           {"set":"large","value":-9007199254740993},{"delete":"debug"}]"#,
    ),
    ("release-43", r#"[{"set":"retries","value":4,"expect":2}]"#),
    ("计划/44", r#"[{"set":"mode","value":null}]"#),
];

/// The cache values of the store on Redis.
#[cfg(feature = "redis")]
pub(crate) const CACHE: [(&str, &str); 3] =
    [("models", "[\"gemini-2.5-pro\"]"), ("空", ""), ("text", "团队 🦀")];

fn conflicts<T>(result: Result<T>) {
    assert_eq!(result.map(drop).unwrap_err().kind(), ErrorKind::Conflict);
}

/// All that every backend has: the store holds the exported records, and conditions hold for them.
async fn documents<B: Conditional + Exportable>(storage: &Storage<B>) -> Result {
    let mut expected = exported().await;
    expected.retain(|record| storage.imports(record.kind()));
    assert!(expected.iter().any(|record| record.kind() == RecordKind::Credential));
    let found: Vec<Record> = storage.export().try_collect().await?;
    assert_eq!(found, expected);
    let (ids, configs) = (storage.list_credentials().await?, storage.list_configs().await?);
    assert_eq!(storage.get_credentials(&ids).await?.complete()?.len(), ids.len());

    let other = Revision::of(b"other");
    for record in &expected {
        let kind = match record {
            Record::Credential { id, credential } => {
                assert_eq!(&storage.get_credential(id).await?, credential);
                DocumentKind::Credential
            }
            Record::Config { key, value } => {
                assert_eq!((&storage.get_config(key).await?, configs.get(key)), (value, Some(value)));
                DocumentKind::Config
            }
            _ => continue,
        };
        let (key, backend) = (record.key(), storage.backend());
        let (read, revision) = backend.get_with_revision(kind, key).await?;
        assert_eq!(&read, record);
        assert_eq!(backend.get_with_revision(kind, key).await?.1, revision);
        let changed = match record {
            Record::Credential { id, .. } => {
                let credential = json!({ "changed": 1 }).try_into()?;
                Record::Credential { id: id.clone(), credential }
            }
            _ => Record::Config { key: key.clone(), value: json!("changed").try_into()? },
        };
        for condition in [Absent, Unchanged(other)] {
            conflicts(backend.set_if(&changed, condition).await);
        }
        conflicts(backend.delete_if(kind, key, other).await);
        assert_eq!(&backend.get_with_revision(kind, key).await?.0, record);
        let second = backend.set_if(&changed, Unchanged(revision)).await?;
        conflicts(backend.set_if(&changed, Unchanged(revision)).await);
        assert_eq!(backend.get_with_revision(kind, key).await?, (changed, second));
        backend.set_if(record, Unchanged(second)).await?;
        let (_, revision) = backend.get_with_revision(kind, key).await?;
        backend.delete_if(kind, key, revision).await?;
        backend.set_if(record, Absent).await?;
    }

    storage.set_credential("new", json!({ "n": 1 })).await?;
    storage.set_credentials(&[(Key::new("new")?, json!({ "n": 2 }).try_into()?)]).await?.complete()?;
    storage.set_config("new", json!([1])).await?;
    storage.delete_credential("new").await?;
    storage.delete_config("new").await?;
    storage.import(futures_util::stream::iter(expected.iter().cloned().map(Ok))).await?.complete()?;
    let found: Vec<Record> = storage.export().try_collect().await?;
    assert_eq!(found, expected);
    storage.health().await?;
    storage.stats().await.map(drop)
}

async fn counters<B: UsageStore>(storage: &Storage<B>) -> Result {
    assert_eq!(storage.increment_usage("alice", "requests", 2).await?, 9);
    assert_eq!(storage.increment_usage("alice", "new", 1).await?, 1);
    assert_eq!(storage.increment_usage("团队", "模型:gemini", -1).await?, -6);
    assert!(storage.increment_usage("limits", "max", 1).await.is_err());
    assert!(storage.increment_usage("limits", "min", -1).await.is_err());
    storage.reset_usage("limits").await?;
    assert_eq!(storage.list_usage().await?.len(), 2);
    Ok(())
}

/// The audit, oldest first: key, action, status, stage, source, reason of a refusal.
pub(crate) async fn audit<B: ConfigBatch>(storage: &Storage<B>) -> Result<Vec<String>> {
    let entries: Vec<_> = storage.audit_plans(AuditFilter::default()).try_collect().await?;
    let line = |entry: &gateway_storage::plan::AuditEntry| {
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        let error = entry.error.map_or("-", PlanRefusal::as_str);
        let (key, mutations) = (entry.key.as_str(), entry.mutations);
        let (stage, source) = (text(&entry.stage), text(&entry.source));
        format!("{key} {} {} {stage} {source} {mutations} {error}", entry.action, entry.status)
    };
    Ok(entries.iter().rev().map(line).collect())
}

const AUDIT: [&str; 8] = [
    "release-41 apply committed - storage plan 3 -",
    "release-41 rollback committed - storage plan 3 -",
    "release-41 rollback replayed - storage plan 3 -",
    "release-42 apply committed canary alice@example.com 4 -",
    "release-42 apply replayed - storage plan 4 -",
    "release-42 apply failed - storage plan 1 other_payload",
    "release-43 apply failed - storage plan 1 unexpected",
    "计划/44 apply committed 阶段 storage plan 1 -",
];

async fn plans<B: ConfigBatch + ConfigStore>(storage: &Storage<B>) -> Result {
    assert_eq!(audit(storage).await?, AUDIT);
    let (before, options) = (storage.list_configs().await?, ApplyOptions::default());
    let [(first, first_plan), (second, second_plan), (third, third_plan), (fourth, fourth_plan)] =
        PLANS.map(|(key, changes)| (key, Plan::from_json(changes).unwrap()));

    // A repeated plan is a replay, and another one under the same key is refused.
    assert_eq!(storage.apply_plan(second, &second_plan, &options).await?, Applied::Replayed);
    assert_eq!(storage.apply_plan(fourth, &fourth_plan, &options).await?, Applied::Replayed);
    conflicts(storage.apply_plan(second, &third_plan, &options).await);
    conflicts(storage.apply_plan(first, &first_plan, &options).await);
    conflicts(storage.apply_plan(third, &third_plan, &options).await);
    let back = RollbackOptions::default();
    assert_eq!(storage.rollback_plan(first, &back).await?, Rollback::AlreadyRolledBack);
    assert!(storage.rollback_plan(third, &back).await.is_err());
    assert_eq!(storage.list_configs().await?, before);

    // A rollback is refused if a value has changed.
    storage.set_config("retries", json!(30)).await?;
    let changed = vec![Key::new("retries")?];
    assert_eq!(storage.rollback_plan(second, &back).await?, Rollback::Refused { changed });
    storage.set_config("retries", json!(3)).await?;
    assert_eq!(storage.rollback_plan(second, &back).await?, Rollback::RolledBack);
    assert_eq!(storage.rollback_plan(second, &back).await?, Rollback::AlreadyRolledBack);
    assert_eq!(storage.get_config("retries").await?, json!(2).try_into()?);
    assert_eq!(storage.get_config("large").await?, json!(u64::MAX).try_into()?);
    assert_eq!(storage.get_config("debug").await?, json!(true).try_into()?);
    assert_eq!(storage.get_config("models").await.optional()?, None);
    assert_eq!(storage.rollback_plan(fourth, &back).await?, Rollback::RolledBack);
    assert_eq!(storage.get_config("mode").await.optional()?, None);

    let new = plan(&json!([{ "set": "retries", "value": 5, "expect": 2 }, { "delete": "debug" }]));
    assert_eq!(storage.apply_plan("new", &new, &options).await?, Applied::Applied);
    assert_eq!(storage.rollback_plan("new", &back).await?, Rollback::RolledBack);
    let now = audit(storage).await?;
    assert_eq!((&now[..AUDIT.len()], now.len()), (&AUDIT.map(str::to_owned)[..], AUDIT.len() + 13));
    Ok(())
}

/// All that the backends with a server and `File` have.
async fn everything<B>(storage: &Storage<B>) -> Result
where
    B: Conditional + ConfigBatch + Exportable + UsageStore,
{
    documents(storage).await?;
    counters(storage).await?;
    plans(storage).await
}

#[tokio::test]
async fn the_export_file_of_the_previous_version_is_imported() -> Result {
    let storage = Storage::<Memory>::open("memory:").await?;
    storage.import(futures_util::stream::iter(exported().await.into_iter().map(Ok))).await?.complete()?;
    documents(&storage).await?;
    counters(&storage).await
}
