//! The contract of [`Conditional`]: revisions and conditional writes.

use serde_json::{Value, json};

use super::{
    complete, concurrently, fails, fails_about, hostile_credentials, hostile_keys, hostile_values, identical,
    key, must, ok, plans, same,
};
use crate::{
    ConfigBatch, ConfigValue, Credential, ErrorKind, Exportable, Key, Outcome, Record, Result, Storage,
    Transactional,
    capability::Conditional,
    history::DocumentKind,
    model::{Condition, Revision},
    plan::{ApplyOptions, Mutation, Rollback, RollbackOptions},
};

const KINDS: [DocumentKind; 2] = [DocumentKind::Credential, DocumentKind::Config];

/// The number of concurrent writers of one record. Fewer than elsewhere, because each of them is in the way
/// of all others.
const WRITERS: u64 = 12;

/// Asserts the contract of [`Conditional`].
///
/// # Panics
///
/// At the first violated bullet.
pub async fn conditional<B: Conditional>(storage: &Storage<B>) {
    for kind in KINDS {
        let of = |bullet: &str| format!("{kind:?}: {bullet}");
        must(of("what is missing has no revision"), missing(storage.clone(), kind)).await;
        must(of("set_if Absent creates a record once"), creates(storage.clone(), kind)).await;
        must(
            of("set_if Unchanged replaces what was read, and nothing else"),
            replaces(storage.clone(), kind),
        )
        .await;
        must(of("set_if is applied once, even if the record is then equal"), repeats(storage.clone(), kind))
            .await;
        must(of("every write changes the revision"), notices(storage.clone(), kind)).await;
        must(of("delete_if deletes what was read, and nothing else"), deletes(storage.clone(), kind)).await;
        must(of("any value under any key"), any_value(storage.clone(), kind)).await;
        must(of("of concurrent updates none is lost"), concurrent(storage.clone(), kind)).await;
    }
    must("records of the two kinds are different records", kinds(storage.clone())).await;
    must("a counter has no revision", counter(storage.clone())).await;
}

/// Asserts that plans and their rollbacks change revisions.
///
/// # Panics
///
/// If one does not.
pub async fn conditional_plans<B: Conditional + ConfigBatch>(storage: &Storage<B>) {
    must("a plan and its rollback change the revision", by_plan(storage.clone())).await;
}

/// Asserts that transactions change revisions.
///
/// # Panics
///
/// If one does not.
pub async fn conditional_transactions<B: Conditional + Transactional>(storage: &Storage<B>) {
    must("a transaction changes the revision", by_transaction(storage.clone())).await;
}

/// Asserts that imports change revisions.
///
/// # Panics
///
/// If one does not.
pub async fn conditional_import<B: Conditional + Exportable>(storage: &Storage<B>) {
    for kind in KINDS {
        must("an import changes the revision", by_import(storage.clone(), kind)).await;
    }
}

fn record(kind: DocumentKind, key: &Key, value: Value) -> Record {
    match kind {
        DocumentKind::Credential => {
            let credential = Credential::try_from(value).expect("the kit's own credentials are valid");
            Record::Credential { id: key.clone(), credential }
        }
        DocumentKind::Config => {
            let value = ConfigValue::new(value).expect("the kit's own values are valid");
            Record::Config { key: key.clone(), value }
        }
    }
}

fn value(record: &Record) -> Value {
    match record {
        Record::Credential { credential, .. } => Value::Object(credential.fields().clone()),
        Record::Config { value, .. } => value.value().clone(),
        Record::Usage { .. } => panic!("a counter has a revision"),
    }
}

async fn set_if<B: Conditional>(
    storage: &Storage<B>,
    record: &Record,
    condition: Condition,
) -> Result<Revision> {
    storage.backend().set_if(record, condition).await
}

async fn get<B: Conditional>(storage: &Storage<B>, kind: DocumentKind, key: &Key) -> (Value, Revision) {
    let (record, revision) = ok("get_with_revision", storage.backend().get_with_revision(kind, key).await);
    same("the key", key, record.key());
    (value(&record), revision)
}

async fn create<B: Conditional>(storage: &Storage<B>, record: &Record) -> Revision {
    ok("set_if Absent", set_if(storage, record, Condition::Absent).await)
}

async fn delete<B: Conditional>(storage: &Storage<B>, kind: DocumentKind, key: &Key) {
    match kind {
        DocumentKind::Credential => ok("delete", storage.delete_credential(key).await),
        DocumentKind::Config => ok("delete", storage.delete_config(key).await),
    }
}

#[track_caller]
fn conflicts<T>(what: &str, key: &Key, result: Result<T>) {
    if let Err(error) = &result {
        assert!(!error.is_retryable(), "{what}: the conflict is retryable, and would only occur again");
    }
    fails_about(what, ErrorKind::Conflict, key, result);
}

async fn missing<B: Conditional>(storage: Storage<B>, kind: DocumentKind) {
    let nowhere = key("nowhere");
    let found = storage.backend().get_with_revision(kind, &nowhere).await;
    fails_about("get_with_revision", ErrorKind::NotFound, &nowhere, found);
    let any = Revision::of(b"any");
    let set = set_if(&storage, &record(kind, &nowhere, json!({})), Condition::Unchanged(any)).await;
    conflicts("set_if Unchanged", &nowhere, set);
    let deleted = storage.backend().delete_if(kind, &nowhere, any).await;
    fails_about("delete_if", ErrorKind::NotFound, &nowhere, deleted);
}

async fn creates<B: Conditional>(storage: Storage<B>, kind: DocumentKind) {
    let name = key("created");
    let first = create(&storage, &record(kind, &name, json!({ "first": 1 }))).await;
    same("what is stored", (json!({ "first": 1 }), first), get(&storage, kind, &name).await);
    let again = set_if(&storage, &record(kind, &name, json!({ "second": 2 })), Condition::Absent).await;
    conflicts("set_if Absent of a record that exists", &name, again);
    same("what is stored", (json!({ "first": 1 }), first), get(&storage, kind, &name).await);
    delete(&storage, kind, &name).await;
    create(&storage, &record(kind, &name, json!({ "third": 3 }))).await;
    delete(&storage, kind, &name).await;
}

async fn replaces<B: Conditional>(storage: Storage<B>, kind: DocumentKind) {
    let name = key("replaced");
    let first = create(&storage, &record(kind, &name, json!({ "n": 1 }))).await;
    let set = |n: u32, of| {
        let (storage, record) = (storage.clone(), record(kind, &name, json!({ "n": n })));
        async move { set_if(&storage, &record, Condition::Unchanged(of)).await }
    };
    let second = ok("set_if Unchanged", set(2, first).await);
    assert!(second != first, "the revision is the same after another value is stored");
    same("what is stored", (json!({ "n": 2 }), second), get(&storage, kind, &name).await);
    conflicts("set_if with an old revision", &name, set(3, first).await);
    conflicts("set_if with a wrong revision", &name, set(3, Revision::of(b"wrong")).await);
    same("what is stored", (json!({ "n": 2 }), second), get(&storage, kind, &name).await);
    delete(&storage, kind, &name).await;
    conflicts("set_if of a record that was deleted", &name, set(3, second).await);
    let found = storage.backend().get_with_revision(kind, &name).await;
    fails_about("get after the conflict", ErrorKind::NotFound, &name, found);
}

async fn repeats<B: Conditional>(storage: Storage<B>, kind: DocumentKind) {
    let name = key("repeated");
    let [one, two] = [1, 2].map(|n| record(kind, &name, json!({ "n": n })));
    let first = create(&storage, &one).await;
    conflicts("set_if Absent again", &name, set_if(&storage, &one, Condition::Absent).await);
    let second = ok("set_if Unchanged", set_if(&storage, &two, Condition::Unchanged(first)).await);
    let again = set_if(&storage, &two, Condition::Unchanged(first)).await;
    conflicts("set_if Unchanged again", &name, again);
    same("what is stored", (json!({ "n": 2 }), second), get(&storage, kind, &name).await);
    let same_again = set_if(&storage, &two, Condition::Unchanged(second)).await;
    same("the revision of the same value", second, ok("set_if of what is stored", same_again));
    delete(&storage, kind, &name).await;
}

async fn notices<B: Conditional>(storage: Storage<B>, kind: DocumentKind) {
    let name = key("noticed");
    create(&storage, &record(kind, &name, json!({ "n": 0 }))).await;
    for (n, how) in ["set", "set of many", "delete and set"].into_iter().enumerate() {
        let (_, before) = get(&storage, kind, &name).await;
        let new = json!({ "n": n + 1 });
        if how == "delete and set" {
            delete(&storage, kind, &name).await;
        }
        match record(kind, &name, new.clone()) {
            Record::Credential { id, credential } if how == "set of many" => {
                complete(how, 1, storage.set_credentials(&[(id, credential)]).await);
            }
            Record::Credential { id, credential } => ok(how, storage.set_credential(id, credential).await),
            Record::Config { key, value } => ok(how, storage.set_config(key, value).await),
            Record::Usage { .. } => {}
        }
        let (found, after) = get(&storage, kind, &name).await;
        same(how, &new, &found);
        assert!(before != after, "{how}: the revision is the same");
        let stale = record(kind, &name, json!({ "stale": true }));
        conflicts(how, &name, set_if(&storage, &stale, Condition::Unchanged(before)).await);
        conflicts(how, &name, storage.backend().delete_if(kind, &name, before).await);
        let changed = record(kind, &name, json!({ "n": n + 1, "by": how }));
        ok(how, set_if(&storage, &changed, Condition::Unchanged(after)).await);
    }
    delete(&storage, kind, &name).await;
}

async fn deletes<B: Conditional>(storage: Storage<B>, kind: DocumentKind) {
    let name = key("deleted");
    let first = create(&storage, &record(kind, &name, json!({ "n": 1 }))).await;
    let second = set_if(&storage, &record(kind, &name, json!({ "n": 2 })), Condition::Unchanged(first)).await;
    let second = ok("set_if", second);
    conflicts("delete_if with an old revision", &name, storage.backend().delete_if(kind, &name, first).await);
    same("what is stored", (json!({ "n": 2 }), second), get(&storage, kind, &name).await);
    ok("delete_if", storage.backend().delete_if(kind, &name, second).await);
    let gone = storage.backend().get_with_revision(kind, &name).await;
    fails_about("get after delete_if", ErrorKind::NotFound, &name, gone);
    let again = storage.backend().delete_if(kind, &name, second).await;
    fails_about("delete_if again", ErrorKind::NotFound, &name, again);
}

async fn any_value<B: Conditional>(storage: Storage<B>, kind: DocumentKind) {
    let values = match kind {
        DocumentKind::Credential => {
            let fields = hostile_credentials().into_iter();
            fields.map(|credential| Value::Object(credential.fields().clone())).collect()
        }
        DocumentKind::Config => hostile_values(),
    };
    let keys = hostile_keys(storage.backend().max_key_bytes());
    for (name, wanted) in keys.iter().zip(values.iter().cycle()) {
        let created = create(&storage, &record(kind, name, wanted.clone())).await;
        let (found, revision) = get(&storage, kind, name).await;
        assert!(identical(wanted, &found), "a value became another one");
        same("the revision that set_if returned", revision, created);
    }
    for (name, wanted) in keys.iter().rev().zip(values.iter().cycle()) {
        let (_, before) = get(&storage, kind, name).await;
        let record = record(kind, name, wanted.clone());
        let after = ok("set_if", set_if(&storage, &record, Condition::Unchanged(before)).await);
        let (found, revision) = get(&storage, kind, name).await;
        assert!(identical(wanted, &found), "a value became another one");
        same("the revision that set_if returned", revision, after);
        ok("delete_if", storage.backend().delete_if(kind, name, after).await);
    }
}

async fn concurrent<B: Conditional>(storage: Storage<B>, kind: DocumentKind) {
    let name = key("counted");
    create(&storage, &record(kind, &name, json!({ "n": 0 }))).await;
    concurrently((0..WRITERS).map(|_| count_up(storage.clone(), kind, name.clone()))).await;
    same("the count", json!({ "n": 2 * WRITERS }), get(&storage, kind, &name).await.0);
    delete(&storage, kind, &name).await;
    let created = concurrently((0..WRITERS).map(|n| {
        let (storage, record) = (storage.clone(), record(kind, &name, json!({ "n": n })));
        async move { set_if(&storage, &record, Condition::Absent).await.is_ok() }
    }));
    same("the number of writers that create", 1, created.await.into_iter().filter(|made| *made).count());
    delete(&storage, kind, &name).await;
}

async fn count_up<B: Conditional>(storage: Storage<B>, kind: DocumentKind, name: Key) {
    let mut counted = 0;
    while counted < 2 {
        let (found, revision) = get(&storage, kind, &name).await;
        // Others read the same value meanwhile, and all of these writers store an equal one.
        tokio::task::yield_now().await;
        let next = json!({ "n": found["n"].as_u64().expect("a count") + 1 });
        match set_if(&storage, &record(kind, &name, next), Condition::Unchanged(revision)).await {
            Ok(_) => counted += 1,
            Err(error) => {
                same("the error", ErrorKind::Conflict, error.kind());
                same("its outcome", Outcome::NotApplied, error.outcome());
            }
        }
    }
}

async fn kinds<B: Conditional>(storage: Storage<B>) {
    let name = key("twice");
    for kind in KINDS {
        create(&storage, &record(kind, &name, json!({ "kind": format!("{kind:?}") }))).await;
    }
    for kind in KINDS {
        let (found, revision) = get(&storage, kind, &name).await;
        same("the record", json!({ "kind": format!("{kind:?}") }), found);
        ok("delete_if", storage.backend().delete_if(kind, &name, revision).await);
    }
}

async fn counter<B: Conditional>(storage: Storage<B>) {
    let counter = Record::Usage { key: key("a"), field: key("b"), count: 1 };
    fails("set_if", ErrorKind::InvalidValue, set_if(&storage, &counter, Condition::Absent).await);
}

async fn by_plan<B: Conditional + ConfigBatch>(storage: Storage<B>) {
    let name = key("planned");
    let first = create(&storage, &record(DocumentKind::Config, &name, json!(1))).await;
    let plan = plans::plan(vec![Mutation::set(&name, &plans::value(json!(2)))]);
    ok("apply_plan", storage.apply_plan("revisions", &plan, &ApplyOptions::default()).await);
    let (_, second) = get(&storage, DocumentKind::Config, &name).await;
    assert!(first != second, "a plan keeps the revision");
    let rolled_back = storage.rollback_plan("revisions", &RollbackOptions::default()).await;
    same("rollback_plan", Rollback::RolledBack, ok("rollback_plan", rolled_back));
    let (found, third) = get(&storage, DocumentKind::Config, &name).await;
    same("the value", json!(1), found);
    assert!(second != third, "a rollback keeps the revision");
    let next = record(DocumentKind::Config, &name, json!(4));
    conflicts("set_if", &name, set_if(&storage, &next, Condition::Unchanged(second)).await);
    ok("set_if", set_if(&storage, &next, Condition::Unchanged(third)).await);
    delete(&storage, DocumentKind::Config, &name).await;
}

async fn by_transaction<B: Conditional + Transactional>(storage: Storage<B>) {
    let name = key("transacted");
    let old = KINDS.map(|kind| record(kind, &name, json!({ "n": 1 })));
    let before = [create(&storage, &old[0]).await, create(&storage, &old[1]).await];
    let mut transaction = ok("begin", storage.begin().await);
    let new = KINDS.map(|kind| record(kind, &name, json!({ "n": 2 })));
    for record in &new {
        match record {
            Record::Credential { id, credential } => {
                ok("set", transaction.set_credential(id, credential).await);
            }
            Record::Config { key, value } => ok("set", transaction.set_config(key, value).await),
            Record::Usage { .. } => {}
        }
    }
    ok("commit", transaction.commit().await);
    for (kind, before) in KINDS.into_iter().zip(before) {
        let (_, after) = get(&storage, kind, &name).await;
        assert!(before != after, "a transaction keeps the revision");
        let next = record(kind, &name, json!({ "n": 3 }));
        conflicts("set_if", &name, set_if(&storage, &next, Condition::Unchanged(before)).await);
        ok("set_if", set_if(&storage, &next, Condition::Unchanged(after)).await);
        delete(&storage, kind, &name).await;
    }
}

async fn by_import<B: Conditional + Exportable>(storage: Storage<B>, kind: DocumentKind) {
    let name = key("imported");
    let before = create(&storage, &record(kind, &name, json!({ "n": 1 }))).await;
    complete("import", 1, storage.backend().import(&[record(kind, &name, json!({ "n": 2 }))]).await);
    let (_, after) = get(&storage, kind, &name).await;
    assert!(before != after, "an import keeps the revision");
    let next = record(kind, &name, json!({ "n": 3 }));
    conflicts("set_if", &name, set_if(&storage, &next, Condition::Unchanged(before)).await);
    ok("set_if", set_if(&storage, &next, Condition::Unchanged(after)).await);
    delete(&storage, kind, &name).await;
}
