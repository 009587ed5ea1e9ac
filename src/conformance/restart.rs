//! `Ok` means durable: one function per capability, for persistent backends.
//!
//! Each takes a function that opens the same store, at first empty, and calls it several times.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    complete, counted, fails, hostile_credentials, hostile_keys, hostile_values, identical, identical_fields,
    key, ok,
    plans::{audit, plan, value},
    same, same_keys, sorted,
};
use crate::{
    Backend, ConfigBatch, ConfigStore, Credential, CredentialStore, ErrorKind, Increment, Key, Storage,
    UsageStore,
    capability::Leases,
    model::{Claim, Holder, Lease},
    plan::{Applied, ApplyOptions, AuditFilter, Mutation, Rollback, RollbackOptions},
};

async fn close<B: Backend>(storage: Storage<B>) {
    ok("close", storage.close().await);
}

/// Asserts that credentials are unchanged after a restart, and that deleted ones stay deleted.
///
/// # Panics
///
/// At the first violated bullet.
pub async fn credentials<B: CredentialStore, F: Future<Output = Storage<B>>>(open: impl Fn() -> F) {
    let storage = open().await;
    let keys = hostile_keys(storage.backend().max_key_bytes());
    let stored: Vec<(Key, Credential)> =
        keys.into_iter().zip(hostile_credentials().into_iter().cycle()).collect();
    for (id, credential) in &stored {
        ok("set_credential", storage.set_credential(id, credential).await);
    }
    close(storage).await;

    let storage = open().await;
    let ids: Vec<Key> = stored.iter().map(|(id, _)| id.clone()).collect();
    same_keys("ids after a restart", &sorted(ids.clone()), ok("list", storage.list_credentials().await));
    for (id, credential) in &stored {
        let found = ok("get_credential after a restart", storage.get_credential(id).await);
        let equal = identical_fields(credential.fields(), found.fields());
        assert!(equal, "{:?} is changed by a restart", id.as_str());
    }
    let (one, many) = ids.split_first().expect("the kit has keys");
    ok("delete_credential", storage.delete_credential(one).await);
    complete("delete_credentials", many.len() / 2, storage.delete_credentials(&many[..many.len() / 2]).await);
    complete("set_credentials", 2, storage.set_credentials(&stored[stored.len() - 2..]).await);
    close(storage).await;

    let storage = open().await;
    fails("get after a delete and a restart", ErrorKind::NotFound, storage.get_credential(one).await);
    let stay = many[many.len() / 2..].to_vec();
    same(
        "ids after deletes and a restart",
        sorted(stay.clone()),
        ok("list", storage.list_credentials().await),
    );
    complete("delete_credentials", stay.len(), storage.delete_credentials(&stay).await);
    close(storage).await;
    same_keys("ids at the end", &[], ok("list", open().await.list_credentials().await));
}

/// Asserts that configs are unchanged after a restart, and that deleted ones stay deleted.
///
/// # Panics
///
/// At the first violated bullet.
pub async fn configs<B: ConfigStore, F: Future<Output = Storage<B>>>(open: impl Fn() -> F) {
    let storage = open().await;
    let keys = hostile_keys(storage.backend().max_key_bytes());
    let stored: Vec<(Key, Value)> = keys.into_iter().zip(hostile_values().into_iter().cycle()).collect();
    for (key, value) in &stored {
        ok("set_config", storage.set_config(key, value.clone()).await);
    }
    close(storage).await;

    let storage = open().await;
    let found = ok("list_configs after a restart", storage.list_configs().await);
    same("the number of configs after a restart", stored.len(), found.len());
    for (key, value) in &stored {
        assert!(identical(value, &found[key]), "{:?} is changed by a restart", key.as_str());
        ok("delete_config", storage.delete_config(key).await);
    }
    close(storage).await;
    same("configs after deletes and a restart", 0, ok("list", open().await.list_configs().await).len());
}

/// Asserts that counters keep their counts after a restart, and that reset records stay removed.
///
/// # Panics
///
/// At the first violated bullet.
pub async fn usage<B: UsageStore, F: Future<Output = Storage<B>>>(open: impl Fn() -> F) {
    let storage = open().await;
    let (keys, field) = (hostile_keys(storage.backend().max_key_bytes()), key("x"));
    let counts = [5, i64::MAX, i64::MIN, 9_007_199_254_740_993, 0, -1];
    let steps: Vec<Increment> = keys
        .iter()
        .zip(counts.into_iter().cycle())
        .map(|(key, count)| Increment::new(key, &field, count))
        .collect();
    counted("increment_many", steps.len(), storage.increment_many(&steps).await);
    ok("increment_usage", storage.increment_usage("counter", "x", 5).await);
    close(storage).await;

    let storage = open().await;
    same("total after 5 and 2", 7, ok("increment_usage", storage.increment_usage("counter", "x", 2).await));
    for step in &steps {
        let found = ok("get_usage after a restart", storage.get_usage(&step.key).await);
        same("a count after a restart", (1, Some(step.delta)), (found.len(), found.get("x")));
        ok("reset_usage", storage.reset_usage(&step.key).await);
    }
    close(storage).await;

    let storage = open().await;
    let left = ok("list_usage", storage.list_usage().await);
    same("records after resets and a restart", vec!["counter"], left.keys().map(Key::as_str).collect());
    same("total", 8, ok("increment_usage", storage.increment_usage("counter", "x", 1).await));
    ok("reset_usage", storage.reset_usage("counter").await);
    close(storage).await;
}

/// Asserts that plans are replayed, rolled back and audited after a restart as before it.
///
/// # Panics
///
/// At the first violated bullet.
pub async fn plans<B: ConfigBatch, F: Future<Output = Storage<B>>>(open: impl Fn() -> F) {
    let options = ApplyOptions::default().with_stage("canary").with_source("the kit");
    let back = RollbackOptions::default();
    let storage = open().await;
    let keys = hostile_keys(storage.backend().max_key_bytes());
    let all = |values: &mut dyn Iterator<Item = Value>| {
        plan(keys.iter().zip(values).map(|(key, json)| Mutation::set(key, &value(json))).collect::<Vec<_>>())
    };
    let small = || hostile_values().into_iter().filter(|value| value.to_string().len() < 1_000).cycle();
    let (first, second) = (all(&mut small()), all(&mut std::iter::repeat(json!(2))));
    same("first", Applied::Applied, ok("apply_plan", storage.apply_plan("first", &first, &options).await));
    same("second", Applied::Applied, ok("apply_plan", storage.apply_plan("second", &second, &options).await));
    let before = audit(&storage, AuditFilter::default()).await;
    close(storage).await;

    let storage = open().await;
    same("the audit after a restart", &before, &audit(&storage, AuditFilter::default()).await);
    let again = ok("apply_plan after a restart", storage.apply_plan("first", &first, &options).await);
    same("a plan after a restart", Applied::Replayed, again);
    let other = storage.apply_plan("first", &second, &options).await;
    fails("another plan after a restart", ErrorKind::Conflict, other);
    let rolled = ok("rollback_plan after a restart", storage.rollback_plan("second", &back).await);
    same("a rollback after a restart", Rollback::RolledBack, rolled);
    let found = ok("list_configs", storage.list_configs().await);
    for (key, wanted) in keys.iter().zip(small()) {
        assert!(identical(&wanted, &found[key]), "{:?} is not restored", key.as_str());
    }
    close(storage).await;

    let storage = open().await;
    let rolled = ok("rollback_plan", storage.rollback_plan("second", &back).await);
    same("a second rollback after a restart", Rollback::AlreadyRolledBack, rolled);
    same(
        "a rollback",
        Rollback::RolledBack,
        ok("rollback_plan", storage.rollback_plan("first", &back).await),
    );
    same("configs at the end", 0, ok("list", storage.list_configs().await).len());
    same("entries", 7, audit(&storage, AuditFilter::default()).await.len());
    let deleted = plan([Mutation::delete(&key("a"))]);
    let result = storage.apply_plan("first", &deleted, &options).await;
    fails("another plan under the key of one that was rolled back", ErrorKind::Conflict, result);
    close(storage).await;
}

/// Asserts that leases are held after a restart, and that their numbers go on.
///
/// # Panics
///
/// At the first violated bullet.
pub async fn leases<B: Leases, F: Future<Output = Storage<B>>>(open: impl Fn() -> F) {
    let (ttl, holders, name) = (Duration::from_secs(60), [Holder::random(), Holder::random()], key("kept"));
    let claim = async |storage: &Storage<B>, holder: &Holder| -> Option<Lease> {
        match ok("claim_lease", storage.claim_lease(&name, holder, ttl).await) {
            Claim::Yours(lease) => Some(lease),
            Claim::Theirs { .. } => None,
        }
    };
    let storage = open().await;
    let lease = claim(&storage, &holders[0]).await.expect("no holder has the lease");
    close(storage).await;

    let storage = open().await;
    let states = ok("list_leases after a restart", storage.list_leases().await);
    let states: Vec<_> = states.into_iter().map(|state| (state.name, state.holder, state.number)).collect();
    let wanted = vec![(name.clone(), Some(holders[0].clone()), lease.number())];
    same("the leases after a restart", wanted, states);
    same("a claim by another holder", None, claim(&storage, &holders[1]).await);
    let again = claim(&storage, &holders[0]).await.map(|lease| lease.number());
    same("the number of the same holder's claim", Some(lease.number()), again);
    let renewed = ok("renew_lease after a restart", storage.renew_lease(&lease, ttl).await);
    ok("release_lease", storage.release_lease(&renewed, Duration::ZERO).await);
    close(storage).await;

    let storage = open().await;
    same("the leases after a release and a restart", 0, ok("list", storage.list_leases().await).len());
    let next = claim(&storage, &holders[1]).await.expect("the lease was released");
    assert!(next.number() > lease.number(), "the number {} comes after {}", next.number(), lease.number());
    ok("release_lease", storage.release_lease(&next, Duration::ZERO).await);
    close(storage).await;
}
