//! Any sequence of operations, including restarts, gives the same answers on every backend as on `Memory`.
//!
//! `PROPTEST_CASES=1000 cargo test --features conformance --test contract model` tests more sequences.

use std::{env, path::PathBuf};

use futures_util::{StreamExt, TryStreamExt, stream};
use gateway_storage::{
    BatchFailure, BatchReport, ConfigBatch, ConfigValue, Credential, CredentialStore, Exportable, File,
    FileOptions, Increment, Key, Memory, Record, RecordKind, Result, Sharing, Storage, UsageRecord,
    UsageStore,
    conformance::{hostile_keys, hostile_values},
    list::ListOptions,
    plan::{ApplyOptions, AuditEntry, AuditFilter, Expect, Mutation, Plan, RollbackOptions},
};
use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    test_runner::{Config, FileFailurePersistence, TestCaseError, TestError, TestRng, TestRunner},
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use testkit::broken::{Broken, Fault};
#[cfg(any(feature = "mongodb", feature = "postgres", feature = "redis"))]
use testkit::servers;
use testkit::turns::Turns;

#[derive(Clone, Debug)]
enum Operation {
    GetCredential(Name),
    SetCredential(Name, Fields),
    DeleteCredential(Name),
    ListCredentials,
    GetCredentials(Vec<Name>),
    SetCredentials(Vec<(Name, Fields)>),
    DeleteCredentials(Vec<Name>),
    GetConfig(Name),
    SetConfig(Name, Value),
    DeleteConfig(Name),
    ListConfigs,
    GetConfigs(Vec<Name>),
    SetConfigs(Vec<(Name, Value)>),
    ApplyPlan(Name, Vec<Change>),
    RollbackPlan(Name, bool),
    AuditPlans,
    Increment(Step),
    IncrementMany(Vec<Step>),
    IncrementWithin(Step, i64),
    GetCounter(Name, Name),
    GetUsage(Name),
    GetUsages(Vec<Name>),
    ResetUsage(Name),
    ResetUsagePrefix(Name),
    ListUsage,
    Stream(RecordKind, Part),
    Import(Vec<Item>),
    Export,
    Counts,
    Restart,
}

/// A key as text, because a `Key` does not print itself in a counterexample.
type Name = String;
type Fields = Map<String, Value>;
type Step = (Name, Name, i64);
/// A prefix, the key after which a stream begins, and its limit.
type Part = (String, Option<Name>, Option<usize>);
/// A key, its new value (none deletes it), and what is expected of it.
type Change = (Name, Option<Value>, Option<Option<Value>>);

#[derive(Clone, Debug)]
enum Item {
    Credential(Name, Fields),
    Config(Name, Value),
    Usage(Name, Name, i64),
}

/// Mostly few names, so that operations use the same ones, among them names that a backend may confuse.
fn name() -> impl Strategy<Value = Name> {
    let few =
        ["a", "A", "a:b", "a.b", "a/b", "a.json", "../a", "*", " a", "\u{e9}", "e\u{301}"].map(Name::from);
    let hostile: Vec<Name> = hostile_keys(Key::MAX_BYTES).iter().map(|key| key.as_str().to_owned()).collect();
    prop_oneof![12 => select(few.to_vec()), 2 => select(hostile), 1 => "\\PC{1,20}"]
        .prop_filter("a key", |name| Key::new(name).is_ok())
}

/// Any JSON value, down to the bits of a float.
fn value() -> impl Strategy<Value = Value> {
    // Without large and deep values, which would exceed the limits inside another value.
    let shallow = |text: &str| text.len() < 1_000 && text.matches(['[', '{']).count() < 20;
    let hostile: Vec<Value> =
        hostile_values().into_iter().filter(|value| shallow(&value.to_string())).collect();
    let leaf = prop_oneof![
        select(hostile),
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<u64>()
            .prop_map(f64::from_bits)
            .prop_filter("finite", |float| float.is_finite())
            .prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            vec((text(), inner), 0..6).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), "[$.a_]{0,3}"]
}

fn fields() -> impl Strategy<Value = Fields> {
    vec((text(), value()), 0..5).prop_map(|fields| fields.into_iter().collect())
}

/// Small deltas, and large ones that soon overflow.
fn delta() -> impl Strategy<Value = i64> {
    prop_oneof![
        -3..4_i64,
        any::<i64>(),
        select(vec![i64::MAX, i64::MIN, i64::MAX / 2 + 1, i64::MIN / 2 - 1, 9_007_199_254_740_993]),
    ]
}

/// A prefix that some names have, a key of which records begin behind, and a small limit.
fn part() -> impl Strategy<Value = Part> {
    let prefix = prop_oneof![
        2 => Just(String::new()),
        4 => (name(), 1..4_usize).prop_map(|(name, length)| name.chars().take(length).collect()),
        1 => any::<String>(),
    ];
    (prefix, proptest::option::of(name()), proptest::option::of(0..6_usize))
}

fn kind() -> impl Strategy<Value = RecordKind> {
    select(vec![RecordKind::Credential, RecordKind::Config, RecordKind::Usage])
}

fn step() -> impl Strategy<Value = Step> {
    (name(), name(), delta())
}

/// A change with few keys and few values, so that some expectations hold.
fn change() -> impl Strategy<Value = Change> {
    let key = || select(["a", "A", "a:b"].map(Name::from).to_vec());
    let few =
        || select(vec![json!(0), json!(0.0), json!(-0.0), json!({ "$a.b": null, "": [1] }), json!("0")]);
    let becomes = prop_oneof![3 => few().prop_map(Some), 1 => value().prop_map(Some), 1 => Just(None)];
    let expects =
        prop_oneof![8 => Just(None), 1 => Just(Some(None)), 1 => few().prop_map(|value| Some(Some(value)))];
    (key(), becomes, expects)
}

fn plan_key() -> impl Strategy<Value = Name> {
    select(["a", "A", "}:plan:"].map(Name::from).to_vec())
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        (name(), fields()).prop_map(|(id, fields)| Item::Credential(id, fields)),
        (name(), value()).prop_map(|(key, value)| Item::Config(key, value)),
        step().prop_map(|(key, field, count)| Item::Usage(key, field, count)),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    prop_oneof![
        2 => name().prop_map(GetCredential),
        4 => (name(), fields()).prop_map(|(id, fields)| SetCredential(id, fields)),
        2 => name().prop_map(DeleteCredential),
        1 => Just(ListCredentials),
        1 => vec(name(), 0..8).prop_map(GetCredentials),
        2 => vec((name(), fields()), 0..8).prop_map(SetCredentials),
        2 => vec(name(), 0..8).prop_map(DeleteCredentials),
        2 => name().prop_map(GetConfig),
        4 => (name(), value()).prop_map(|(key, value)| SetConfig(key, value)),
        2 => name().prop_map(DeleteConfig),
        1 => Just(ListConfigs),
        1 => vec(name(), 0..8).prop_map(GetConfigs),
        2 => vec((name(), value()), 0..8).prop_map(SetConfigs),
        4 => (plan_key(), vec(change(), 1..5)).prop_map(|(key, changes)| ApplyPlan(key, changes)),
        2 => (plan_key(), any::<bool>()).prop_map(|(key, force)| RollbackPlan(key, force)),
        1 => Just(AuditPlans),
        4 => step().prop_map(Increment),
        3 => vec(step(), 0..8).prop_map(IncrementMany),
        4 => (step(), delta()).prop_map(|(step, limit)| IncrementWithin(step, limit)),
        1 => (name(), name()).prop_map(|(key, field)| GetCounter(key, field)),
        2 => name().prop_map(GetUsage),
        1 => vec(name(), 0..8).prop_map(GetUsages),
        2 => name().prop_map(ResetUsage),
        1 => name().prop_map(ResetUsagePrefix),
        1 => Just(ListUsage),
        4 => (kind(), part()).prop_map(|(kind, part)| Stream(kind, part)),
        2 => vec(item(), 0..8).prop_map(Import),
        1 => Just(Export),
        1 => Just(Counts),
        2 => Just(Restart),
    ]
}

/// The capabilities that a backend must have to be compared.
trait Comparable: CredentialStore + ConfigBatch + UsageStore + Exportable {}
impl<B: CredentialStore + ConfigBatch + UsageStore + Exportable> Comparable for B {}

/// The answer as JSON. Its text is compared, in which 0.0 differs from -0.0, and 1 from 1.0.
async fn answer<B: Comparable>(on: &Storage<B>, operation: &Operation) -> Result<Value> {
    use Operation::*;
    Ok(match operation {
        GetCredential(id) => of_credential(&on.get_credential(id).await?),
        SetCredential(id, fields) => json!(on.set_credential(id, Value::Object(fields.clone())).await?),
        DeleteCredential(id) => json!(on.delete_credential(id).await?),
        ListCredentials => json!(on.list_credentials().await?),
        GetCredentials(ids) => {
            let found = on.get_credentials(&keys(ids)).await?;
            let credentials: Vec<_> =
                found.values.iter().map(|(id, found)| json!([id, of_credential(found)])).collect();
            json!([credentials, of_failures(&found.failures)])
        }
        SetCredentials(items) => {
            let items: Vec<_> = items.iter().map(|(id, fields)| (key(id), credential(fields))).collect();
            of_report(&on.set_credentials(&items).await?)
        }
        DeleteCredentials(ids) => of_report(&on.delete_credentials(&keys(ids)).await?),
        GetConfig(key) => on.get_config(key).await?.value().clone(),
        SetConfig(key, value) => json!(on.set_config(key, value.clone()).await?),
        DeleteConfig(key) => json!(on.delete_config(key).await?),
        ListConfigs => {
            on.list_configs().await?.iter().map(|(key, value)| json!([key, value.value()])).collect()
        }
        GetConfigs(names) => {
            let found = on.get_configs(&keys(names)).await?;
            let values: Vec<_> =
                found.values.iter().map(|(key, value)| json!([key, value.value()])).collect();
            json!([values, of_failures(&found.failures)])
        }
        SetConfigs(items) => of_report(&on.set_configs(items).await?),
        ApplyPlan(key, changes) => {
            let plan = Plan::new(changes.iter().map(mutation).collect::<Vec<_>>())?;
            json!(format!(
                "{:?}",
                on.apply_plan(key, &plan, &ApplyOptions::default().with_stage("model")).await?
            ))
        }
        RollbackPlan(key, force) => {
            let mut options = RollbackOptions::default();
            options.force = *force;
            json!(format!("{:?}", on.rollback_plan(key, &options).await?))
        }
        AuditPlans => {
            let entries: Vec<Result<AuditEntry>> = on.audit_plans(AuditFilter::default()).collect().await;
            entries.into_iter().map(|entry| entry.map(|entry| of_entry(&entry))).collect::<Result<_>>()?
        }
        Increment((key, field, delta)) => json!(on.increment_usage(key, field, *delta).await?),
        IncrementMany(steps) => {
            let steps: Vec<_> = steps.iter().map(increment).collect();
            let totals = on.increment_many(&steps).await?;
            json!([totals.totals, of_failures(&totals.failures)])
        }
        IncrementWithin((key, field, delta), limit) => {
            json!(on.increment_within(key, field, *delta, *limit).await?)
        }
        GetCounter(key, field) => json!(on.get_counter(key, field).await?),
        GetUsage(key) => of_usage(&on.get_usage(key).await?),
        GetUsages(names) => {
            let found = on.get_usages(&keys(names)).await?;
            let records: Vec<_> =
                found.values.iter().map(|(key, record)| json!([key, of_usage(record)])).collect();
            json!([records, of_failures(&found.failures)])
        }
        ResetUsage(key) => json!(on.reset_usage(key).await?),
        ResetUsagePrefix(prefix) => json!(on.reset_usage_prefix(prefix).await?),
        Stream(kind, (prefix, after, limit)) => {
            let mut options = ListOptions::default().with_prefix(prefix);
            (options.after, options.limit) = (after.as_ref().map(key), *limit);
            match kind {
                RecordKind::Credential => {
                    let records: Vec<_> = on.stream_credentials(options).try_collect().await?;
                    records.iter().map(|(id, found)| json!([id, of_credential(found)])).collect()
                }
                RecordKind::Config => {
                    let records: Vec<_> = on.stream_configs(options).try_collect().await?;
                    records.iter().map(|(key, value)| json!([key, value.value()])).collect()
                }
                _ => {
                    let records: Vec<_> = on.stream_usage(options).try_collect().await?;
                    records.iter().map(|(key, record)| json!([key, of_usage(record)])).collect()
                }
            }
        }
        ListUsage => {
            let list = on.list_usage().await?;
            let counters =
                list.iter().flat_map(|(key, record)| record.iter().map(move |counter| (key, counter)));
            counters.map(|(key, (field, count))| json!([key, field, count])).collect()
        }
        Import(items) => of_report(&on.import(stream::iter(items.iter().map(record).map(Ok))).await?),
        Export | Restart => {
            let records: Vec<Result<Record>> = on.export().collect().await;
            records
                .into_iter()
                .map(|record| record.map(|record| of_record(&record)))
                .collect::<Result<_>>()?
        }
        Counts => {
            let stats = on.stats().await?;
            json!([stats.credential_count, stats.config_count, stats.usage_record_count])
        }
    })
}

fn key(name: &Name) -> Key {
    Key::new(name).expect("names are valid keys")
}

fn keys(names: &[Name]) -> Vec<Key> {
    names.iter().map(key).collect()
}

fn credential(fields: &Fields) -> Credential {
    Credential::new(fields.clone()).expect("within the limits")
}

fn mutation((name, becomes, expects): &Change) -> Mutation {
    let value = |value: &Value| ConfigValue::new(value.clone()).expect("within the limits");
    let mutation = match becomes {
        Some(becomes) => Mutation::set(&key(name), &value(becomes)),
        None => Mutation::delete(&key(name)),
    };
    match expects {
        None => mutation,
        Some(None) => mutation.expecting(Expect::Absent),
        Some(Some(expected)) => mutation.expecting(Expect::Value(value(expected))),
    }
}

fn of_entry(entry: &AuditEntry) -> Value {
    let AuditEntry { key, action, status, stage, source, mutations, payload_hash, error, .. } = entry;
    json!([key, action, status, stage, source, mutations, payload_hash, error])
}

fn increment((record, field, delta): &Step) -> Increment {
    Increment::new(&key(record), &key(field), *delta)
}

fn record(item: &Item) -> Record {
    match item {
        Item::Credential(id, fields) => Record::Credential { id: key(id), credential: credential(fields) },
        Item::Config(name, value) => Record::Config {
            key: key(name),
            value: ConfigValue::new(value.clone()).expect("within the limits"),
        },
        Item::Usage(record, field, count) => {
            Record::Usage { key: key(record), field: key(field), count: *count }
        }
    }
}

fn of_usage(record: &UsageRecord) -> Value {
    record.iter().map(|(field, count)| json!([field, count])).collect()
}

fn of_credential(credential: &Credential) -> Value {
    Value::Object(credential.fields().clone())
}

fn of_report(report: &BatchReport) -> Value {
    json!([report.succeeded, of_failures(&report.failures)])
}

fn of_failures(failures: &[BatchFailure]) -> Value {
    failures
        .iter()
        .map(|failure| json!([failure.index, failure.key, failure.error.kind().as_str()]))
        .collect()
}

fn of_record(record: &Record) -> Value {
    match record {
        Record::Credential { id, credential } => json!(["credential", id, of_credential(credential)]),
        Record::Config { key, value } => json!(["config", key, value.value()]),
        Record::Usage { key, field, count } => json!(["usage", key, field, count]),
        other => json!(["unknown", other.key()]),
    }
}

fn text_of(answer: Result<Value>) -> String {
    answer.map_or_else(|error| format!("{} {:?}", error.kind(), error.outcome()), |value| value.to_string())
}

/// Runs the operations on a new store and on the model, and fails at the first difference. `open` opens the
/// same store again.
async fn check<B: Comparable, F: Future<Output = Storage<B>>>(
    open: impl Fn() -> F,
    operations: Vec<Operation>,
) -> Result<(), TestCaseError> {
    let model = Storage::<Memory>::open("memory:").await.expect("memory opens");
    let mut tested = open().await;
    for (at, operation) in operations.iter().chain(&[Operation::Restart]).enumerate() {
        if matches!(operation, Operation::Restart) {
            tested.close().await.expect("close");
            tested = open().await;
        }
        let (wanted, found) =
            (text_of(answer(&model, operation).await), text_of(answer(&tested, operation).await));
        prop_assert_eq!(wanted, found, "operation {} {:?}", at, operation);
    }
    tested.close().await.expect("close");
    Ok(())
}

/// Checks random sequences, each on a new store: `fresh` returns the function that opens it.
fn run<B: Comparable, O: Fn() -> F, F: Future<Output = Storage<B>>>(
    mut runner: TestRunner,
    fresh: impl Fn() -> O,
) -> Result<(), TestError<Vec<Operation>>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    runner.run(&vec(operation(), 1..40), |operations| runtime.block_on(check(fresh(), operations)))
}

fn config() -> Config {
    let mut config = Config { source_file: Some(file!()), ..Config::default() };
    config.failure_persistence = Some(Box::new(FileFailurePersistence::WithSource("regressions")));
    if env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 64;
    }
    config
}

#[test]
fn file_answers_as_memory_does() {
    file_as(Sharing::MultiWriter);
}

#[test]
fn an_exclusive_file_answers_as_memory_does() {
    file_as(Sharing::Exclusive);
}

#[test]
fn a_file_of_one_writer_answers_as_memory_does() {
    file_as(Sharing::SingleWriter);
}

fn file_as(shared: Sharing) {
    let fresh = || {
        let dir = memory_dir();
        move || open_file(dir.path().join("data"), shared)
    };
    run(TestRunner::new(config()), fresh).unwrap_or_else(|error| panic!("{error}"));
}

/// Each answer of one handle counts what another one has changed.
#[test]
fn two_handles_to_a_file_answer_as_memory_does() {
    let fresh = || {
        let dir = memory_dir();
        move || {
            let path = dir.path().join("data");
            async move {
                let one = open_file(path.clone(), Sharing::MultiWriter).await;
                let two = open_file(path, Sharing::MultiWriter).await;
                Storage::new(Turns::new(vec![one.backend().clone(), two.backend().clone()]))
            }
        }
    };
    run(TestRunner::new(config()), fresh).unwrap_or_else(|error| panic!("{error}"));
}

/// In a memory file system where there is one, because thousands of commits would wait for a disk.
fn memory_dir() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("a directory")
}

async fn open_file(path: PathBuf, shared: Sharing) -> Storage<File> {
    Storage::open(FileOptions::new(path).with_shared(shared)).await.expect("a file store opens")
}

#[cfg(feature = "redis")]
#[test]
fn redis_answers_as_memory_does() {
    let fresh = || {
        let url = servers::redis();
        move || open_redis(url.clone())
    };
    run(TestRunner::new(config()), fresh).unwrap_or_else(|error| panic!("{error}"));
}

#[cfg(feature = "redis")]
async fn open_redis(url: String) -> Storage<gateway_storage::Redis> {
    Storage::open(url.as_str()).await.expect("a Redis store opens")
}

#[cfg(feature = "mongodb")]
#[test]
fn mongodb_answers_as_memory_does() {
    let fresh = || {
        let url = servers::mongodb();
        move || open_mongodb(url.clone())
    };
    run(TestRunner::new(config()), fresh).unwrap_or_else(|error| panic!("{error}"));
}

#[cfg(feature = "mongodb")]
async fn open_mongodb(url: String) -> Storage<gateway_storage::MongoDb> {
    Storage::open(url.as_str()).await.expect("a MongoDB store opens")
}

#[cfg(feature = "postgres")]
#[test]
fn postgres_answers_as_memory_does() {
    let fresh = || {
        let url = servers::postgres();
        move || open_postgres(url.clone())
    };
    run(TestRunner::new(config()), fresh).unwrap_or_else(|error| panic!("{error}"));
}

#[cfg(feature = "postgres")]
async fn open_postgres(url: String) -> Storage<gateway_storage::Postgres> {
    Storage::open(url.as_str()).await.expect("a PostgreSQL store opens")
}

/// The comparison finds these faults, and no difference in a backend without one.
#[test]
fn faults_are_found() {
    use Fault::*;
    let find = |fault, cases| {
        let config = Config { cases, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
        // The same cases in every run, so that finding a fault does not depend on chance.
        let rng = TestRng::deterministic_rng(config.rng_algorithm);
        run(TestRunner::new_with_rng(config, rng), || {
            let broken =
                futures_util::FutureExt::now_or_never(Broken::unclosed(fault)).expect("nothing to wait for");
            move || std::future::ready(Storage::new(broken.clone()))
        })
    };
    assert!(find(Sound, 30).is_ok(), "a sound backend differs");
    for fault in [
        FoldsCase,
        RunsKeysTogether,
        ZeroLosesItsSign,
        Merges,
        MissingUsageIsEmpty,
        SwallowsBatchDelete,
        BatchStopsAtFailure,
        CountsInFloats,
        OverflowStopsMany,
        ManyReordered,
        PlanDeletesLast,
        PlanExpectsNothing,
        PlanReplaysAnother,
        RollbackForces,
        AuditOmitsFailures,
        ImportAddsUsage,
        ImportReplacesRecord,
        ExportSkipsLast,
    ] {
        assert!(find(fault, 1_000).is_err(), "{fault:?} is not found");
    }
}
