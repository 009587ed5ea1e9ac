//! Whether reads of the disk on a thread of the runtime delay its other tasks.
//!
//! `cargo bench --bench cold` fills a store of a million records, takes its file from the system's cache, and
//! reads at random on a runtime of one thread, beside a task that wakes every 5 ms. It prints how late that
//! task was: when the reads run on the runtime's thread, as `File` does it, and when each is handed to a
//! thread for blocking work. `--keep FOLDER` keeps the store there and uses the one that it finds.

use std::{
    fs,
    hint::black_box,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future};
use gateway_storage::{Credential, File, FileOptions, Key, Sharing, Storage, Verify};
use rustix::fs::{Advice, fadvise};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    runtime::{Builder, Runtime},
    task::{spawn_blocking, yield_now},
    time::{Instant, sleep, sleep_until},
};

const RECORDS: u64 = 1_000_000;
const TICK: Duration = Duration::from_millis(5);
const RUN: Duration = Duration::from_secs(3);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let kept = arguments.iter().position(|word| word == "--keep").map(|at| PathBuf::from(&arguments[at + 1]));
    // In the build's directory: the directory for temporary files may be in memory.
    let program = std::env::current_exe().unwrap();
    let folder = TempDir::new_in(program.parent().unwrap()).unwrap();
    let path = kept.unwrap_or_else(|| folder.path().to_owned()).join("cold");
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    if !path.exists() {
        fill(&runtime, &path);
    }
    println!("\n| pages | gets | read on | gets/s | late: median | p99 | worst |");
    println!("|---|---|---|---:|---:|---:|---:|");
    println!("{}", line(&runtime, &path, ("-", "none", "-"), Load { tasks: 0, pause: TICK }, true, false));
    for (pages, is_cold) in [("not in memory", true), ("in the system's cache", false)] {
        for (gets, load) in [
            ("1 task, every 5 ms", Load { tasks: 1, pause: TICK }),
            ("16 tasks, each every 10 ms", Load { tasks: 16, pause: Duration::from_millis(10) }),
            ("64 tasks without pause", Load { tasks: 64, pause: Duration::ZERO }),
        ] {
            for (place, blocks) in [("the runtime's thread", true), ("a blocking thread", false)] {
                println!("{}", line(&runtime, &path, (pages, gets, place), load, blocks, is_cold));
            }
        }
    }
}

/// Tasks that read at random.
#[derive(Clone, Copy)]
struct Load {
    tasks: u64,
    /// Between a task's reads.
    pause: Duration,
}

/// Three runs: the median of their rates and of the task's lateness, and the worst of it.
fn line(
    runtime: &Runtime,
    path: &Path,
    (pages, gets, place): (&str, &str, &str),
    load: Load,
    blocks: bool,
    is_cold: bool,
) -> String {
    let (mut rates, mut late) = (Vec::new(), Vec::new());
    for run in 0..3 {
        let mut options = FileOptions::new(path);
        (options.shared, options.verify) = (Sharing::Exclusive, Verify::Unclean);
        let storage: Storage<File> = runtime.block_on(Storage::open(options)).unwrap();
        let file = fs::File::open(path.join("store.redb")).unwrap();
        if is_cold {
            fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        } else {
            std::io::copy(&mut &file, &mut std::io::sink()).unwrap();
        }
        let (rate, lateness) = runtime.block_on(measure(&storage, load, blocks, run));
        rates.push(rate);
        late.extend(lateness);
        runtime.block_on(storage.close()).unwrap();
    }
    rates.sort_by(f64::total_cmp);
    late.sort_unstable();
    let part = |part: f64| format!("{:.2?}", late[((late.len() - 1) as f64 * part) as usize]);
    format!(
        "| {pages} | {gets} | {place} | {:.0} | {} | {} | {} |",
        rates[1],
        part(0.5),
        part(0.99),
        part(1.0)
    )
}

async fn measure(storage: &Storage<File>, load: Load, blocks: bool, run: u64) -> (f64, Vec<Duration>) {
    let ended = Arc::new(AtomicBool::new(false));
    let readers = (0..load.tasks).map(|task| {
        let (storage, ended) = (storage.clone(), ended.clone());
        let mut random = fastrand::Rng::with_seed((run + 1) * 1000 + task);
        tokio::spawn(async move {
            let mut count = 0_u64;
            while !ended.load(Ordering::Relaxed) {
                let id = id(random.u64(..RECORDS));
                if blocks {
                    black_box(storage.get_credential(&id).await.unwrap());
                } else {
                    let storage = storage.clone();
                    let read = move || storage.get_credential(&id).now_or_never().expect("it never waits");
                    black_box(spawn_blocking(read).await.unwrap().unwrap());
                }
                count += 1;
                if load.pause.is_zero() {
                    yield_now().await;
                } else {
                    sleep(load.pause).await;
                }
            }
            count
        })
    });
    let readers: Vec<_> = readers.collect();
    let begun = Instant::now();
    let mut late = Vec::new();
    let mut next = begun;
    while begun.elapsed() < RUN {
        next += TICK;
        sleep_until(next).await;
        let now = Instant::now();
        late.push(now - next);
        // A task that was late is not late for the ticks that it missed.
        next = next.max(now);
    }
    let elapsed = begun.elapsed();
    ended.store(true, Ordering::Relaxed);
    let count: u64 = future::join_all(readers).await.into_iter().map(|count| count.unwrap()).sum();
    (count as f64 / elapsed.as_secs_f64(), late)
}

fn fill(runtime: &Runtime, path: &Path) {
    let mut options = FileOptions::new(path);
    options.shared = Sharing::Exclusive;
    let storage: Storage<File> = runtime.block_on(Storage::open(options)).unwrap();
    for first in (0..RECORDS).step_by(5000) {
        let items: Vec<_> = (first..first + 5000).map(|n| (id(n), credential(n))).collect();
        assert!(runtime.block_on(storage.set_credentials(&items)).unwrap().is_complete());
    }
    runtime.block_on(storage.close()).unwrap();
}

/// A credential of some 600 bytes of JSON.
fn credential(n: u64) -> Credential {
    let fields = json!({ "access_token": format!("{n:08}{}", "x".repeat(560)), "scope": "cloud" });
    Credential::try_from(fields).unwrap()
}

fn id(n: u64) -> Key {
    Key::new(&format!("user.name+{n:08}@example.com")).unwrap()
}
