//! The JSON of each public type that has one: its names are part of the interface, and no secret is in it.

use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, TryStreamExt, stream};
use gateway_storage::{
    CacheEntry, ConfigValue, Credential, Error, ErrorKind, Increment, Key, Memory, Outcome, Record, Storage,
    UsageRecord,
    archive::{self, Header},
    lease::{Claim, Holder, LeaseState},
    migrate::{CopyEvent, CopyOptions, Tallies, VerifyOptions, copy, verify},
    plan::{
        Applied, ApplyOptions, AuditEntry, AuditFilter, AuditStatus, Expect, Mutation, Plan, PlanAction,
        PlanRefusal, Rollback,
    },
    refresh::Refreshed,
    revision::{Condition, Revision},
};
use serde::Serialize;
use serde_json::{Value, json};

const SECRET: &str = "ya29.secret";
const A: Key = Key::from_static("a");
const F: Key = Key::from_static("f");

fn credential() -> Credential {
    json!({ "access_token": SECRET }).try_into().unwrap()
}

fn value(value: Value) -> ConfigValue {
    value.try_into().unwrap()
}

#[track_caller]
fn same(of: impl Serialize, json: Value) {
    let of = json!(of);
    assert_eq!(of, json);
    assert!(!of.to_string().contains(SECRET), "{of}");
}

/// The JSON without a field whose value differs between runs, which must be at least zero.
fn without(of: impl Serialize, field: &str) -> Value {
    let mut of = json!(of);
    let taken = of.as_object_mut().unwrap().remove(field);
    assert!(taken.as_ref().and_then(Value::as_f64).is_some_and(|number| number >= 0.0), "{field}: {taken:?}");
    of
}

async fn memory() -> Storage<Memory> {
    Storage::open("memory:").await.unwrap()
}

#[test]
fn values_and_records() {
    same(value(json!({ "b": [1, 2.5, null] })), json!({ "b": [1, 2.5, null] }));
    same(UsageRecord::from_iter([(F, 7), (A, -1)]), json!({ "a": -1, "f": 7 }));
    same(Increment::new(&A, &F, 3), json!({ "key": "a", "field": "f", "delta": 3 }));
    same(credential().redacted(), json!({ "access_token": "<hidden>" }));
    same(Refreshed::Mine(credential()), json!({ "mine": { "access_token": "<hidden>" } }));
    same(
        CacheEntry::new(SECRET, Some(Duration::from_millis(250))),
        json!({ "value_bytes": 11, "expires_in_ms": 250 }),
    );
    same(CacheEntry::new("", None), json!({ "value_bytes": 0, "expires_in_ms": null }));
    same(
        [
            Record::Credential { id: A, credential: credential() },
            Record::Config { key: A, value: value(json!(null)) },
            Record::Usage { key: A, field: F, count: 7 },
        ],
        json!([
            { "kind": "credential", "key": "a", "value": { "access_token": "<hidden>" } },
            { "kind": "config", "key": "a", "value": null },
            { "kind": "usage", "key": "a", "field": "f", "count": 7 },
        ]),
    );
    let revision = Revision::new([1; 20]);
    same(
        [Condition::Absent, Condition::Unchanged(revision)],
        json!(["absent", { "unchanged": "01".repeat(20) }]),
    );
}

/// A value that may be logged has the names of an export file.
#[tokio::test]
async fn a_record_without_a_secret_is_a_line_of_an_export() {
    let records = [
        Record::Config { key: A, value: value(json!({ "b": 1 })) },
        Record::Usage { key: A, field: F, count: 7 },
    ];
    let mut file = Vec::new();
    archive::write(&Header::new("test"), stream::iter(records.clone().map(Ok)), &mut file).await.unwrap();
    let lines: Vec<Value> =
        file.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    assert_eq!(lines[1..3], records.map(|record| json!(record)));
}

#[tokio::test]
async fn errors_and_batches() {
    let cause = std::io::Error::other("disk");
    let error =
        Error::new(ErrorKind::Unavailable, "the store can't be written").with_source(cause).with_key(&A);
    same(
        &error,
        json!({
            "kind": "unavailable",
            "message": "the store can't be written: disk",
            "outcome": "not_applied",
        }),
    );
    same(
        error.with_outcome(Outcome::Unknown).with_code("08006"),
        json!({
            "kind": "unavailable",
            "message": "the store can't be written: disk",
            "outcome": "unknown",
            "code": "08006",
        }),
    );
    same([Outcome::NotApplied, Outcome::Unknown], json!(["not_applied", "unknown"]));

    let storage = memory().await;
    storage.set_credential(A, credential()).await.unwrap();
    let missing = json!([{
        "index": 1,
        "key": "f",
        "error": {
            "kind": "not_found",
            "message": "no credential has this id",
            "outcome": "not_applied",
        },
    }]);
    same(
        storage.get_credentials([A, F]).await.unwrap(),
        json!({ "values": { "a": { "access_token": "<hidden>" } }, "failures": missing }),
    );
    same(storage.delete_credentials([A, F]).await.unwrap(), json!({ "succeeded": 1, "failures": missing }));
    same(
        storage.increment_many(&[(A, F, 2), (A, F, 3)]).await.unwrap(),
        json!({ "totals": [2, 5], "failures": [] }),
    );
    same(storage.increment_within(A, F, 1, 5).await.unwrap(), json!({ "refused": 5 }));
}

#[tokio::test(start_paused = true)]
async fn leases() {
    let storage = memory().await;
    let (holder, ttl) = ("web-1/7".parse::<Holder>().unwrap(), Duration::from_secs(9));
    let yours = storage.claim_lease("a", &holder, ttl).await.unwrap();
    let lease = json!({ "name": "a", "holder": "web-1/7", "number": 1, "left_ms": 9000 });
    same(&yours, json!({ "yours": lease }));
    same(storage.list_leases().await.unwrap(), json!([lease]));
    let theirs = storage.claim_lease("a", &Holder::random(), ttl).await.unwrap();
    same(theirs, json!({ "theirs": { "left_ms": 9000 } }));
    let Claim::Yours(held) = yours else { panic!("no other holder has it") };
    same(held, lease);
    let resting = LeaseState::new(A, None, 7, Duration::from_micros(2500));
    same(resting, json!({ "name": "a", "holder": null, "number": 7, "left_ms": 2 }));
}

#[tokio::test]
async fn plans() {
    let mutations = vec![
        Mutation::set(&A, &value(json!(null))).expecting(Expect::Value(value(json!(2.0)))),
        Mutation::set(&F, &value(json!([1]))).expecting(Expect::Absent),
        Mutation::delete(&F),
    ];
    let plan = Plan::new(mutations).unwrap();
    let json = json!([
        { "set": "a", "value": null, "expect": 2.0 },
        { "set": "f", "value": [1], "expect_absent": true },
        { "delete": "f" },
    ]);
    same(&plan, json.clone());
    assert_eq!(Plan::from_json(json.to_string()).unwrap(), plan, "it is read back");

    same([Applied::Applied, Applied::Replayed], json!(["applied", "replayed"]));
    same(
        [Rollback::RolledBack, Rollback::AlreadyRolledBack, Rollback::Refused { changed: vec![A] }],
        json!(["rolled_back", "already_rolled_back", { "refused": { "changed": ["a"] } }]),
    );

    let finished = SystemTime::UNIX_EPOCH + Duration::from_millis(1_769_860_800_250);
    let what = (PlanAction::Rollback, AuditStatus::Failed);
    let entry = AuditEntry::new("own", &A, what, finished, Duration::from_millis(1500))
        .with_stage("all")
        .with_error(PlanRefusal::NotFound);
    same(
        entry,
        json!({
            "backend": "own",
            "key": "a",
            "action": "rollback",
            "status": "failed",
            "stage": "all",
            "source": null,
            "started": "2026-01-31T11:59:58.750Z",
            "finished": "2026-01-31T12:00:00.250Z",
            "duration_seconds": 1.5,
            "mutations": 0,
            "payload_hash": null,
            "error": "not_found",
        }),
    );
    let storage = memory().await;
    let plan = Plan::new([Mutation::delete(&A)]).unwrap();
    storage.apply_plan("p", &plan, &ApplyOptions::default()).await.unwrap();
    let entries: Vec<_> =
        storage.audit_plans(AuditFilter::default().with_key(Key::from_static("p"))).collect().await;
    assert_eq!(json!(entries[0].as_ref().unwrap())["payload_hash"], json!(plan.payload_hash()));
}

#[tokio::test]
async fn copies_and_export_files() {
    let (from, to) = (memory().await, memory().await);
    for (storage, number) in [(&from, 1), (&to, 2)] {
        storage.set_config("a", json!(number)).await.unwrap();
    }
    let none = json!({ "read": 0, "written": 0, "unchanged": 0, "skipped": 0, "failed": 0, "bytes": 0 });
    let options = CopyOptions::default().with_dry_run(true);
    let report = copy(from.export(), &to, &options, |_| ()).await.unwrap();
    let message = report.failures[0].error.to_string();
    same(
        without(&report, "elapsed_seconds"),
        json!({
            "credentials": none,
            "configs": { "read": 1, "written": 0, "unchanged": 0, "skipped": 0, "failed": 1, "bytes": 0 },
            "usage": none,
            "failures": [{
                "kind": "config",
                "key": "a",
                "field": null,
                "error": { "kind": "conflict", "message": message, "outcome": "not_applied" },
            }],
            "stopped": null,
            "resumed": false,
            "dry_run": true,
        }),
    );
    same(
        [
            CopyEvent::Progress(Tallies::default()),
            CopyEvent::Retrying {
                error: Error::new(ErrorKind::Busy, "busy"),
                after: Duration::from_millis(20),
            },
        ],
        json!([
            { "progress": { "credentials": none, "configs": none, "usage": none } },
            {
                "retrying": {
                    "error": { "kind": "busy", "message": "busy", "outcome": "not_applied" },
                    "after_ms": 20,
                },
            },
        ]),
    );

    let report = verify(from.export(), to.export(), &VerifyOptions::default(), |_| ()).await.unwrap();
    let none = json!({ "same": 0, "different": 0, "missing": 0, "extra": 0 });
    same(
        without(&report, "elapsed_seconds"),
        json!({
            "credentials": none,
            "configs": { "same": 0, "different": 1, "missing": 0, "extra": 0 },
            "usage": none,
            "source_digest": report.source_digest.to_string(),
            "target_digest": report.target_digest.to_string(),
            "sampled_of": null,
            "differences": [{ "kind": "config", "key": "a", "field": null, "difference": "different" }],
        }),
    );

    let created = SystemTime::UNIX_EPOCH + Duration::from_secs(1_769_860_800);
    let header = Header::new("memory").with_created(created).with_snapshot(true);
    let records: Vec<Record> = from.export().try_collect().await.unwrap();
    let mut file = Vec::new();
    let contents =
        archive::write(&header, stream::iter(records.into_iter().map(Ok)), &mut file).await.unwrap();
    same(
        &contents,
        json!({
            "source": "memory",
            "created": "2026-01-31T12:00:00Z",
            "snapshot": true,
            "credentials": 0,
            "configs": 1,
            "usage": 0,
            "usage_records": 0,
            "digest": contents.digest.to_string(),
            "bytes": file.len(),
        }),
    );

    let document = format!(r#"{{"credentials":{{"a":{{"t":"{SECRET}"}}}},"configs":{{"":1}}}}"#);
    let document = archive::read_go(document.as_bytes()).unwrap();
    let remark = json!(document.remarks[0]);
    same(
        &document,
        json!({
            "backend": null,
            "exported_at": null,
            "records": [{ "kind": "credential", "key": "a", "value": { "t": "<hidden>" } }],
            "remarks": [remark],
        }),
    );
}
