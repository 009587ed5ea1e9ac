//! What a compaction gives back, and how long calls wait beside it.
//!
//! `cargo bench --bench compaction` fills a store with 100,000 credentials of 600 bytes in a random order,
//! compacts it while one task writes and reads, and prints the size of the file against its JSON, and the
//! longest write and read with and without a compaction.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use gateway_storage::{Credential, File, FileOptions, Key, Storage};
use serde_json::json;
use tempfile::TempDir;

const RECORDS: usize = 100_000;
const BATCH: usize = 1000;

#[tokio::main]
async fn main() {
    let base = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let storage = Storage::<File>::open(FileOptions::new(base.path())).await.unwrap();
    let bytes = fill(&storage).await;
    let factor = || size(base.path()) as f64 / bytes as f64;
    let before = factor();

    let ends = AtomicBool::new(false);
    let quiet = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        ends.store(true, Ordering::SeqCst);
    };
    let (without, ()) = tokio::join!(longest(&storage, &ends), quiet);

    ends.store(false, Ordering::SeqCst);
    let compaction = async {
        let begun = Instant::now();
        storage.backend().compact().await.unwrap();
        ends.store(true, Ordering::SeqCst);
        begun.elapsed()
    };
    let (beside, took) = tokio::join!(longest(&storage, &ends), compaction);
    println!(
        "| file / JSON before | after | longest write without | beside | longest read without | beside | took |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|");
    println!(
        "| {before:.2} | {:.2} | {:.1?} | {:.1?} | {:.1?} | {:.1?} | {took:.1?} |",
        factor(),
        without.0,
        beside.0,
        without.1,
        beside.1,
    );
    storage.close().await.unwrap();
}

/// Returns the bytes of JSON.
async fn fill(storage: &Storage<File>) -> usize {
    let mut bytes = 0;
    let mut numbers: Vec<usize> = (0..RECORDS).collect();
    fastrand::Rng::with_seed(1).shuffle(&mut numbers);
    for numbers in numbers.chunks(BATCH) {
        let items = numbers.iter().map(|n| {
            let credential = Credential::try_from(json!({ "id": n, "token": "x".repeat(580) })).unwrap();
            bytes += credential.to_json().len();
            (Key::new(&format!("credential-{n}")).unwrap(), credential)
        });
        let items: Vec<_> = items.collect();
        storage.set_credentials(&items).await.unwrap().complete().unwrap();
    }
    bytes
}

fn size(path: &Path) -> u64 {
    fs::metadata(path.join("store.redb")).unwrap().len()
}

/// Writes and reads until it is told to end. Returns the longest write and the longest read.
async fn longest(storage: &Storage<File>, ends: &AtomicBool) -> (Duration, Duration) {
    let (mut write, mut read, mut n) = (Duration::ZERO, Duration::ZERO, 0);
    while !ends.load(Ordering::SeqCst) {
        let begun = Instant::now();
        storage.set_config("a", json!(n)).await.unwrap();
        write = write.max(begun.elapsed());
        let begun = Instant::now();
        storage.get_credential(format!("credential-{}", n * 7919 % RECORDS)).await.unwrap();
        read = read.max(begun.elapsed());
        n += 1;
    }
    (write, read)
}
