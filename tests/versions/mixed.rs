//! Replicas of the previous version and of this one use a store at the same time: see
//! `tests/fixtures/bd77b1c/mixed`.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use futures_util::TryStreamExt;
use gateway_storage::{
    ConfigBatch, ErrorKind, Exportable, File, MongoDb, Open, Postgres, Record, Redis, Storage, UsageStore,
    archive,
    plan::ApplyOptions,
    revision::{Condition::Absent, Conditional},
};
use serde_json::{Map, Value, json};
use testkit::servers::{self, output_of};

use crate::previous::{audit, exported, plan};

mod replica {
    use gateway_storage::{
        ConfigBatch, ConfigStore, CredentialStore, ErrorKind, Result, Storage, UsageStore,
        plan::{Applied, ApplyOptions, Plan, Rollback, RollbackOptions},
    };

    include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/bd77b1c/replica/replica.rs"));
}

const LASTS: Duration = Duration::from_secs(8);
const RACES: Duration = Duration::from_millis(50);

fn previous(program: &str) -> Command {
    Command::new(
        std::env::var_os(program).unwrap_or_else(|| panic!("{program} is a program of the previous version")),
    )
}

/// Starts a replica of the previous version, and waits until it has opened the store or has been refused.
fn start(url: &str, me: &str) -> (Child, String) {
    let mut command = previous("PREVIOUS_REPLICA");
    command.args([&LASTS.as_secs().to_string(), url, me]).stdout(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let mut line = String::new();
    let mut output = BufReader::with_capacity(1, process.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    process.stdout = Some(output.into_inner());
    (process, line.trim().to_owned())
}

fn end(process: Child) -> Value {
    serde_json::from_slice(&output_of(process).stdout).expect("the replica ends with what it did")
}

fn command(url: &str, arguments: &[&str]) -> String {
    let output = previous("PREVIOUS_STORAGE").args(arguments).env("STORAGE_URL", url).output().unwrap();
    let text = String::from_utf8_lossy(if output.status.success() { &output.stdout } else { &output.stderr });
    format!("{}: {}", output.status, text.lines().next_back().unwrap_or_default())
}

/// Raises a field of the credential that the previous version replaces blindly. Returns how often it did.
async fn raise<B: Conditional>(storage: &Storage<B>) -> u64 {
    let (begun, mut raised) = (std::time::Instant::now(), 0);
    while begun.elapsed() < LASTS {
        let change = |mut fields: Map<String, Value>| async move {
            let count = fields.get("raised").and_then(Value::as_u64).unwrap_or_default();
            fields.insert("raised".into(), json!(count + 1));
            Ok::<_, gateway_storage::Error>(fields)
        };
        match storage.update_credential("seen-first", change).await {
            Ok(_) => raised += 1,
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}"),
        }
    }
    raised
}

/// A replica of the previous version makes the store. While it runs, this version opens the store. Then
/// another replica and commands of the previous version are started.
async fn mixed<B>(name: &str, url: &str)
where
    B: Conditional + ConfigBatch + UsageStore + Exportable + Open,
{
    let (first, opened) = start(url, "first");
    assert_eq!(opened, "open");
    tokio::time::sleep(LASTS / 4).await;
    let storage =
        Storage::new(B::open(B::Options::try_from(url).unwrap()).await.expect("this version opens it"));
    let (second, opened) = start(url, "second");
    println!("{name}: after this version has opened it, the previous one: {opened}");
    let commands = {
        let url = url.to_owned();
        std::thread::spawn(move || {
            for arguments in [&["doctor"][..], &["stats"], &["usage", "list"], &["verify", &url, &url]] {
                println!("{arguments:?}: {}", command(&url, arguments));
            }
        })
    };
    let (new, raised) = tokio::join!(replica::work(&storage, "new", false, LASTS, RACES), raise(&storage));
    let mut all = vec![end(first), new.json()];
    if opened == "open" {
        all.push(end(second));
    }
    commands.join().unwrap();
    for done in &all {
        println!("{name}: {done}");
        assert_eq!((&done["lost"], &done["errors"]), (&json!(0), &json!({})));
    }
    println!("{name}: {raised} conditional writes beside blind ones");

    let sum = |field: &str| all.iter().map(|done| done[field].as_i64().unwrap()).sum::<i64>();
    let shared = storage.get_usage("shared").await.unwrap();
    assert_eq!(shared.get("n"), Some(sum("added")), "every increment counts once");
    assert_eq!(storage.get_config("count").await.unwrap(), json!(sum("raised")).try_into().unwrap());
    let mut won: Vec<u64> = all
        .iter()
        .flat_map(|done| done["won"].as_array().unwrap())
        .map(|race| race.as_u64().unwrap())
        .collect();
    let count = won.len();
    won.sort_unstable();
    won.dedup();
    assert_eq!(won.len(), count, "a plan is applied once");
    assert!(sum("raised") > 0 && sum("rolled_back") > 0 && raised > 0 && count > 0);
    let entries = audit(&storage).await.unwrap();
    println!("{name}: {} entries of the audit", entries.len());
    println!("{name}: doctor: {}", command(url, &["doctor"]));
    storage.close().await.unwrap();
}

/// This version makes and fills a store. Then the previous one reads it and rolls a plan back, or refuses it.
async fn back<B>(url: &str)
where
    B: Conditional + ConfigBatch + UsageStore + Exportable + Open,
{
    let open = async || Storage::new(B::open(B::Options::try_from(url).unwrap()).await.unwrap());
    let storage = open().await;
    let records = exported().await;
    storage
        .import(futures_util::stream::iter(records.iter().cloned().map(Ok)))
        .await
        .unwrap()
        .complete()
        .unwrap();
    storage.set_credential_if("new", json!({ "n": 1 }), Absent).await.unwrap();
    let change = plan(&json!([{ "set": "retries", "value": 8 }, { "delete": "text" }]));
    storage.apply_plan("new", &change, &ApplyOptions::default()).await.unwrap();
    let written: Vec<Record> = storage.export().try_collect().await.unwrap();
    storage.close().await.unwrap();

    let opened = command(url, &["doctor"]);
    println!("{opened}");
    if opened.contains("by a later version") || opened.contains("reads formats up to") {
        return;
    }
    let export = previous("PREVIOUS_STORAGE").args(["export", "-"]).env("STORAGE_URL", url).output().unwrap();
    let read: Vec<Record> = archive::read(&export.stdout[..]).try_collect().await.unwrap();
    assert_eq!(read, written);
    println!("{}", command(url, &["plan", "rollback", "new"]));
    println!("{}", command(url, &["credential", "delete", "new"]));
    let storage = open().await;
    let found: Vec<Record> = storage.export().try_collect().await.unwrap();
    assert_eq!(found, records);
    assert_eq!(audit(&storage).await.unwrap().len(), 2);
    storage.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_previous_version_opens_a_store_of_this_one() {
    let folder = tempfile::tempdir().unwrap();
    back::<File>(&format!("file:{}", folder.path().join("store").display())).await;
    back::<Redis>(&servers::redis()).await;
    back::<Postgres>(&servers::postgres()).await;
    back::<MongoDb>(&servers::mongodb()).await;
    back::<MongoDb>(&servers::mongodb_alone()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_on_redis() {
    mixed::<Redis>("Redis", &servers::redis()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_on_postgres() {
    mixed::<Postgres>("Postgres", &servers::postgres()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_on_a_mongodb_replica_set() {
    mixed::<MongoDb>("MongoDb, a replica set", &servers::mongodb()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_on_a_standalone_mongodb() {
    mixed::<MongoDb>("MongoDb, standalone", &servers::mongodb_alone()).await;
}
