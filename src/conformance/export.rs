//! The contract of [`Exportable`].

use futures_util::{StreamExt, pin_mut, stream};
use serde_json::json;

use super::{
    complete, configs::Configs, counted, credentials::Credentials, documents::clear, fails,
    hostile_credentials, hostile_keys, hostile_values, identical_records, key, must, numbered, ok, records,
    same, same_failures, sorted,
};
use crate::{
    Backend, ConfigStore, ConfigValue, Credential, CredentialStore, Error, ErrorKind, Exportable,
    IMPORT_CHUNK, Increment, Key, Outcome, Record, RecordKind, Result, Storage, UsageRecord, UsageStore,
};

/// Asserts the contract of [`Exportable`] for credentials and configs. Needs a storage without any records.
///
/// # Panics
///
/// At the first violated bullet.
pub async fn export<B: Exportable + CredentialStore + ConfigStore>(storage: &Storage<B>) {
    must("the kit needs a storage without records", is_empty(storage.clone())).await;
    must("export: every credential, then every config, each sorted by key", exports(storage.clone())).await;
    must("export_prefix: the records whose keys begin with it", exports_prefix(storage.clone())).await;
    must("import: an export is restored equal, and may be imported again", round_trip(storage.clone())).await;
    must("import: records under the same keys are replaced, others stay", replaces(storage.clone())).await;
    must("import: of several under one key the last one stays", last_stays(storage.clone())).await;
    must("import: of nothing, and of many", sizes(storage.clone())).await;
    must("import: its outcome when its stream ends with an error", fails_in_part(storage.clone())).await;
    must("imports: a kind for which it is false is not stored", unsupported_kinds(storage.clone())).await;
    must("export: writes may go on", writes_go_on(storage.clone())).await;
    must("the kit leaves nothing", is_empty(storage.clone())).await;
}

/// Asserts the contract of [`Exportable`] for counters. Needs a storage without any records.
///
/// # Panics
///
/// At the first violated bullet.
pub async fn export_usage<B: Exportable + CredentialStore + ConfigStore + UsageStore>(storage: &Storage<B>) {
    must("the kit needs a storage without records", is_empty(storage.clone())).await;
    must("export: every counter, last, sorted by key and field", exports_usage(storage.clone())).await;
    must("import: a counter is set to its count, others stay", sets_counters(storage.clone())).await;
    must("the kit leaves nothing", is_empty(storage.clone())).await;
}

/// Asserts that an export shows the store at the moment when the stream was made, for backends that promise
/// it. Needs a storage without any records.
///
/// # Panics
///
/// At the first violated bullet.
pub async fn export_snapshot<B: Exportable + CredentialStore + ConfigStore>(storage: &Storage<B>) {
    must("the kit needs a storage without records", is_empty(storage.clone())).await;
    assert!(storage.exports_snapshot(), "exports_snapshot: must be true");
    must("export: the store as it was when the stream was made", snapshot(storage.clone())).await;
    must("the kit leaves nothing", is_empty(storage.clone())).await;
}

async fn is_empty<B: Exportable>(storage: Storage<B>) {
    same("records", 0, records(&storage).await.len());
}

async fn wipe<B: CredentialStore + ConfigStore>(storage: &Storage<B>) {
    clear::<Credentials, B>(storage).await;
    clear::<Configs, B>(storage).await;
}

async fn import<B: Exportable>(storage: &Storage<B>, records: &[Record]) {
    let report = storage.import(stream::iter(records.iter().cloned().map(Ok))).await;
    complete("import", records.len(), report);
}

fn credential(id: &Key, credential: Credential) -> Record {
    Record::Credential { id: id.clone(), credential }
}

fn config(key: &Key, value: serde_json::Value) -> Record {
    Record::Config {
        key: key.clone(),
        value: ConfigValue::new(value).expect("the kit's own values are valid"),
    }
}

fn fields(value: serde_json::Value) -> Credential {
    Credential::try_from(value).expect("the kit's own credentials are valid")
}

fn usage(key: &Key, field: &Key, count: i64) -> Record {
    Record::Usage { key: key.clone(), field: field.clone(), count }
}

#[track_caller]
fn assert_same(what: &str, wanted: &[Record], found: &[Record]) {
    let names = |records: &[Record]| -> Vec<String> { records.iter().map(name).collect() };
    same(what, names(wanted), names(found));
    for (wanted, found) in wanted.iter().zip(found) {
        let equal = identical_records(std::slice::from_ref(wanted), std::slice::from_ref(found));
        assert!(equal, "{what}: {} is changed", name(wanted));
    }
}

fn name(record: &Record) -> String {
    match record {
        Record::Credential { id, .. } => format!("credential {:?}", id.as_str()),
        Record::Config { key, .. } => format!("config {:?}", key.as_str()),
        Record::Usage { key, field, .. } => format!("counter {:?} {:?}", key.as_str(), field.as_str()),
    }
}

/// A credential and a config under every hostile key, in the order of an export.
fn hostile_records<B: Backend>(storage: &Storage<B>) -> Vec<Record> {
    let keys = sorted(hostile_keys(storage.backend().max_key_bytes()));
    let credentials = hostile_credentials().into_iter().filter(|fields| fields.to_json().len() < 1_000);
    let values: Vec<_> =
        hostile_values().into_iter().filter(|value| value.to_string().len() < 1_000).collect();
    let credentials: Vec<_> = credentials.collect();
    let credentials =
        keys.iter().zip(credentials.into_iter().cycle()).map(|(id, fields)| credential(id, fields));
    let configs = keys.iter().zip(values.into_iter().cycle()).map(|(key, value)| config(key, value));
    credentials.chain(configs).collect()
}

async fn exports<B: Exportable + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let expected = hostile_records(&storage);
    for record in expected.iter().rev() {
        match record {
            Record::Credential { id, credential } => ok("set", storage.set_credential(id, credential).await),
            Record::Config { key, value } => ok("set", storage.set_config(key, value).await),
            Record::Usage { .. } => {}
        }
    }
    assert_same("export", &expected, &records(&storage).await);
    assert_same("export again", &expected, &records(&storage).await);
    wipe(&storage).await;
}

async fn exports_prefix<B: Exportable + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let all = hostile_records(&storage);
    import(&storage, &all).await;
    // A part of a key, a whole key, one that no key has, and those that a server could take for a pattern.
    let whole = all[0].key().as_str();
    for prefix in ["", "a", whole, "\u{10ffff}\u{10ffff}", "*", "%", "_", "\\", "^", "$", "."] {
        let expected: Vec<Record> =
            all.iter().filter(|record| record.key().as_str().starts_with(prefix)).cloned().collect();
        let items: Vec<Result<Record>> = storage.export_prefix(prefix).collect().await;
        let found: Vec<Record> = items.into_iter().map(|item| ok("export_prefix", item)).collect();
        assert_same(&format!("export_prefix of {prefix:?}"), &expected, &found);
    }
    wipe(&storage).await;
}

async fn round_trip<B: Exportable + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let mut expected = hostile_records(&storage);
    import(&storage, &expected).await;
    let exported = records(&storage).await;
    assert_same("export after import", &expected, &exported);
    import(&storage, &exported).await;
    assert_same("imported again", &expected, &records(&storage).await);
    // An import accepts any order.
    wipe(&storage).await;
    expected.reverse();
    import(&storage, &expected).await;
    assert_same("imported backwards", &exported, &records(&storage).await);
    wipe(&storage).await;
}

async fn replaces<B: Exportable + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let keys = ["changed", "stays"].map(key);
    for key in &keys {
        ok("set", storage.set_credential(key, json!({ "before": 1, "more": 2 })).await);
        ok("set", storage.set_config(key, json!({ "before": 1, "more": 2 })).await);
    }
    let after = json!({ "after": 1 });
    import(&storage, &[credential(&keys[0], fields(after.clone())), config(&keys[0], after.clone())]).await;
    for (key, wanted) in [(&keys[0], &after), (&keys[1], &json!({ "before": 1, "more": 2 }))] {
        same("credential", &fields(wanted.clone()), &ok("get", storage.get_credential(key).await));
        same("config", wanted, ok("get", storage.get_config(key).await).value());
    }
    wipe(&storage).await;
}

async fn last_stays<B: Exportable + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let key = key("twice");
    let of = |n: i64| [credential(&key, fields(json!({ (format!("n{n}")): n }))), config(&key, json!(n))];
    import(&storage, &[of(1), of(2), of(3)].concat()).await;
    assert_same("export", &of(3), &records(&storage).await);
    wipe(&storage).await;
}

async fn sizes<B: Exportable + CredentialStore + ConfigStore>(storage: Storage<B>) {
    import(&storage, &[]).await;
    is_empty(storage.clone()).await;
    let many: Vec<Record> =
        numbered("many ", 2 * IMPORT_CHUNK + 1).iter().map(|key| config(key, json!(key.as_str()))).collect();
    import(&storage, &many).await;
    assert_same("export", &many, &records(&storage).await);
    wipe(&storage).await;
}

async fn fails_in_part<B: Exportable + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let many = numbered("many ", IMPORT_CHUNK + 1).into_iter().map(|key| Ok(config(&key, json!(1))));
    let error = || stream::iter([Err(Error::new(ErrorKind::Unavailable, "the stream is lost"))]);
    fails("import of nothing but an error", ErrorKind::Unavailable, storage.import(error()).await);
    let report = storage.import(stream::iter(many).chain(error())).await;
    let found = report.map(|_| ()).map_err(|error| (error.kind(), error.outcome()));
    same("import", Err((ErrorKind::Unavailable, Outcome::Unknown)), found);
    same("the number of stored records", IMPORT_CHUNK + 1, records(&storage).await.len());
    wipe(&storage).await;
}

async fn unsupported_kinds<B: Exportable + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let key = key("kind");
    let one_of = |kind| match kind {
        RecordKind::Credential => credential(&key, fields(json!({}))),
        RecordKind::Config => config(&key, json!(1)),
        RecordKind::Usage => usage(&key, &key, 1),
    };
    for kind in RecordKind::ALL.into_iter().filter(|kind| !storage.imports(*kind)) {
        let report = ok("import", storage.import(stream::iter([Ok(one_of(kind))])).await);
        same_failures("import", ErrorKind::Unsupported, &[(0, &key)], &report.failures);
        is_empty(storage.clone()).await;
    }
}

async fn writes_go_on<B: Exportable + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let keys = numbered("key ", 50);
    for key in &keys {
        ok("set", storage.set_config(key, json!(0)).await);
    }
    let exported = storage.export();
    pin_mut!(exported);
    let mut seen = 0;
    while let Some(record) = exported.next().await {
        let record = ok("export while others write", record);
        seen += usize::from(record.key() >= &keys[0] && record.key() <= &keys[49]);
        ok("set while an export is under way", storage.set_config(record.key(), json!(1)).await);
    }
    same("the number of exported records that were stored all the time", keys.len(), seen);
    wipe(&storage).await;
}

async fn snapshot<B: Exportable + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let before = hostile_records(&storage);
    import(&storage, &before).await;
    let first = storage.export();
    // After the stream is made, and before it is polled.
    wipe(&storage).await;
    ok("set", storage.set_config("later", json!(1)).await);
    let found: Vec<Result<Record>> = first.collect().await;
    let found: Vec<Record> = found.into_iter().map(|record| ok("export", record)).collect();
    assert_same("export", &before, &found);
    assert_same("the next export", &[config(&key("later"), json!(1))], &records(&storage).await);
    wipe(&storage).await;
}

async fn reset<B: UsageStore>(storage: &Storage<B>) {
    for key in ok("list_usage", storage.list_usage().await).into_keys() {
        ok("reset_usage", storage.reset_usage(&key).await);
    }
}

async fn exports_usage<B: Exportable + CredentialStore + ConfigStore + UsageStore>(storage: Storage<B>) {
    let keys = sorted(hostile_keys(storage.backend().max_key_bytes()));
    let few: Vec<&Key> = keys.iter().step_by(10).collect();
    let counters: Vec<(&Key, &Key, i64)> = keys
        .iter()
        .flat_map(|key| few.iter().map(move |field| (key, *field)))
        .zip([i64::MIN, -1, 0, 1, 9_007_199_254_740_993, i64::MAX].into_iter().cycle())
        .map(|((key, field), count)| (key, field, count))
        .collect();
    let steps: Vec<Increment> =
        counters.iter().rev().map(|(key, field, count)| Increment::new(key, field, *count)).collect();
    counted("increment_many", steps.len(), storage.increment_many(&steps).await);
    ok("set", storage.set_config("\u{10ffff} sorts behind every counter's key", json!(1)).await);
    ok("set", storage.set_credential("\u{10ffff} sorts behind every config's key", json!({})).await);

    let mut expected = vec![
        credential(&key("\u{10ffff} sorts behind every config's key"), fields(json!({}))),
        config(&key("\u{10ffff} sorts behind every counter's key"), json!(1)),
    ];
    expected.extend(counters.iter().map(|(key, field, count)| usage(key, field, *count)));
    let exported = records(&storage).await;
    assert_same("export", &expected, &exported);

    for (key, _) in keys.iter().zip(0..10) {
        ok("increment", storage.increment_usage(key, few[0], 0).await);
    }
    import(&storage, &exported).await;
    assert_same("imported again", &expected, &records(&storage).await);
    reset(&storage).await;
    wipe(&storage).await;
    import(&storage, &exported).await;
    assert_same("imported into an empty storage", &expected, &records(&storage).await);
    reset(&storage).await;
    wipe(&storage).await;
}

async fn sets_counters<B: Exportable + CredentialStore + ConfigStore + UsageStore>(storage: Storage<B>) {
    let [a, b, x, y] = ["a", "b", "x", "y"].map(key);
    for (key, field) in [(&a, &x), (&a, &y), (&b, &x)] {
        ok("increment_usage", storage.increment_usage(key, field, 100).await);
    }
    let counts = [usage(&a, &x, 5), usage(&a, &x, i64::MIN), usage(&a, &x, 7)];
    for _ in 0..2 {
        import(&storage, &counts).await;
        let expected: UsageRecord = [(x.clone(), 7), (y.clone(), 100)].into_iter().collect();
        same("the record", expected, ok("get_usage", storage.get_usage(&a).await));
    }
    same("another record", Some(100), ok("get_usage", storage.get_usage(&b).await).get("x"));
    same("the total after import", 8, ok("increment_usage", storage.increment_usage(&a, &x, 1).await));
    reset(&storage).await;
}
