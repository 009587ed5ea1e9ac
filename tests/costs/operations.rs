//! The operations of each capability, on a store with a hundred records of each kind.

use std::{pin::pin, time::Duration};

use futures_util::StreamExt;
use gateway_storage::{
    Backend, CacheStore, ConfigBatch, ConfigStore, ConfigValue, Credential, CredentialStore, Exportable,
    Increment, Key, Record, Result, Storage, Transaction, Transactional, UsageStore,
    plan::{ApplyOptions, AuditFilter, Mutation, Plan, RollbackOptions},
};
use serde_json::json;

use super::meter::{CALLS, Meter};

const BATCH: usize = 100;

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn keys(name: &str, count: usize) -> Vec<Key> {
    (0..count).map(|n| key(&format!("{name}-{n:03}"))).collect()
}

/// An OAuth credential of some 600 bytes of JSON.
fn credential() -> Credential {
    let fields = json!({
        "access_token": "x".repeat(218), "refresh_token": "y".repeat(103), "client_id": "z".repeat(72),
        "client_secret": "GOCSPX-0123456789", "expiry": "2026-12-31T23:59:59Z", "project_id": "project-0001",
        "token_uri": "https://oauth2.googleapis.com/token", "scope": "cloud-platform",
    });
    fields.try_into().unwrap()
}

fn value() -> ConfigValue {
    json!({ "models": ["gemini-2.5-pro", "gemini-2.5-flash"], "retries": 3 }).try_into().unwrap()
}

/// Nothing has to be done before a call.
async fn nothing(_: usize) -> Result<()> {
    Ok(())
}

pub(crate) fn credentials<B: CredentialStore>(meter: &mut Meter<'_>, on: &Storage<B>) {
    let (bare, id, value) = (on.backend(), &key("id-000"), &credential());
    let [ids, others] = &["id", "other"].map(|name| keys(name, BATCH));
    let [stored, added] = [ids, others].map(|ids| ids.iter().map(|id| (id.clone(), value.clone())).collect());
    let (stored, added): (&Vec<_>, &Vec<_>) = (&stored, &added);
    let set = async |_| on.set_credential(id, value.clone()).await;
    let add = async |_| on.set_credentials(added).await?.complete().map(drop);

    meter.run(on.set_credentials(stored));
    meter.row("get_credential", nothing, |_| bare.get_credential(id), |_| on.get_credential(id));
    meter.row(
        "set_credential",
        nothing,
        |_| bare.set_credential(id, value),
        |_| on.set_credential(id, value.clone()),
    );
    meter.row("delete_credential", set, |_| bare.delete_credential(id), |_| on.delete_credential(id));
    meter.run(set(0));
    meter.row("list_credentials", nothing, |_| bare.list_credentials(), |_| on.list_credentials());
    meter.row("get_credentials", nothing, |_| bare.get_credentials(ids), |_| on.get_credentials(ids));
    meter.row("set_credentials", nothing, |_| bare.set_credentials(stored), |_| on.set_credentials(stored));
    meter.row(
        "delete_credentials",
        add,
        |_| bare.delete_credentials(others),
        |_| on.delete_credentials(others),
    );
}

pub(crate) fn configs<B: ConfigStore>(meter: &mut Meter<'_>, on: &Storage<B>) {
    let (bare, key, value) = (on.backend(), &key("config-000"), &value());
    let set = async |_| on.set_config(key, value.clone()).await;

    for key in &keys("config", BATCH) {
        meter.run(on.set_config(key, value.clone()));
    }
    meter.row("get_config", nothing, |_| bare.get_config(key), |_| on.get_config(key));
    meter.row("set_config", nothing, |_| bare.set_config(key, value), |_| on.set_config(key, value.clone()));
    meter.row("delete_config", set, |_| bare.delete_config(key), |_| on.delete_config(key));
    meter.run(set(0));
    meter.row("list_configs", nothing, |_| bare.list_configs(), |_| on.list_configs());
}

/// Plans of ten mutations.
pub(crate) fn plans<B: ConfigBatch>(meter: &mut Meter<'_>, on: &Storage<B>) {
    let (bare, value) = (on.backend(), &value());
    let mutations: Vec<_> = keys("config", 10).iter().map(|key| Mutation::set(key, value)).collect();
    let plan = &Plan::new(mutations).unwrap();
    let [new, applied] = &["new", "applied"].map(|name| keys(name, CALLS));
    let (apply, back) = (&ApplyOptions::default(), &RollbackOptions::default());

    meter.row(
        "apply_plan",
        nothing,
        |n| bare.apply_plan(&new[n], plan, apply),
        |n| on.apply_plan(&new[n], plan, apply),
    );
    meter.row(
        "apply_plan_again",
        nothing,
        |n| bare.apply_plan(&new[n], plan, apply),
        |n| on.apply_plan(&new[n], plan, apply),
    );
    meter.row(
        "rollback_plan",
        async |n| on.apply_plan(&applied[n], plan, apply).await.map(drop),
        |n| bare.rollback_plan(&applied[n], back),
        |n| on.rollback_plan(&applied[n], back),
    );
    meter.row(
        "audit_plans",
        nothing,
        |_| bare.audit_plans(AuditFilter::default()),
        |_| async { pin!(on.audit_plans(AuditFilter::default())).next().await.expect("an entry") },
    );
}

pub(crate) fn usage<B: UsageStore>(meter: &mut Meter<'_>, on: &Storage<B>) {
    let (bare, key, field) = (on.backend(), &key("usage-000"), &key("requests"));
    let steps: &Vec<_> = &keys("usage", BATCH).iter().map(|key| Increment::new(key, field, 1)).collect();
    let count = async |_| on.increment_usage(key, field, 1).await.map(drop);

    meter.run(on.increment_many(steps));
    meter.row(
        "increment_usage",
        nothing,
        |_| bare.increment_usage(key, field, 1),
        |_| on.increment_usage(key, field, 1),
    );
    meter.row("increment_many", nothing, |_| bare.increment_many(steps), |_| on.increment_many(steps));
    meter.row("get_usage", nothing, |_| bare.get_usage(key), |_| on.get_usage(key));
    meter.row("list_usage", nothing, |_| bare.list_usage(), |_| on.list_usage());
    meter.row("reset_usage", count, |_| bare.reset_usage(key), |_| on.reset_usage(key));
}

pub(crate) fn cache<B: CacheStore>(meter: &mut Meter<'_>, on: &Storage<B>) {
    let (bare, key, bytes, ttl) = (on.backend(), &key("cached"), &[b'x'; 1000], Duration::from_secs(600));
    let set = async |_| on.set_cache(key, bytes, ttl).await;

    meter.row("set_cache", nothing, |_| bare.set_cache(key, bytes, ttl), |_| on.set_cache(key, bytes, ttl));
    meter.row("get_cache", nothing, |_| bare.get_cache(key), |_| on.get_cache(key));
    meter.row("get_cache_entry", nothing, |_| bare.get_cache_entry(key), |_| on.get_cache_entry(key));
    meter.row("delete_cache", set, |_| bare.delete_cache(key), |_| on.delete_cache(key));
}

/// A transaction that reads a value and changes it.
pub(crate) fn transactions<B: Transactional>(meter: &mut Meter<'_>, on: &Storage<B>) {
    async fn update(mut tx: impl Transaction, key: &Key, value: &ConfigValue) -> Result<()> {
        tx.get_config(key).await?;
        tx.set_config(key, value).await?;
        tx.commit().await
    }
    let (bare, key, value) = (on.backend(), &key("config-000"), &value());
    meter.row(
        "transaction",
        nothing,
        |_| async { update(bare.begin().await?, key, value).await },
        |_| async { update(on.begin().await?, key, value).await },
    );
}

/// The first page of an export, and an import.
pub(crate) fn export<B: Exportable>(meter: &mut Meter<'_>, on: &Storage<B>) {
    let (bare, credential, value) = (on.backend(), credential(), value());
    let mut records: Vec<Record> = Vec::new();
    for key in keys("imported", BATCH / 2) {
        records.push(Record::Credential { id: key.clone(), credential: credential.clone() });
        records.push(Record::Config { key, value: value.clone() });
    }
    let records = &records[..];

    meter.row(
        "export",
        nothing,
        |_| bare.export(),
        |_| async { pin!(on.export()).next().await.expect("a record") },
    );
    meter.row(
        "import",
        nothing,
        |_| bare.import(records),
        |_| async { on.backend().import(records).await?.complete() },
    );
}

pub(crate) fn backend<B: Backend>(meter: &mut Meter<'_>, on: &Storage<B>) {
    let bare = on.backend();
    meter.row("health", nothing, |_| bare.health(), |_| on.health());
    meter.row("stats", nothing, |_| bare.stats(), |_| on.stats());
}
