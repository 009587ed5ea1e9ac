//! kill -9 of `storage copy` at random points: a resumed copy has the same result as an undisturbed one.
//!
//! `MIGRATE_KILLS=50 cargo test --all-features --test moving kill` kills 50 times per target instead of a
//! few times.

use std::{
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use gateway_storage::{Exportable, File, Open, Storage};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    records::{config, configs, digest, of, usage},
    servers::output_of,
};

/// The number of kills per target, unless `MIGRATE_KILLS` is set.
const KILLS: u32 = 6;

/// With this rate a copy takes a second, so that it can be killed.
const RECORDS: usize = 2000;
const RATE: &str = "2000";

struct Stores {
    dir: TempDir,
    source: String,
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

impl Stores {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = format!("file:{}", dir.path().join("source").display());
        runtime().block_on(async {
            let storage = Storage::<File>::open(&*source).await.unwrap();
            let mut records = configs(RECORDS / 2);
            records.extend((0..RECORDS / 2).map(|n| {
                usage(&format!("u{:03}", n / 7), &format!("f{}", n % 7), i64::try_from(n).unwrap())
            }));
            let _ = storage.import(of(records)).await.unwrap().complete().unwrap();
            storage.close().await.unwrap();
        });
        Self { dir, source }
    }

    fn command(&self, target: &str, resume: bool) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_storage"));
        command.args(["copy", &self.source, target, "--output", "json", "--rate", RATE, "--batch", "25"]);
        command.args(["--on-conflict", "overwrite", "--checkpoint"]).arg(self.dir.path().join("checkpoint"));
        if resume {
            command.arg("--resume");
        }
        command.env_remove("STORAGE_URL").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// A store that has a different value for one of the records, and a record that the source does not have.
async fn prepare<B: Open + Exportable>(url: &str) {
    let storage = Storage::new(B::open(B::Options::try_from(url).unwrap()).await.unwrap());
    let records = vec![config("k00500", serde_json::json!("old")), config("more", serde_json::json!(1))];
    let _ = storage.import(of(records)).await.unwrap().complete().unwrap();
    storage.close().await.unwrap();
}

async fn digest_of<B: Open + Exportable>(url: &str) -> String {
    let storage = Storage::new(B::open(B::Options::try_from(url).unwrap()).await.unwrap());
    let found = digest(&storage).await.to_string();
    storage.close().await.unwrap();
    found
}

/// Kills copies to new stores of one backend.
fn kills<B: Open + Exportable>(url: impl Fn(&Path, u32) -> String) {
    let (stores, runtime) = (Stores::new(), runtime());
    let kills = std::env::var("MIGRATE_KILLS").map_or(KILLS, |text| text.parse().unwrap());
    let undisturbed = url(stores.dir.path(), 0);
    runtime.block_on(prepare::<B>(&undisturbed));
    let ended = output_of(stores.command(&undisturbed, false).spawn().unwrap());
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let wanted = runtime.block_on(digest_of::<B>(&undisturbed));

    let (mut killed, mut resumed) = (0, 0);
    let mut random = fastrand::Rng::with_seed(7);
    for round in 1.. {
        let target = url(stores.dir.path(), round);
        runtime.block_on(prepare::<B>(&target));
        // Some copies are killed twice.
        let mut attempts = 0;
        let report: Value = loop {
            let mut child = stores.command(&target, attempts > 0).spawn().unwrap();
            if attempts < 1 + round % 2 {
                sleep(Duration::from_millis(random.u64(0..1000)));
                child.kill().unwrap();
            }
            attempts += 1;
            let ended = output_of(child);
            if ended.status.success() {
                break serde_json::from_slice(&ended.stdout).unwrap();
            }
            assert_eq!(ended.status.code(), None, "{}", String::from_utf8_lossy(&ended.stderr));
            killed += 1;
        };
        resumed += u32::from(report["resumed"] == true);
        assert_eq!(report["complete"], true);
        assert_eq!(runtime.block_on(digest_of::<B>(&target)), wanted, "round {round}");
        assert!(!stores.dir.path().join("checkpoint").exists());
        if killed >= kills {
            break;
        }
    }
    println!("{killed} kills, {resumed} copies resumed");
    assert!(resumed > 0, "no copy got far enough to leave a checkpoint");
}

/// A checkpoint of a copy to one database does not apply to another database of the same server.
#[cfg(feature = "redis")]
#[test]
fn another_database_is_another_target() {
    let (stores, url) = (Stores::new(), super::servers::redis());
    let database = |number: u32| format!("{url}&db={number}");
    let begin = |target: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_storage"));
        command.args(["copy", &stores.source, target, "--output", "json", "--batch", "25"]);
        command.args(["--on-conflict", "overwrite"]).args(more);
        command.env("XDG_STATE_HOME", stores.dir.path()).env_remove("STORAGE_URL").stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    for checkpoint in [&[][..], &["--checkpoint", stores.dir.path().join("named").to_str().unwrap()]] {
        let mut child = begin(&database(0), &[&["--rate", "500"], checkpoint].concat());
        sleep(Duration::from_millis(1000));
        child.kill().unwrap();
        output_of(child);
        let ended = output_of(begin(&database(1), &[&["--resume"], checkpoint].concat()));
        let stderr = String::from_utf8_lossy(&ended.stderr);
        if checkpoint.is_empty() {
            let report: Value = serde_json::from_slice(&ended.stdout).unwrap_or_else(|_| panic!("{stderr}"));
            assert_eq!((&report["resumed"], &report["total"]["written"]), (&false.into(), &RECORDS.into()));
        } else {
            assert!(ended.status.code() == Some(2) && stderr.contains("is from another copy"), "{stderr}");
        }
    }
}

#[test]
fn a_copy_to_file_that_is_killed_can_be_resumed() {
    kills::<File>(|dir, round| format!("file:{}", dir.join(format!("target{round}")).display()));
}

#[cfg(feature = "redis")]
#[test]
fn a_copy_to_redis_that_is_killed_can_be_resumed() {
    kills::<gateway_storage::Redis>(|_, _| super::servers::redis());
}

#[cfg(feature = "postgres")]
#[test]
fn a_copy_to_postgres_that_is_killed_can_be_resumed() {
    kills::<gateway_storage::Postgres>(|_, _| super::servers::postgres());
}

#[cfg(feature = "mongodb")]
#[test]
fn a_copy_to_mongodb_that_is_killed_can_be_resumed() {
    kills::<gateway_storage::MongoDb>(|_, _| super::servers::mongodb());
}
