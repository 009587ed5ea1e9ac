//! Repeated kill -9 during writes to one repository.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use gateway_storage::{Credential, Git, GitOptions, Key, Storage, git::GitSync};
use serde_json::json;
use tempfile::TempDir;

use super::{bare, clone_of, config, git, is_clean};

/// The variable with the repository of the process to kill.
pub(crate) const WRITER: &str = "GATEWAY_STORAGE_GIT_WRITER";

const BATCH: u64 = 40;

/// Options with the remote beside the repository, if there is one: fetched and sent with every write and in
/// the background.
fn beside(path: &Path) -> GitOptions {
    let remote = path.with_file_name("remote.git");
    if !remote.exists() {
        return config(path);
    }
    let mut config = clone_of(&remote, path);
    (config.pull, config.interval) = (GitSync::Write, Duration::from_millis(20));
    config
}

/// Writes without end, and prints each acknowledged step.
pub(crate) fn write(path: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let storage =
            Storage::<Git>::open(beside(path)).await.expect("the store opens at once after a crash");
        let first = match storage.get_credential("single").await {
            Ok(found) => found.get("step").unwrap().as_u64().unwrap(),
            Err(_) => 0,
        };
        for step in first + 1.. {
            say(&format!("attempt {step}"));
            storage.set_credential("single", json!({ "step": step, "text": "x".repeat(300) })).await.unwrap();
            say(&format!("single {step}"));
            let fields = Credential::try_from(json!({ "step": step })).unwrap();
            let items: Vec<_> =
                (0..BATCH).map(|n| (Key::new(&format!("batch-{n}")).unwrap(), fields.clone())).collect();
            storage.set_credentials(&items).await.unwrap().complete().unwrap();
            say(&format!("batch {step}"));
            storage.set_config("mortal", json!(step)).await.unwrap();
            storage.delete_config("mortal").await.unwrap();
        }
    });
}

fn say(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

#[test]
fn kill_nine_loses_nothing_and_leaves_a_consistent_repository() {
    let base = TempDir::new().unwrap();
    kill_nine(&base.path().join("store"));
}

#[test]
fn kill_nine_with_a_remote_loses_nothing() {
    let base = TempDir::new().unwrap();
    let remote = base.path().join("remote.git");
    bare(&remote);
    kill_nine(&base.path().join("store"));
    git(&remote, &["fsck", "--strict", "--no-dangling"]);
    assert_eq!(git(&remote, &["rev-parse", "main"]), git(&base.path().join("store"), &["rev-parse", "main"]));
}

fn kill_nine(path: &Path) {
    let rounds: u64 = std::env::var("CRASH_ROUNDS").ok().map_or(25, |rounds| rounds.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mut single, mut batch, mut attempt) = (0, 0, 0);
    for round in 0..rounds {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["writes_until_it_is_killed", "--nocapture"])
            .env(WRITER, path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(writer.stderr.take().unwrap()).lines();
        let first = lines.next().expect("the writer begins").unwrap();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(1 + (round * 37) % 300));
            writer.kill().unwrap();
            writer.wait().unwrap()
        });
        for line in std::iter::once(first).chain(lines.map(Result::unwrap)) {
            let (word, step) = line.split_once(' ').unwrap_or_else(|| panic!("the writer said {line:?}"));
            let step: u64 = step.parse().unwrap_or_else(|_| panic!("the writer said {line:?}"));
            match word {
                "attempt" => attempt = step,
                "single" => single = step,
                _ => batch = step,
            }
        }
        assert!(killer.join().unwrap().code().is_none(), "the writer ended before it was killed");
        // A lock at the remote may belong to another clone, so a person must remove it.
        drop(std::fs::remove_file(path.with_file_name("remote.git/refs/heads/main.lock")));
        runtime.block_on(async {
            let storage =
                Storage::<Git>::open(beside(path)).await.expect("the store opens at once after a crash");
            let step = async |id: String| match storage.get_credential(id).await {
                Ok(found) => found.get("step").unwrap().as_u64().unwrap(),
                Err(_) => 0,
            };
            let found = step("single".into()).await;
            assert!((single..=attempt).contains(&found), "round {round}: {single} <= {found} <= {attempt}");
            let whole = step("batch-0".into()).await;
            assert!((batch..=attempt).contains(&whole), "round {round}: {batch} <= {whole} <= {attempt}");
            for n in 1..BATCH {
                assert_eq!(step(format!("batch-{n}")).await, whole, "round {round}: the batch is torn");
            }
            storage.close().await.unwrap();
        });
        is_clean(path);
    }
    assert!(attempt > rounds / 2, "the writer was killed before it wrote");
}
