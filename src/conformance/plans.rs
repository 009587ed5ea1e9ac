//! The contract of [`ConfigBatch`].

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use futures_util::StreamExt;
use serde_json::{Value, json};

use super::{
    TASKS, WaitLimit, concurrently, configs::Configs, documents::clear, drop_after, fails, hostile_keys,
    hostile_values, identical, key, must, numbered, ok, same, same_keys, settle, sorted,
};
use crate::{
    ConfigBatch, ConfigValue, ErrorKind, Key, Outcome, Result, Storage,
    plan::{
        Applied, ApplyOptions, AuditEntry, AuditFilter, AuditStatus, Expect, MAX_PLAN_MUTATIONS, Mutation,
        Plan, PlanAction, PlanRefusal, Rollback, RollbackOptions,
    },
};

/// Asserts the contract of [`ConfigBatch`].
///
/// It leaves no config values. The records of its plans stay until they expire, and its audit entries stay:
/// call it only once per store.
///
/// # Panics
///
/// At the first violated bullet.
pub async fn plans<B: ConfigBatch>(storage: &Storage<B>) {
    let store = || storage.clone();
    must("the kit needs a storage without configs", is_empty(store())).await;
    must("apply_plan: all mutations, in their order", in_order(store())).await;
    must("apply_plan: values are equal to what was stored", values(store())).await;
    must("apply_plan: the same plan is Replayed, and changes nothing", replays(store())).await;
    must("apply_plan: another plan under the same key is Conflict", conflicts(store())).await;
    must("apply_plan: what a mutation expects holds, or nothing is applied", expects(store())).await;
    must("apply_plan: keys and options are checked, and never interpreted", names(store())).await;
    must("apply_plan: a plan may be long; TooLarge if it replaces too much", sizes(store())).await;
    must("apply_plan: after the time to live the key is free", expires(store())).await;
    must("rollback_plan: puts back what the plan replaced, once", rolls_back(store())).await;
    must("rollback_plan: refused, with the keys, if they changed since", refuses(store())).await;
    must("rollback_plan: a rolled-back plan is not applied again", not_applied_again(store())).await;
    must("audit_plans: one entry for each attempt, newest first", audits(store())).await;
    must("audit_plans: the filter", filters(store())).await;
    must("apply_plan: of many, one is Applied and the others Replayed", concurrent_replays(store())).await;
    must("apply_plan: concurrent plans are applied one after the other", concurrent_plans(store())).await;
    must("apply_plan: a dropped call is applied as a whole or not at all", dropped(store())).await;
    must("apply_plan: a call ends within its deadline, and may be repeated", deadline(store())).await;
    must("the kit leaves nothing", is_empty(store())).await;
}

pub(super) fn value(value: Value) -> ConfigValue {
    ok("a value of the kit", ConfigValue::new(value))
}

fn set(name: &str, json: Value) -> Mutation {
    Mutation::set(&key(name), &value(json))
}

fn delete(name: &str) -> Mutation {
    Mutation::delete(&key(name))
}

pub(super) fn plan(mutations: impl Into<Vec<Mutation>>) -> Plan {
    ok("a plan of the kit", Plan::new(mutations))
}

async fn apply<B: ConfigBatch>(storage: &Storage<B>, name: &str, plan: &Plan) -> Result<Applied> {
    storage.apply_plan(name, plan, &ApplyOptions::default()).await
}

async fn applied<B: ConfigBatch>(storage: &Storage<B>, name: &str, plan: &Plan) {
    same(
        "a plan that is applied the first time",
        Applied::Applied,
        ok("apply_plan", apply(storage, name, plan).await),
    );
}

async fn roll_back<B: ConfigBatch>(storage: &Storage<B>, name: &str) -> Result<Rollback> {
    storage.rollback_plan(name, &RollbackOptions::default()).await
}

/// The stored config values as text, in which 0.0 and -0.0 differ.
async fn stored<B: ConfigBatch>(storage: &Storage<B>) -> BTreeMap<String, String> {
    let configs = ok("list_configs", storage.list_configs().await);
    configs.into_iter().map(|(key, value)| (key.as_str().to_owned(), value.to_json())).collect()
}

#[track_caller]
fn same_configs(what: &str, wanted: &[(&str, &str)], found: &BTreeMap<String, String>) {
    let wanted: BTreeMap<String, String> =
        wanted.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    same(what, &wanted, found);
}

async fn is_empty<B: ConfigBatch>(storage: Storage<B>) {
    same("configs", 0, ok("list", storage.list_configs().await).len());
}

async fn in_order<B: ConfigBatch>(storage: Storage<B>) {
    ok("set", storage.set_config("old", json!("old")).await);
    ok("set", storage.set_config("kept", json!(0)).await);
    let mutations = [
        set("z", json!(1)),
        delete("z"),
        set("z", json!(2)),
        set("y", json!(1)),
        delete("y"),
        set("null", Value::Null),
        delete("old"),
        delete("never stored"),
        set("a", json!("first")),
        set("a", json!({ "last": true })),
    ];
    applied(&storage, "in order", &plan(mutations)).await;
    let wanted = [("a", r#"{"last":true}"#), ("kept", "0"), ("null", "null"), ("z", "2")];
    same_configs("after the plan", &wanted, &stored(&storage).await);
    same("get_config after the plan", &json!(2), ok("get", storage.get_config("z").await).value());
    clear::<Configs, B>(&storage).await;
}

async fn values<B: ConfigBatch>(storage: Storage<B>) {
    let values = hostile_values().into_iter().filter(|value| value.to_string().len() < 1_000);
    let records: Vec<(Key, Value)> =
        hostile_keys(storage.backend().max_key_bytes()).into_iter().zip(values.cycle()).collect();
    let all: Vec<_> = records.iter().map(|(key, json)| Mutation::set(key, &value(json.clone()))).collect();
    applied(&storage, "values", &plan(all)).await;
    let found = ok("list_configs", storage.list_configs().await);
    same_keys("keys", &sorted(records.iter().map(|(key, _)| key.clone()).collect()), found.keys().cloned());
    for (key, wanted) in &records {
        let found = &found[key];
        assert!(identical(wanted, found), "{:?}: {wanted} became {}", key.as_str(), found.to_json());
    }
    let others: Vec<_> = records.iter().map(|(key, _)| Mutation::set(key, &value(json!(1)))).collect();
    applied(&storage, "other values", &plan(others)).await;
    same("rollback", Rollback::RolledBack, ok("rollback_plan", roll_back(&storage, "other values").await));
    let found = ok("list_configs", storage.list_configs().await);
    for (key, wanted) in &records {
        assert!(identical(wanted, &found[key]), "{:?} is not restored: {wanted}", key.as_str());
    }
    clear::<Configs, B>(&storage).await;
}

async fn replays<B: ConfigBatch>(storage: Storage<B>) {
    let same_plan = plan([set("a", json!({ "x": 1, "y": -0.0 })), delete("b")]);
    applied(&storage, "replayed", &same_plan).await;
    let again = ok("the same plan", apply(&storage, "replayed", &same_plan).await);
    same("a second time", Applied::Replayed, again);
    let equal = ok("equal JSON", Plan::from_json(r#"[{"value":{"y":-0.0,"x":1},"set":"a"},{"delete":"b"}]"#));
    ok("a foreign change", storage.set_config("a", json!("changed")).await);
    ok("a foreign change", storage.set_config("b", json!("made")).await);
    let options = ApplyOptions::default().with_stage("other").with_ttl(Duration::from_secs(1));
    let again = ok("an equal plan", storage.apply_plan("replayed", &equal, &options).await);
    same("an equal plan, with other options", Applied::Replayed, again);
    same_configs("after a replay", &[("a", "\"changed\""), ("b", "\"made\"")], &stored(&storage).await);
    applied(&storage, "replayed under another key", &same_plan).await;
    clear::<Configs, B>(&storage).await;
}

async fn conflicts<B: ConfigBatch>(storage: Storage<B>) {
    let first = plan([set("a", json!(1)), set("b", json!(0.0)), delete("c")]);
    applied(&storage, "conflict", &first).await;
    for other in [
        plan([set("a", json!(2))]),
        plan([set("a", json!(1.0)), set("b", json!(0.0)), delete("c")]),
        plan([set("a", json!(1)), set("b", json!(-0.0)), delete("c")]),
        plan([set("b", json!(0.0)), set("a", json!(1)), delete("c")]),
        plan([set("a", json!(1)), set("b", json!(0.0))]),
        plan([set("a", json!(1)).expecting(Expect::Absent), set("b", json!(0.0)), delete("c")]),
    ] {
        let result = apply(&storage, "conflict", &other).await;
        fails("another plan under the same key", ErrorKind::Conflict, result.clone());
        let error = result.expect_err("it fails");
        same("the key of the error", None, error.key());
        assert!(!error.is_retryable(), "the conflict is retryable, although it would be refused again");
        same_configs("after a conflict", &[("a", "1"), ("b", "0.0")], &stored(&storage).await);
    }
    let again = ok("the first plan", apply(&storage, "conflict", &first).await);
    same("the first plan", Applied::Replayed, again);
    clear::<Configs, B>(&storage).await;
}

async fn expects<B: ConfigBatch>(storage: Storage<B>) {
    ok("set", storage.set_config("a", json!({ "x": 0.0, "y": [1] })).await);
    let is = |json| Expect::Value(value(json));
    let wrong: [(&str, Plan); 6] = [
        ("a", plan([set("n", json!(1)), set("a", json!(1)).expecting(Expect::Absent)])),
        ("a", plan([set("n", json!(1)), delete("a").expecting(is(json!({ "x": -0.0, "y": [1] })))])),
        ("a", plan([set("a", json!(1)).expecting(is(json!({ "x": 0, "y": [1] })))])),
        ("b", plan([set("n", json!(1)), set("b", json!(1)).expecting(is(Value::Null))])),
        // Expectations are compared with the values before the plan.
        ("a", plan([set("a", json!(2)), set("a", json!(3)).expecting(is(json!(2)))])),
        ("b", plan([delete("b").expecting(Expect::Absent), delete("b").expecting(is(json!(1)))])),
    ];
    for (blamed, refused) in &wrong {
        let result = apply(&storage, "expects", refused).await;
        fails("a plan whose expectation does not hold", ErrorKind::Conflict, result.clone());
        let error = result.expect_err("it fails");
        same("the key of the error", Some(*blamed), error.key().map(Key::as_str));
        let before = [("a", r#"{"x":0.0,"y":[1]}"#)];
        same_configs("after a plan that was refused", &before, &stored(&storage).await);
    }
    let right = plan([
        set("b", json!(1)).expecting(Expect::Absent),
        set("a", json!(1)).expecting(is(json!({ "y": [1], "x": 0.0 }))),
        set("a", json!(2)).expecting(is(json!({ "x": 0.0, "y": [1] }))),
        delete("c").expecting(Expect::Absent),
    ]);
    applied(&storage, "expects", &right).await;
    let again = ok("a replay", apply(&storage, "expects", &right).await);
    same("a replay, whose expectations no longer hold", Applied::Replayed, again);
    same_configs("after a plan whose expectations hold", &[("a", "2"), ("b", "1")], &stored(&storage).await);
    clear::<Configs, B>(&storage).await;
}

async fn names<B: ConfigBatch>(storage: Storage<B>) {
    let plans: Vec<_> = hostile_keys(storage.backend().max_key_bytes())
        .into_iter()
        .enumerate()
        .map(|(n, key)| (key, plan([set("n", json!(n))])))
        .collect();
    for (key, plan) in &plans {
        applied(&storage, key.as_str(), plan).await;
    }
    for (key, plan) in &plans {
        same("a replay", Applied::Replayed, ok("apply_plan", apply(&storage, key.as_str(), plan).await));
    }
    let one = plan([set("n", json!(1))]);
    let default = ApplyOptions::default;
    for options in [
        default().with_ttl(Duration::ZERO),
        default().with_ttl(Duration::MAX),
        default().with_stage(""),
        default().with_stage("x".repeat(Key::MAX_BYTES + 1)),
        default().with_source("line\nbreak"),
    ] {
        let result = storage.apply_plan("bad options", &one, &options).await;
        fails("an invalid option", ErrorKind::InvalidValue, result);
    }
    let result = storage.rollback_plan("bad options", &RollbackOptions::default().with_source("")).await;
    fails("an invalid option", ErrorKind::InvalidValue, result);
    fails("an invalid key", ErrorKind::InvalidKey, apply(&storage, "", &one).await);
    clear::<Configs, B>(&storage).await;
}

async fn sizes<B: ConfigBatch>(storage: Storage<B>) {
    // A long deadline, because speed is not part of the contract.
    let storage = storage.with_deadline(Duration::from_secs(60));
    let keys = numbered("large-", MAX_PLAN_MUTATIONS);
    let all =
        |json: Value| -> Vec<_> { keys.iter().map(|key| Mutation::set(key, &value(json.clone()))).collect() };
    applied(&storage, "large 1", &plan(all(json!(1)))).await;
    applied(&storage, "large 2", &plan(all(json!(2)))).await;
    same("configs", keys.len(), ok("list", storage.list_configs().await).len());
    same("rollback", Rollback::RolledBack, ok("rollback_plan", roll_back(&storage, "large 2").await));
    let found = ok("list", storage.list_configs().await);
    assert!(keys.iter().all(|key| *found[key].value() == json!(1)), "a large plan is not rolled back");
    same("rollback", Rollback::RolledBack, ok("rollback_plan", roll_back(&storage, "large 1").await));
    same("configs", 0, ok("list", storage.list_configs().await).len());

    let (large, nine) = ("x".repeat(crate::MAX_VALUE_BYTES - 2), numbered("value-", 9));
    for key in &nine {
        ok("set", storage.set_config(key, json!(large)).await);
    }
    let deletes = |keys: &[Key]| plan(keys.iter().map(Mutation::delete).collect::<Vec<_>>());
    let result = apply(&storage, "large values", &deletes(&nine)).await;
    fails("a plan that replaces too much", ErrorKind::TooLarge, result);
    same("configs after a plan that was refused", 9, ok("list", storage.list_configs().await).len());
    applied(&storage, "large values", &deletes(&nine[..7])).await;
    same("configs", 2, ok("list", storage.list_configs().await).len());
    clear::<Configs, B>(&storage).await;
}

async fn expires<B: ConfigBatch>(storage: Storage<B>) {
    let (first, second) = (plan([set("a", json!(1))]), plan([set("a", json!(2))]));
    let short = ApplyOptions::default().with_ttl(Duration::from_millis(1_500));
    let result = ok("apply_plan", storage.apply_plan("expires", &first, &short).await);
    same("the first", Applied::Applied, result);
    applied(&storage, "does not expire", &first).await;
    let again = storage.apply_plan("expires", &first, &ApplyOptions::default()).await;
    same("a replay, which does not extend the time to live", Applied::Replayed, ok("apply_plan", again));
    tokio::time::sleep(Duration::from_millis(1_700)).await;
    fails("rollback after the time to live", ErrorKind::NotFound, roll_back(&storage, "expires").await);
    let result = apply(&storage, "does not expire", &second).await;
    fails("another plan under a key that has not expired", ErrorKind::Conflict, result);
    applied(&storage, "expires", &second).await;
    same_configs("after the second", &[("a", "2")], &stored(&storage).await);
    clear::<Configs, B>(&storage).await;
}

async fn rolls_back<B: ConfigBatch>(storage: Storage<B>) {
    ok("set", storage.set_config("changed", json!({ "before": -0.0 })).await);
    ok("set", storage.set_config("deleted", Value::Null).await);
    ok("set", storage.set_config("other", json!(1)).await);
    let mutations = [
        set("changed", json!(1)),
        delete("deleted"),
        set("made", json!(1)),
        set("made", json!(2)),
        delete("none"),
    ];
    applied(&storage, "rolled back", &plan(mutations)).await;
    ok("a change of another key", storage.set_config("other", json!(2)).await);
    same("the first", Rollback::RolledBack, ok("rollback_plan", roll_back(&storage, "rolled back").await));
    let before = [("changed", r#"{"before":-0.0}"#), ("deleted", "null"), ("other", "2")];
    same_configs("after a rollback", &before, &stored(&storage).await);

    ok("set", storage.set_config("changed", json!("later")).await);
    let again = ok("rollback_plan", roll_back(&storage, "rolled back").await);
    same("the second", Rollback::AlreadyRolledBack, again);
    let later = [("changed", "\"later\""), ("deleted", "null"), ("other", "2")];
    same_configs("after a second rollback", &later, &stored(&storage).await);
    fails("rollback of an unknown key", ErrorKind::NotFound, roll_back(&storage, "never applied").await);
    clear::<Configs, B>(&storage).await;
}

async fn refuses<B: ConfigBatch>(storage: Storage<B>) {
    ok("set", storage.set_config("d", json!(0)).await);
    let mutations = [
        set("c", json!(1)),
        set("a", json!(0.0)),
        set("b", json!(1)),
        set("e", json!(1)),
        delete("d"),
        delete("f"),
    ];
    applied(&storage, "refused", &plan(mutations)).await;
    ok("a foreign change", storage.set_config("c", json!(2)).await);
    ok("a foreign change, of the sign only", storage.set_config("a", json!(-0.0)).await);
    ok("a foreign delete", storage.delete_config("b").await);
    ok("a foreign creation", storage.set_config("f", json!(1)).await);
    ok("a change that was changed back", storage.set_config("e", json!(2)).await);
    ok("a change that was changed back", storage.set_config("e", json!(1)).await);
    let changed = ["a", "b", "c", "f"].map(key).to_vec();
    match ok("rollback_plan", roll_back(&storage, "refused").await) {
        Rollback::Refused { changed: found } => same_keys("the changed keys", &changed, found),
        other => panic!("a rollback after foreign changes is {other:?}"),
    }
    let foreign = [("a", "-0.0"), ("c", "2"), ("e", "1"), ("f", "1")];
    same_configs("after a rollback that was refused", &foreign, &stored(&storage).await);
    let forced = storage.rollback_plan("refused", &RollbackOptions::default().with_force(true)).await;
    same("a forced rollback", Rollback::RolledBack, ok("rollback_plan", forced));
    same_configs("after a forced rollback", &[("d", "0")], &stored(&storage).await);
    clear::<Configs, B>(&storage).await;
}

async fn not_applied_again<B: ConfigBatch>(storage: Storage<B>) {
    let first = plan([set("a", json!(1))]);
    applied(&storage, "stays back", &first).await;
    same("rollback", Rollback::RolledBack, ok("rollback_plan", roll_back(&storage, "stays back").await));
    for plan in [first.clone(), plan([set("a", json!(2))])] {
        let result = apply(&storage, "stays back", &plan).await;
        fails("a plan after its rollback", ErrorKind::Conflict, result);
        same_configs("after it", &[], &stored(&storage).await);
    }
    applied(&storage, "stays back, again", &first).await;
    clear::<Configs, B>(&storage).await;
}

pub(super) async fn audit<B: ConfigBatch>(storage: &Storage<B>, filter: AuditFilter) -> Vec<AuditEntry> {
    let entries: Vec<Result<AuditEntry>> = storage.audit_plans(filter).collect().await;
    entries.into_iter().map(|entry| ok("audit_plans", entry)).collect()
}

async fn audits<B: ConfigBatch>(storage: Storage<B>) {
    let of_key = AuditFilter::default().with_key(key("audited"));
    let begun = SystemTime::now();
    let first = plan([set("secret-key", json!("secret-value")), delete("b")]);
    let other = plan([set("secret-key", json!(2))]);
    let guarded = plan([set("secret-key", json!(2)).expecting(Expect::Absent)]);
    let options = ApplyOptions::default().with_stage("canary").with_source("the kit");
    fails("rollback", ErrorKind::NotFound, roll_back(&storage, "audited").await);
    ok("apply_plan", storage.apply_plan("audited", &first, &options).await);
    ok("apply_plan", apply(&storage, "audited", &first).await);
    fails("another plan", ErrorKind::Conflict, storage.apply_plan("audited", &other, &options).await);
    fails("a guarded plan", ErrorKind::Conflict, apply(&storage, "audited too", &guarded).await);
    ok("a foreign change", storage.set_config("b", json!(1)).await);
    let by_me = RollbackOptions::default().with_source("me");
    let refused = ok("rollback_plan", storage.rollback_plan("audited", &by_me).await);
    same("rollback", Rollback::Refused { changed: vec![key("b")] }, refused);
    let forced = ok("rollback_plan", storage.rollback_plan("audited", &by_me.clone().with_force(true)).await);
    same("rollback", Rollback::RolledBack, forced);
    let again = ok("rollback_plan", roll_back(&storage, "audited").await);
    same("rollback", Rollback::AlreadyRolledBack, again);
    fails("applied again", ErrorKind::Conflict, apply(&storage, "audited", &first).await);

    use AuditStatus::{Committed, Failed, Replayed};
    use PlanAction::{Apply, ForcedRollback as Forced, Rollback as Back};
    let (hash, kit, stage) = (Some(first.payload_hash()), Some("the kit"), Some("canary"));
    let wanted = [
        (Apply, Failed, None, None, 2, hash, Some(PlanRefusal::RolledBack)),
        (Back, Replayed, stage, None, 2, hash, None),
        (Forced, Committed, stage, Some("me"), 2, hash, None),
        (Back, Failed, stage, Some("me"), 2, hash, Some(PlanRefusal::Changed)),
        (Apply, Failed, stage, kit, 1, Some(other.payload_hash()), Some(PlanRefusal::OtherPayload)),
        (Apply, Replayed, None, None, 2, hash, None),
        (Apply, Committed, stage, kit, 2, hash, None),
        (Back, Failed, None, None, 0, None, Some(PlanRefusal::NotFound)),
    ];
    let entries = audit(&storage, of_key).await;
    let found: Vec<_> = entries
        .iter()
        .map(|entry| {
            let (stage, source) = (entry.stage.as_deref(), entry.source.as_deref());
            (entry.action, entry.status, stage, source, entry.mutations, entry.payload_hash, entry.error)
        })
        .collect();
    same("the audit", &wanted[..], &found[..]);
    let refused = audit(&storage, AuditFilter::default().with_key(key("audited too"))).await;
    let reasons: Vec<_> = refused.iter().map(|entry| entry.error).collect();
    same("the audit of a plan that was refused", vec![Some(PlanRefusal::Unexpected)], reasons);

    // The clock may be that of another machine.
    let near = Duration::from_secs(60 * 60);
    for pair in entries.windows(2) {
        assert!(pair[0].finished >= pair[1].finished, "the audit is not newest first");
    }
    for entry in &entries {
        same("the backend", storage.label(), entry.backend);
        same("the key", "audited", entry.key.as_str());
        same("started", Some(entry.started), entry.finished.checked_sub(entry.duration));
        assert!(entry.finished > begun - near && entry.finished < begun + near, "the time is wrong");
        assert!(!format!("{entry:?}").contains("secret"), "the audit holds a key or a value");
    }
    clear::<Configs, B>(&storage).await;
}

/// The numbers of the plans of [`filters`] that are in the audit.
async fn numbers<B: ConfigBatch>(storage: &Storage<B>, filter: AuditFilter) -> String {
    let entries = audit(storage, filter).await;
    let numbers: Vec<&str> =
        entries.iter().map(|entry| entry.key.as_str().trim_start_matches("filter ")).collect();
    numbers.join(" ")
}

async fn filters<B: ConfigBatch>(storage: Storage<B>) {
    for n in 0..6 {
        let stage = if n % 2 == 0 { "even" } else { "odd" };
        let options = ApplyOptions::default().with_stage(format!("filter {stage}"));
        let result = storage.apply_plan(format!("filter {n}"), &plan([set("a", json!(n))]), &options).await;
        ok("apply_plan", result);
    }
    let even = AuditFilter::default().with_stage("filter even");
    same("a stage", "4 2 0", &*numbers(&storage, even.clone()).await);
    same("a stage and a limit", "4 2", &*numbers(&storage, even.clone().with_limit(2)).await);
    same("a limit", "5", &*numbers(&storage, AuditFilter::default().with_limit(1)).await);
    same("no entries", "", &*numbers(&storage, AuditFilter::default().with_limit(0)).await);
    let failed = even.clone().with_status(AuditStatus::Failed);
    same("a status", "", &*numbers(&storage, failed).await);
    let later = SystemTime::now() + Duration::from_secs(24 * 60 * 60);
    same("since a time in the future", "", &*numbers(&storage, even.clone().with_since(later)).await);
    let oldest = audit(&storage, even.clone()).await.last().expect("three").finished;
    same("since the first", "4 2 0", &*numbers(&storage, even.with_since(oldest)).await);
    clear::<Configs, B>(&storage).await;
}

fn is_busy<T>(result: &Result<T>) -> bool {
    result
        .as_ref()
        .is_err_and(|error| error.kind() == ErrorKind::Busy && error.outcome() == Outcome::NotApplied)
}

async fn concurrent_replays<B: ConfigBatch>(storage: Storage<B>) {
    let shared = plan([set("a", json!(1)), set("b", json!(2)), delete("c")]);
    let results = concurrently((0..TASKS).map(|_| {
        let (storage, shared) = (storage.clone(), shared.clone());
        async move { apply(&storage, "at once", &shared).await }
    }))
    .await;
    let (busy, others): (Vec<_>, Vec<_>) = results.into_iter().partition(is_busy);
    let others: Vec<Applied> = others.into_iter().map(|result| ok("apply_plan", result)).collect();
    same("the number of Applied", 1, others.iter().filter(|applied| **applied == Applied::Applied).count());
    assert!(!others.is_empty() && busy.len() < TASKS, "all were Busy");
    same_configs("after all", &[("a", "1"), ("b", "2")], &stored(&storage).await);
    let committed = AuditFilter::default().with_key(key("at once")).with_status(AuditStatus::Committed);
    same("committed in the audit", 1, audit(&storage, committed).await.len());
    clear::<Configs, B>(&storage).await;
}

async fn concurrent_plans<B: ConfigBatch>(storage: Storage<B>) {
    let shared = numbered("shared-", 5);
    let results = concurrently((0..TASKS).map(|n| {
        let storage = storage.clone();
        // Each plan in a different order: locks taken in these orders would deadlock.
        let mut mutations: Vec<_> = shared.iter().map(|key| Mutation::set(key, &value(json!(n)))).collect();
        mutations.rotate_left(n % shared.len());
        let own = plan(mutations);
        async move {
            loop {
                let result = apply(&storage, &format!("at once {n}"), &own).await;
                if !is_busy(&result) {
                    return result;
                }
            }
        }
    }))
    .await;
    for result in results {
        same("each", Applied::Applied, ok("apply_plan", result));
    }
    // The audit's order is that of application if rolling back in it always finds what the plan set.
    let entries = audit(&storage, AuditFilter::default().with_limit(TASKS)).await;
    same("entries", TASKS, entries.len());
    for entry in entries {
        let n = entry.key.as_str().trim_start_matches("at once ").to_owned();
        let found = stored(&storage).await;
        assert!(found.len() == 5 && found.values().all(|value| *value == n), "no order explains {found:?}");
        let back = ok("rollback_plan", roll_back(&storage, entry.key.as_str()).await);
        same("a rollback in the order of the audit", Rollback::RolledBack, back);
    }
    same("configs after all rollbacks", 0, stored(&storage).await.len());
}

/// A plan that sets 20 keys to the same number.
fn twenty(n: usize) -> Plan {
    plan(numbered("whole-", 20).iter().map(|key| Mutation::set(key, &value(json!(n)))).collect::<Vec<_>>())
}

/// The number that the last plan of [`twenty`] set. Waits while one is partial, and panics if it stays so.
async fn whole<B: ConfigBatch>(storage: &Storage<B>) -> Option<String> {
    let limit = WaitLimit::new();
    loop {
        let mut values: Vec<String> = stored(storage).await.into_values().collect();
        let count = values.len();
        values.dedup();
        if (count == 0 || count == 20) && values.len() <= 1 {
            return values.pop();
        }
        limit.pause(&format!("a plan is applied in part: {values:?}")).await;
    }
}

async fn dropped<B: ConfigBatch>(storage: Storage<B>) {
    for round in 1..24 {
        let (name, plan) = (format!("dropped {round}"), twenty(round as usize));
        let before = whole(&storage).await;
        let first = drop_after(round % 8, apply(&storage, &name, &plan)).await;
        settle().await;
        let between = whole(&storage).await;
        let again = ok("apply_plan after a dropped one", apply(&storage, &name, &plan).await);
        // A dropped call may be applied later, but only once.
        if first.is_some() || between != before {
            same("after a dropped call that had been applied", Applied::Replayed, again);
        }
        same("the values", Some(round.to_string()), whole(&storage).await);
        let committed = AuditFilter::default().with_key(key(&name)).with_status(AuditStatus::Committed);
        same("the number of times it was applied", 1, audit(&storage, committed).await.len());
    }
    clear::<Configs, B>(&storage).await;
}

async fn deadline<B: ConfigBatch>(storage: Storage<B>) {
    for (n, micros) in [0, 1, 20, 100, 500, 2_000, 10_000].into_iter().enumerate() {
        let hasty = storage.with_deadline(Duration::from_micros(micros));
        let (name, plan, before) = (format!("deadline {micros}"), twenty(100 + n), whole(&storage).await);
        let result = apply(&hasty, &name, &plan).await;
        if let Err(error) = &result {
            same("the error after the deadline", ErrorKind::Timeout, error.kind());
            if error.outcome() == Outcome::NotApplied {
                settle().await;
                same("the values after NotApplied", &before, &whole(&storage).await);
            }
        }
        let again = ok("apply_plan with a longer deadline", apply(&storage, &name, &plan).await);
        let wanted = match &result {
            Ok(_) => Some(Applied::Replayed),
            Err(error) if error.outcome() == Outcome::NotApplied => Some(Applied::Applied),
            Err(_) => None,
        };
        if let Some(wanted) = wanted {
            same("the plan again", wanted, again);
        }
        same("the values", Some((100 + n).to_string()), whole(&storage).await);
    }
    settle().await;
    clear::<Configs, B>(&storage).await;
}
