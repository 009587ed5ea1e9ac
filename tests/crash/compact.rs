//! kill -9 in the middle of a compaction, many times, on one store: beside writes of the process that
//! compacts, and in half of the rounds while another process has the store open.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use gateway_storage::{File, FileOptions, Key, OptionalExt, Result, Sharing, Storage};
use serde_json::json;

use crate::{report, run_and_kill, runtime};

const TASKS: u64 = 4;
const BATCH: u64 = 4;
const FILLERS: usize = 2000;

fn rounds() -> u64 {
    std::env::var("CRASH_ROUNDS").map_or(50, |rounds| rounds.parse().unwrap())
}

async fn open(path: &Path, shared: Sharing) -> Result<Storage<File>> {
    Storage::open(FileOptions::new(path).with_shared(shared)).await
}

fn sharing(word: &str) -> Sharing {
    if word == "shared" { Sharing::MultiWriter } else { Sharing::Exclusive }
}

/// The process that is killed.
pub(crate) fn compacter(path: &str, first_step: u64, shared: &str) {
    runtime().block_on(async {
        let storage =
            open(Path::new(path), sharing(shared)).await.expect("the store opens at once after a crash");
        report("open 0 0");
        for task in 0..TASKS {
            let storage = storage.clone();
            tokio::spawn(async move {
                write(storage, task, first_step).await.unwrap_or_else(|error| panic!("{error:?}"))
            });
        }
        for count in 0.. {
            report(&format!("compact 0 {count}"));
            storage.backend().compact().await.unwrap_or_else(|error| panic!("{error:?}"));
            report(&format!("compacted 0 {count}"));
        }
    });
}

async fn write(storage: Storage<File>, task: u64, first_step: u64) -> Result<()> {
    for step in first_step.. {
        report(&format!("attempt {task} {step}"));
        let credential = gateway_storage::Credential::try_from(json!({ "step": step }))?;
        let items: Vec<_> =
            (0..BATCH).map(|n| Ok((id(task, n)?, credential.clone()))).collect::<Result<_>>()?;
        storage.set_credentials(&items).await?.complete()?;
        report(&format!("done {task} {step}"));
        let mortal = format!("mortal-{task}-{step}");
        storage.set_config(&mortal, json!(step)).await?;
        storage.delete_config(&mortal).await?;
        report(&format!("deleted {task} {step}"));
    }
    Ok(())
}

fn id(task: u64, n: u64) -> Result<Key> {
    Key::new(&format!("batch-{task}-{n}"))
}

/// The process beside it: it reads what never changes, and reads back what it writes.
async fn beside(storage: Storage<File>, ends: Arc<AtomicBool>) -> i64 {
    let mut random = fastrand::Rng::new();
    let mut count = storage.get_usage("beside").await.optional().unwrap();
    let mut total = count.take().and_then(|record| record.get("n")).unwrap_or(0);
    while !ends.load(Ordering::SeqCst) {
        let filler = format!("filler-{}", random.usize(..FILLERS));
        storage.get_credential(&filler).await.unwrap_or_else(|error| panic!("{filler}: {error:?}"));
        total += 1;
        assert_eq!(storage.increment_usage("beside", "n", 1).await.unwrap(), total, "an increment is lost");
        storage.set_config("beside", json!(total)).await.unwrap();
        assert_eq!(storage.get_config("beside").await.unwrap().value(), &json!(total));
    }
    total
}

pub(crate) fn kill_nine_of_a_compaction_loses_nothing() {
    let seed = std::env::var("CRASH_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("CRASH_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("store");
    let runtime = runtime();
    runtime.block_on(async {
        let storage = open(&path, Sharing::Exclusive).await.unwrap();
        let fillers =
            (0..FILLERS).map(|n| (format!("filler-{n}"), json!({ "n": n, "text": "x".repeat(600) })));
        storage.set_credentials(fillers).await.unwrap().complete().unwrap();
        storage.close().await.unwrap();
    });
    let (mut interrupted, mut compacted) = (0, 0);
    let mut done = vec![None; TASKS as usize];
    for round in 0..rounds() {
        let first_step = round * 1_000_000;
        let is_shared = random.bool();
        let word = if is_shared { "shared" } else { "exclusive" };
        let ends = Arc::new(AtomicBool::new(false));
        let other = is_shared.then(|| {
            let storage = runtime.block_on(open(&path, Sharing::MultiWriter)).unwrap();
            (storage.clone(), runtime.spawn(beside(storage, ends.clone())))
        });
        let delay = Duration::from_micros(random.u64(..300_000));
        let arguments = ["--compacter", path.to_str().unwrap(), &first_step.to_string(), word];
        let lines = run_and_kill(&arguments, delay);
        ends.store(true, Ordering::SeqCst);
        runtime.block_on(async {
            let storage = match other {
                Some((storage, beside)) => {
                    let total = beside.await.unwrap();
                    assert_eq!(storage.increment_usage("beside", "n", 0).await.unwrap(), total);
                    storage
                }
                None => open(&path, sharing(word)).await.expect("the store opens at once after a crash"),
            };
            let last = |word: &str, task: u64| {
                let step = |line: &String| line.strip_prefix(&format!("{word} {task} "))?.parse::<u64>().ok();
                lines.iter().rev().find_map(step)
            };
            for task in 0..TASKS {
                let acknowledged = last("done", task).or(done[task as usize]);
                let attempted = last("attempt", task).or(acknowledged);
                let mut steps = Vec::new();
                for n in 0..BATCH {
                    let found = storage.get_credential(id(task, n).unwrap()).await.optional().unwrap();
                    steps.push(found.map(|found| found.get("step").unwrap().as_u64().unwrap()));
                }
                assert!(steps.iter().all(|step| *step == steps[0]), "a batch is torn: {steps:?}");
                assert!(steps[0] >= acknowledged && steps[0] <= attempted, "round {round}, task {task}");
                done[task as usize] = steps[0];
                if let Some(step) = last("deleted", task) {
                    let mortal =
                        storage.get_config(format!("mortal-{task}-{step}")).await.optional().unwrap();
                    assert!(mortal.is_none(), "round {round}: a deleted value is stored again");
                }
            }
            let report = storage.backend().check().await.unwrap();
            assert!(report.is_sound(), "{report:?}");
            assert_eq!(report.records["credentials"].count, FILLERS as u64 + count(&done) * BATCH);
            storage.close().await.unwrap();
        });
        let of = |word: &str| lines.iter().filter(|line| line.starts_with(&format!("{word} "))).count();
        interrupted += of("compact") - of("compacted");
        compacted += of("compacted");
    }
    println!("{} kills, {interrupted} within a compaction; {compacted} compactions ended", rounds());
    assert!(interrupted > 0 && compacted > 0);
    let storage = runtime.block_on(open(&path, Sharing::Exclusive)).unwrap();
    let left: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        left.iter().all(|name| name != "store.redb.new"),
        "the opening has removed what was left: {left:?}"
    );
    runtime.block_on(storage.close()).unwrap();
}

fn count(done: &[Option<u64>]) -> u64 {
    done.iter().flatten().count() as u64
}
