//! Scopes beside one another in one store: each sees its own records only, under its own keys.

use std::{collections::BTreeMap, time::Duration};

use futures_util::TryStreamExt;
use gateway_storage::{
    Backend, ErrorKind, Exportable, Increment, Key, MAX_VALUE_BYTES, Memory, Outcome, Record, Storage,
    lease::{Claim, Holder, Leases},
    plan::{ApplyOptions, AuditFilter, MAX_PLAN_BYTES, Mutation, Plan, Rollback, RollbackOptions},
    revision::{Condition, Conditional},
    scope::{Scope, Scoped},
    wrap::Wrapped,
};
use serde_json::json;

type Tenant = Storage<Scoped<Memory>>;

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn names<'k>(keys: impl IntoIterator<Item = &'k Key>) -> Vec<&'k str> {
    keys.into_iter().map(Key::as_str).collect()
}

/// A store, and two scopes in it. All three have a record of each kind under the same key.
async fn shared() -> (Storage<Memory>, Tenant, Tenant) {
    let store = Storage::<Memory>::open("memory:").await.unwrap();
    let (acme, globex) = (store.scoped("acme").unwrap(), store.scoped("globex").unwrap());
    macro_rules! fill {
        ($($storage:ident $value:literal),*) => {$(
            $storage.set_credential("alice", json!({ "of": $value })).await.unwrap();
            $storage.set_config("retries", json!($value)).await.unwrap();
            $storage.increment_usage("alice", "requests", $value).await.unwrap();
            $storage.set_cache("models", [$value], Duration::from_secs(60)).await.unwrap();
        )*};
    }
    fill!(store 1, acme 2, globex 3);
    (store, acme, globex)
}

#[tokio::test]
async fn a_scope_sees_its_own_records_only() {
    let (store, acme, globex) = shared().await;
    for (scope, value) in [(&acme, 2), (&globex, 3)] {
        assert_eq!(scope.get_credential("alice").await.unwrap().get("of"), Some(&json!(value)));
        assert_eq!(names(&scope.list_credentials().await.unwrap()), ["alice"]);
        let configs = scope.list_configs().await.unwrap();
        assert_eq!((names(configs.keys()), configs["retries"].value()), (vec!["retries"], &json!(value)));
        let usage = scope.list_usage().await.unwrap();
        assert_eq!((names(usage.keys()), usage["alice"].get("requests")), (vec!["alice"], Some(value)));
        assert_eq!(scope.get_cache("models").await.unwrap(), [value as u8]);
        let records: Vec<Record> = scope.export().try_collect().await.unwrap();
        assert_eq!(names(records.iter().map(Record::key)), ["alice", "retries", "alice"]);
    }
    acme.delete_credential("alice").await.unwrap();
    assert_eq!(names(&store.list_credentials().await.unwrap()), ["alice", "globex/alice"]);

    // A scope in a scope.
    let nested = acme.scoped("eu").unwrap();
    nested.set_config("retries", json!(4)).await.unwrap();
    assert_eq!(store.get_config("acme/eu/retries").await.unwrap().value(), &json!(4));
    assert_eq!(names(nested.list_configs().await.unwrap().keys()), ["retries"]);
}

#[tokio::test]
async fn errors_and_reports_have_the_keys_of_the_scope() {
    let (_, acme, _) = shared().await;
    let missing = acme.get_credential("missing").await.unwrap_err();
    assert_eq!(missing.key().map(Key::as_str), Some("missing"));
    let longest = acme.backend().max_key_bytes();
    let (fits, too_long) = (key(&"x".repeat(longest)), key(&"x".repeat(longest + 1)));
    assert_eq!(acme.set_config(&too_long, json!(1)).await.unwrap_err().kind(), ErrorKind::InvalidKey);
    acme.set_config(&fits, json!(1)).await.unwrap();
    let nested = acme.scoped("eu").unwrap();
    assert_eq!((longest, nested.backend().max_key_bytes()), (250, 247));
    nested.set_config("x".repeat(247), json!(1)).await.unwrap();
    let error = nested.set_config("x".repeat(248), json!(1)).await.unwrap_err();
    assert_eq!(error.to_string(), "a key in this scope has at most 247 bytes, this one 248");
    assert_eq!(acme.scoped(&"x".repeat(249)).map(drop).unwrap_err().kind(), ErrorKind::InvalidKey);
    let shortest = acme.scoped(&"x".repeat(248)).unwrap();
    shortest.set_config("x", json!(1)).await.unwrap();
    // A scope around a backend of which it does not know the limit.
    let by_hand = Wrapped::new(Scope::new("eu").unwrap(), acme.backend().clone());
    assert_eq!(by_hand.max_key_bytes(), 247);

    let ids = [too_long.clone(), key("alice"), key("missing"), too_long.clone()];
    let found = acme.get_credentials(&ids).await.unwrap();
    assert_eq!(names(found.values.keys()), ["alice"]);
    let failures: Vec<_> =
        found.failures.iter().map(|failure| (failure.index, &failure.key, failure.error.kind())).collect();
    let invalid = ErrorKind::InvalidKey;
    assert_eq!(
        failures,
        [(0, &too_long, invalid), (2, &key("missing"), ErrorKind::NotFound), (3, &too_long, invalid)]
    );
    assert!(found.failures.iter().all(|failure| failure.error.key() == Some(&failure.key)));

    let increments =
        [Increment::new(&too_long, &key("n"), 1), Increment::new(&key("alice"), &key("requests"), 1)];
    let totals = acme.increment_many(&increments).await.unwrap();
    assert_eq!((totals.totals, totals.failures[0].index), (vec![None, Some(3)], 0));
    assert_eq!(acme.get_usage("alice").await.unwrap().get("requests"), Some(3));

    let one = json!({}).try_into().unwrap();
    let records = [
        Record::Credential { id: too_long.clone(), credential: one },
        Record::Config { key: key("imported"), value: json!(1).try_into().unwrap() },
    ];
    let report = acme.backend().import(&records).await.unwrap();
    assert_eq!((report.succeeded, report.failures[0].key.clone()), (1, too_long));
    assert_eq!(acme.get_config("imported").await.unwrap().value(), &json!(1));
}

#[tokio::test]
async fn plans_are_those_of_the_scope() {
    let (store, acme, globex) = shared().await;
    let plan = Plan::from_json(r#"[{ "set": "retries", "value": 9, "expect": 2 }]"#).unwrap();
    let options = ApplyOptions::default();
    acme.apply_plan("release", &plan, &options).await.unwrap();
    let refused = globex.apply_plan("release", &plan, &options).await.unwrap_err();
    assert_eq!((refused.kind(), refused.key().map(Key::as_str)), (ErrorKind::Conflict, Some("retries")));
    assert_eq!(store.get_config("retries").await.unwrap().value(), &json!(1));
    assert_eq!(store.get_config("acme/retries").await.unwrap().value(), &json!(9));

    let audit = async |of: &Tenant, filter| -> Vec<_> {
        of.audit_plans(filter).map_ok(|entry| (entry.key, entry.payload_hash)).try_collect().await.unwrap()
    };
    let entry = (key("release"), Some(plan.payload_hash()));
    let one = std::slice::from_ref(&entry);
    for scope in [&acme, &globex] {
        assert_eq!(audit(scope, AuditFilter::default()).await, one);
        assert_eq!(audit(scope, AuditFilter::default().with_key(key("release"))).await, one);
        assert_eq!(audit(scope, AuditFilter::default().with_key(key("other"))).await, []);
        assert_eq!(audit(scope, AuditFilter::default().with_key(key(&"x".repeat(255)))).await, []);
        assert_eq!(audit(scope, AuditFilter::default().with_limit(0)).await, []);
    }
    // The same plan has another hash in the store: what a handle without the scope applied is no replay.
    let other = store.scoped("acme2").unwrap();
    let free = Plan::from_json(r#"[{ "set": "free", "value": 1 }]"#).unwrap();
    store.apply_plan("acme2/release", &free, &options).await.unwrap();
    let taken = other.apply_plan("release", &free, &options).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Conflict);

    acme.set_config("retries", json!(10)).await.unwrap();
    let changed = acme.rollback_plan("release", &RollbackOptions::default()).await.unwrap();
    assert_eq!(changed, Rollback::Refused { changed: vec![key("retries")] });
}

#[tokio::test]
async fn a_plan_as_large_as_allowed_fits_into_a_scope() {
    let (_, acme, _) = shared().await;
    let value = json!("x".repeat(MAX_VALUE_BYTES - 2)).try_into().unwrap();
    let small = MAX_PLAN_BYTES - 7 * (MAX_VALUE_BYTES + 1);
    let last = json!("x".repeat(small - 3)).try_into().unwrap();
    let mut mutations: Vec<_> = (0..7).map(|n| Mutation::set(&key(&n.to_string()), &value)).collect();
    mutations.push(Mutation::set(&key("7"), &last));
    let plan = Plan::new(mutations.clone()).unwrap();
    assert!(Plan::new([mutations, vec![Mutation::delete(&key("8"))]].concat()).is_err(), "it is the largest");
    acme.apply_plan("large", &plan, &ApplyOptions::default()).await.unwrap();
}

#[tokio::test]
async fn an_export_of_a_scope_is_no_backup_of_the_store() {
    let (store, ..) = shared().await;
    let store = store.instrumented();
    let exported: Vec<Record> = store.scoped("acme").unwrap().export().try_collect().await.unwrap();
    assert_eq!((exported.len(), store.stats().await.unwrap().last_backup), (3, None));
    let under: Vec<Record> = store.export_prefix("acme/r").try_collect().await.unwrap();
    assert_eq!(names(under.iter().map(Record::key)), ["acme/retries"]);
    let all: Vec<Record> = store.export().try_collect().await.unwrap();
    assert_eq!((all.len(), store.stats().await.unwrap().last_backup.is_some()), (9, true));
}

#[tokio::test]
async fn leases_revisions_and_transactions_are_those_of_the_scope() {
    let (store, acme, globex) = shared().await;
    let (holder, minute) = (Holder::random(), Duration::from_secs(60));
    let (name, memory) = (key("job"), store.backend().clone());
    let Claim::Yours(lease) = acme.backend().claim_lease(&name, &holder, minute).await.unwrap() else {
        panic!("the lease is free");
    };
    assert_eq!(lease.name(), &name);
    assert!(matches!(
        globex.backend().claim_lease(&name, &Holder::random(), minute).await.unwrap(),
        Claim::Yours(_)
    ));
    let lease = acme.backend().renew_lease(&lease, minute).await.unwrap();
    assert_eq!(names(acme.list_leases().await.unwrap().iter().map(|lease| &lease.name)), ["job"]);
    acme.backend().release_lease(&lease, Duration::ZERO).await.unwrap();
    let held = memory.list_leases().await.unwrap();
    assert_eq!(names(held.iter().map(|lease| &lease.name)), ["globex/job"]);

    let kind = gateway_storage::history::DocumentKind::Config;
    let (record, revision) = acme.backend().get_with_revision(kind, &key("retries")).await.unwrap();
    assert_eq!(record.key().as_str(), "retries");
    acme.backend().set_if(&record, Condition::Unchanged(revision)).await.unwrap();
    let taken = acme.backend().set_if(&record, Condition::Absent).await.unwrap_err();
    assert_eq!(taken.key().map(Key::as_str), Some("retries"));

    let mut transaction = acme.begin().await.unwrap();
    transaction.set_config("retries", json!(5)).await.unwrap();
    assert_eq!(transaction.get_config("missing").await.unwrap_err().key().map(Key::as_str), Some("missing"));
    acme.set_config("retries", json!(6)).await.unwrap();
    let conflict = transaction.commit().await.unwrap_err();
    assert_eq!((conflict.kind(), conflict.outcome()), (ErrorKind::Conflict, Outcome::NotApplied));
    assert!(conflict.key().is_none_or(|key| key.as_str() == "retries"));
    let values: BTreeMap<_, _> = store.list_configs().await.unwrap();
    assert_eq!(values["acme/retries"].value(), &json!(6));
}
