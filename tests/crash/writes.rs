//! 64 tasks that write credentials, counters, batches and config values to one `File` store, in each mode.

use std::{collections::BTreeMap, time::Duration};

use gateway_storage::{File, Increment, Key, OptionalExt, Result, Storage};
use serde_json::json;

use crate::{run_and_kill, runtime};

const TASKS: u64 = 64;
const BATCH: u64 = 10;

async fn open(url: &str) -> Result<Storage<File>> {
    Storage::open(url).await
}

fn report(word: &str, task: u64, step: u64) {
    crate::report(&format!("{word} {task} {step}"));
}

pub(crate) fn writer(url: &str, first_step: u64) {
    runtime().block_on(async {
        let storage = open(url).await.expect("the store opens at once after a crash");
        let tasks: Vec<_> =
            (0..TASKS).map(|task| tokio::spawn(write(storage.clone(), task, first_step))).collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
    });
}

async fn write(storage: Storage<File>, task: u64, first_step: u64) -> Result<()> {
    let batch: Vec<Key> =
        (0..BATCH).map(|n| Key::new(&format!("batch-{task}-{n}"))).collect::<Result<_>>()?;
    let (hot, own) = (Key::new("hot")?, Key::new(&format!("task-{task}"))?);
    for step in first_step.. {
        report("attempt", task, step);
        storage
            .set_credential(format!("single-{task}"), json!({ "step": step, "text": "x".repeat(300) }))
            .await?;
        report("single", task, step);

        let increments = [Increment::new(&hot, &own, 1), Increment::new(&own, &hot, 1)];
        storage.increment_many(&increments).await?.complete()?;
        report("count", task, step);

        let credential = gateway_storage::Credential::try_from(json!({ "step": step }))?;
        let items: Vec<_> = batch.iter().map(|id| (id.clone(), credential.clone())).collect();
        storage.set_credentials(&items).await?.complete()?;
        report("batch", task, step);

        let mortal = format!("mortal-{task}-{step}");
        storage.set_config(&mortal, json!(step)).await?;
        storage.delete_config(&mortal).await?;
        report("delete", task, step);
    }
    Ok(())
}

/// The last step that each task reported, by word and task.
#[derive(Default)]
struct LastSteps(BTreeMap<(String, u64), u64>);

impl LastSteps {
    fn read(&mut self, line: &str) -> Option<()> {
        let mut words = line.split(' ');
        let (word, task, step) = (words.next()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        self.0.insert((word.to_owned(), task), step);
        Some(())
    }

    fn of(&self, word: &str, task: u64) -> Option<u64> {
        self.0.get(&(word.to_owned(), task)).copied()
    }
}

pub(crate) fn exclusive() {
    kill_nine("exclusive", 80);
}

pub(crate) fn multi_writer() {
    kill_nine("multi-writer", 40);
}

/// Another process has the store open for reading, all the time.
pub(crate) fn single_writer() {
    kill_nine("single-writer", 40);
}

fn kill_nine(shared: &str, rounds: u64) {
    let folder = tempfile::TempDir::new().unwrap();
    let url = format!("file:{}?shared={shared}", folder.path().join("store").display());
    let (runtime, rounds) = (runtime(), crate::plans::rounds(rounds));
    let mut reader: Option<Storage<File>> = None;
    let mut last = LastSteps::default();
    let mut counted: BTreeMap<u64, i64> = BTreeMap::new();
    let mut steps = 0;
    for round in 0..rounds {
        // The steps of a round are higher than those of all earlier rounds.
        let first_step = round * 1_000_000;
        let lines = run_and_kill(
            &["--writer", &url, &first_step.to_string()],
            Duration::from_millis(1 + (round * 7) % 60),
        );
        let mut attempts: BTreeMap<u64, i64> = BTreeMap::new();
        let mut acknowledged: BTreeMap<u64, i64> = BTreeMap::new();
        for line in &lines {
            last.read(line).unwrap_or_else(|| panic!("the writer reported {line:?}"));
            let task = line.split(' ').nth(1).unwrap().parse().unwrap();
            match line.split(' ').next() {
                Some("attempt") => *attempts.entry(task).or_default() += 1,
                Some("count") => *acknowledged.entry(task).or_default() += 1,
                _ => {}
            }
        }
        steps += lines.len();
        runtime.block_on(async {
            // The reader is there before and while the next writer repairs what the killed one has left.
            if let Some(reader) = &reader {
                for task in 0..TASKS {
                    verify(reader, &last, task).await;
                }
            }
            let storage = open(&url).await.expect("the store opens at once after a crash");
            for task in 0..TASKS {
                let before = counted.get(&task).copied().unwrap_or(0);
                let low = before + acknowledged.get(&task).copied().unwrap_or(0);
                let high = before + attempts.get(&task).copied().unwrap_or(0);
                let now = verify(&storage, &last, task).await;
                assert!((low..=high).contains(&now), "round {round}, task {task}: {low} <= {now} <= {high}");
                counted.insert(task, now);
            }
            storage.close().await.unwrap();
            if shared == "single-writer" && reader.is_none() {
                reader = Some(open(&format!("{url}&read_only=true")).await.expect("a reader opens"));
            }
        });
    }
    println!("{rounds} kills, {steps} lines read, no acknowledged write was lost");
    assert!(steps as u64 > rounds * 50, "the writer was killed before it wrote");
}

/// Compares the records of one task with its reported steps, and returns its counter.
async fn verify(storage: &Storage<File>, last: &LastSteps, task: u64) -> i64 {
    let attempted = last.of("attempt", task);
    let step_of = async |id: String| {
        storage
            .get_credential(id)
            .await
            .optional()
            .unwrap()
            .map(|found| found.get("step").unwrap().as_u64().unwrap())
    };
    let single = step_of(format!("single-{task}")).await;
    assert!(single >= last.of("single", task) && single <= attempted, "single of task {task}");

    let whole = step_of(format!("batch-{task}-0")).await;
    assert!(whole >= last.of("batch", task) && whole <= attempted, "batch of task {task}");
    for n in 1..BATCH {
        assert_eq!(step_of(format!("batch-{task}-{n}")).await, whole, "the batch of task {task} is torn");
    }
    if let Some(step) = last.of("delete", task) {
        let mortal = storage.get_config(format!("mortal-{task}-{step}")).await.optional().unwrap();
        assert!(mortal.is_none(), "a value that task {task} deleted is stored again");
    }

    let count = async |key: String, field: String| {
        let record = storage.get_usage(key).await.optional().unwrap();
        record.and_then(|record| record.get(&field)).unwrap_or(0)
    };
    let hot = count("hot".into(), format!("task-{task}")).await;
    assert_eq!(
        hot,
        count(format!("task-{task}"), "hot".into()).await,
        "an increment_many of task {task} is torn"
    );
    hot
}
