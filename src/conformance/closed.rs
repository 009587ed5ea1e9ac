//! After [`close`](crate::Backend::close) every operation returns [`Closed`](crate::ErrorKind::Closed): one
//! function per capability, each for a storage that is closed.

use std::time::Duration;

use futures_core::Stream;
use futures_util::StreamExt;
use serde_json::json;
use tokio::time::Instant;

use super::{
    fails, key, must, ok,
    plans::{plan, value},
    same,
};
use crate::{
    BatchReport, CacheStore, ConfigBatch, ConfigStore, Credential, CredentialStore, ErrorKind, Exportable,
    Increment, Record, Result, Storage, Transactional, UsageStore,
    capability::{Conditional, Leases, Watch},
    event::WatchOptions,
    model::{Condition, Holder, Lease, ListOptions, Revision},
    plan::{ApplyOptions, AuditFilter, Mutation, RollbackOptions},
};

const BULLET: &str = "every operation after close is Closed";

#[track_caller]
pub(super) fn is_closed<T>(what: &str, result: Result<T>) {
    fails(format!("{what} after close"), ErrorKind::Closed, result);
}

async fn streams_nothing<T: Send>(what: &str, stream: impl Stream<Item = Result<T>> + Send) {
    let mut items: Vec<Result<T>> = stream.collect().await;
    same(format!("the number of items of a failed {what}"), 1, items.len());
    is_closed(what, items.remove(0));
}

/// Asserts it for [`CredentialStore`].
///
/// # Panics
///
/// If an operation returns anything else.
pub async fn credentials<B: CredentialStore>(closed: &Storage<B>) {
    must(BULLET, credentials_are(closed.clone())).await;
}

async fn credentials_are<B: CredentialStore>(closed: Storage<B>) {
    let id = key("a");
    let credential = ok("an empty credential", Credential::try_from(json!({})));
    is_closed("get_credential", closed.get_credential(&id).await);
    is_closed("set_credential", closed.set_credential(&id, &credential).await);
    is_closed("delete_credential", closed.delete_credential(&id).await);
    is_closed("list_credentials", closed.list_credentials().await);
    is_closed("get_credentials", closed.get_credentials(std::slice::from_ref(&id)).await);
    is_closed("set_credentials", closed.set_credentials(&[(id.clone(), credential)]).await);
    is_closed("delete_credentials", closed.delete_credentials(&[id]).await);
    streams_nothing("stream_credentials", closed.stream_credentials(ListOptions::default())).await;
}

/// Asserts it for [`Conditional`].
///
/// # Panics
///
/// If an operation returns anything else.
pub async fn conditional<B: Conditional>(closed: &Storage<B>) {
    must(BULLET, conditional_is(closed.clone())).await;
}

async fn conditional_is<B: Conditional>(closed: Storage<B>) {
    let (name, any) = (key("a"), Revision::of(b"any"));
    is_closed("get_with_revision", closed.get_config_with_revision(&name).await);
    is_closed("set_if", closed.set_config_if(&name, json!(1), Condition::Absent).await);
    is_closed("delete_if", closed.delete_config_if(&name, any).await);
}

/// Asserts it for [`Leases`].
///
/// # Panics
///
/// If an operation returns anything else.
pub async fn leases<B: Leases>(closed: &Storage<B>) {
    must(BULLET, leases_are(closed.clone())).await;
}

async fn leases_are<B: Leases>(closed: Storage<B>) {
    let (name, holder, ttl) = (key("a"), Holder::random(), Duration::from_secs(1));
    let lease = Lease::new(name.clone(), holder.clone(), 1, Instant::now());
    is_closed("claim_lease", closed.claim_lease(&name, &holder, ttl).await);
    is_closed("renew_lease", closed.renew_lease(&lease, ttl).await);
    is_closed("release_lease", closed.release_lease(&lease, ttl).await);
    is_closed("list_leases", closed.list_leases().await);
}

/// Asserts it for [`ConfigStore`].
///
/// # Panics
///
/// If an operation returns anything else.
pub async fn configs<B: ConfigStore>(closed: &Storage<B>) {
    must(BULLET, configs_are(closed.clone())).await;
}

async fn configs_are<B: ConfigStore>(closed: Storage<B>) {
    is_closed("get_config", closed.get_config("a").await);
    is_closed("set_config", closed.set_config("a", json!(1)).await);
    is_closed("delete_config", closed.delete_config("a").await);
    is_closed("list_configs", closed.list_configs().await);
    is_closed("get_configs", closed.get_configs(["a", "b"]).await);
    is_closed("set_configs", closed.set_configs([("a", json!(1)), ("b", json!(2))]).await);
    streams_nothing("stream_configs", closed.stream_configs(ListOptions::default())).await;
}

/// Asserts it for [`UsageStore`].
///
/// # Panics
///
/// If an operation returns anything else.
pub async fn usage<B: UsageStore>(closed: &Storage<B>) {
    must(BULLET, usage_is(closed.clone())).await;
}

async fn usage_is<B: UsageStore>(closed: Storage<B>) {
    let step = Increment::new(&key("a"), &key("x"), 1);
    is_closed("increment_usage", closed.increment_usage("a", "x", 1).await);
    is_closed("increment_many", closed.increment_many(&[step]).await);
    is_closed("get_usage", closed.get_usage("a").await);
    is_closed("reset_usage", closed.reset_usage("a").await);
    is_closed("list_usage", closed.list_usage().await);
    is_closed("increment_within", closed.increment_within("a", "x", 1, 1).await);
    is_closed("get_counter", closed.get_counter("a", "x").await);
    is_closed("get_usages", closed.get_usages(["a", "b"]).await);
    is_closed("reset_usage_prefix", closed.reset_usage_prefix("a").await);
    streams_nothing("stream_usage", closed.stream_usage(ListOptions::default())).await;
}

/// Asserts it for [`CacheStore`].
///
/// # Panics
///
/// If an operation returns anything else.
pub async fn cache<B: CacheStore>(closed: &Storage<B>) {
    must(BULLET, cache_is(closed.clone())).await;
}

async fn cache_is<B: CacheStore>(closed: Storage<B>) {
    is_closed("get_cache", closed.get_cache("a").await);
    is_closed("get_cache_entry", closed.get_cache_entry("a").await);
    is_closed("set_cache", closed.set_cache("a", "x", Duration::from_secs(1)).await);
    is_closed("delete_cache", closed.delete_cache("a").await);
    is_closed("set_cache_if_absent", closed.set_cache_if_absent("a", "x", Duration::from_secs(1)).await);
    is_closed("get_cache_many", closed.get_cache_many(["a", "b"]).await);
    is_closed("set_cache_many", closed.set_cache_many([("a", "x")], Duration::from_secs(1)).await);
}

/// Asserts it for [`Transactional`].
///
/// # Panics
///
/// If an operation returns anything else.
pub async fn transactions<B: Transactional>(closed: &Storage<B>) {
    must(BULLET, transactions_are(closed.clone())).await;
}

async fn transactions_are<B: Transactional>(closed: Storage<B>) {
    is_closed("begin", closed.begin().await);
}

/// Asserts it for [`Exportable`].
///
/// # Panics
///
/// If an operation returns anything else.
pub async fn export<B: Exportable>(closed: &Storage<B>) {
    must(BULLET, export_is(closed.clone())).await;
}

async fn export_is<B: Exportable>(closed: Storage<B>) {
    streams_nothing("export", closed.export()).await;
    let record = Record::Config { key: key("a"), value: ok("a value", json!(1).try_into()) };
    let imported: Result<BatchReport> = closed.import(futures_util::stream::iter([Ok(record)])).await;
    is_closed("import", imported);
}

/// Asserts it for [`ConfigBatch`].
///
/// # Panics
///
/// If an operation returns anything else.
pub async fn plans<B: ConfigBatch>(closed: &Storage<B>) {
    must(BULLET, plans_are(closed.clone())).await;
}

async fn plans_are<B: ConfigBatch>(closed: Storage<B>) {
    let plan = plan([Mutation::set(&key("a"), &value(json!(1)))]);
    is_closed("apply_plan", closed.apply_plan("a", &plan, &ApplyOptions::default()).await);
    is_closed("rollback_plan", closed.rollback_plan("a", &RollbackOptions::default()).await);
    streams_nothing("audit_plans", closed.audit_plans(AuditFilter::default())).await;
}

/// Asserts it for [`Watch`].
///
/// # Panics
///
/// If an operation returns anything else.
pub async fn watch<B: Watch>(closed: &Storage<B>) {
    must(BULLET, watch_is(closed.clone())).await;
}

async fn watch_is<B: Watch>(closed: Storage<B>) {
    streams_nothing("watch", closed.watch(WatchOptions::default())).await;
}
