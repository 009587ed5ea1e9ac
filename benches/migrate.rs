//! A copy between two servers: its speed compared with that of each side alone, and its memory.
//!
//! `cargo bench --bench migrate --features full -- 100000 1000000` copies these numbers of records from
//! Postgres to Redis (six tenths credentials, one tenth config values, three tenths counters). For each
//! number it prints one line with
//!
//! - reading alone, the source's export, and writing alone, the target's import of chunks in memory,
//! - `storage copy` as a process of its own: its speed, also as a share of the slower side's, and its peak
//!   memory (`VmHWM`, so on Linux only),
//! - the same for `storage verify` of the two stores.
//!
//! The servers are started without fsync.

use std::{
    fs,
    pin::pin,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use gateway_storage::{ConfigValue, Credential, Exportable, Key, Postgres, Record, Redis, Result, Storage};
use serde_json::json;
use testkit::servers;
use tokio::runtime::{Builder, Runtime};

fn main() {
    let counts: Vec<usize> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let counts = if counts.is_empty() { vec![10_000] } else { counts };
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    println!("records    read      write     copy      of slower  memory    verified  memory");
    for count in counts {
        let (source, raw, target) = (servers::postgres(), servers::redis(), servers::redis());
        let from: Storage<Postgres> = runtime.block_on(Storage::open(&*source)).unwrap();
        fill(&runtime, &from, count);
        let read = timed(|| runtime.block_on(drain(&from, count)));
        runtime.block_on(from.close()).unwrap();
        let to: Storage<Redis> = runtime.block_on(Storage::open(&*raw)).unwrap();
        let write = fill(&runtime, &to, count);
        runtime.block_on(to.close()).unwrap();
        let (copy, memory) = run(&["copy", &source, &target]);
        let (verify, more) = run(&["verify", &source, &target]);
        let slower = read.max(write);
        println!(
            "{count:<9}  {read:<8.2?}  {write:<8.2?}  {copy:<8.2?}  {:<9.2}  {memory:<8}  {verify:<8.2?}  {more}",
            slower.as_secs_f64() / copy.as_secs_f64(),
        );
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

/// `count` records, in the order of an export.
fn records(count: usize) -> impl Iterator<Item = Record> {
    let key = |text: String| Key::new(&text).unwrap();
    let credentials = (0..count * 6 / 10).map(move |n| {
        let token = format!("ya29.{n:0>120}");
        let fields = json!({
            "access_token": token, "refresh_token": format!("1//{n:0>60}"), "expiry": "2026-01-31T12:00:00Z",
            "project_id": format!("project-{n}"), "scopes": ["openid", "email"], "disabled": false,
        });
        let credential = Credential::try_from(fields).unwrap();
        Record::Credential { id: key(format!("user-{n:09}@example.com")), credential }
    });
    let configs = (0..count / 10).map(move |n| {
        let value =
            ConfigValue::new(json!({ "model": "gemini-2.5-pro", "weight": n, "enabled": true })).unwrap();
        Record::Config { key: key(format!("route-{n:09}")), value }
    });
    let usage = (0..count * 3 / 10).map(move |n| Record::Usage {
        key: key(format!("user-{:09}@example.com", n / 3)),
        field: key(["errors", "requests", "tokens"][n % 3].to_owned()),
        count: i64::try_from(n).unwrap(),
    });
    credentials.chain(configs).chain(usage)
}

/// Imports records, chunk after chunk, and returns the time that the imports took.
fn fill<B: Exportable>(runtime: &Runtime, storage: &Storage<B>, count: usize) -> Duration {
    let mut all = records(count);
    let mut took = Duration::ZERO;
    loop {
        let part: Vec<Result<Record>> = all.by_ref().take(50_000).map(Ok).collect();
        if part.is_empty() {
            return took;
        }
        took += timed(|| {
            let report = runtime.block_on(storage.import(stream::iter(part)));
            let _ = report.unwrap().complete().unwrap();
        });
    }
}

async fn drain(storage: &Storage<Postgres>, count: usize) {
    let mut export = pin!(storage.export());
    let mut found = 0;
    while let Some(record) = export.next().await {
        record.unwrap();
        found += 1;
    }
    assert_eq!(found, count);
}

/// Runs the command, and returns its time and its peak memory.
fn run(line: &[&str]) -> (Duration, String) {
    let begun = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_storage"));
    let state = tempfile::tempdir().unwrap();
    command.args(line).env("XDG_STATE_HOME", state.path()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = "unknown".to_owned();
    let ended = loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        if let Some(line) = text.lines().find_map(|line| line.strip_prefix("VmHWM:")) {
            most = line
                .split_whitespace()
                .next()
                .map_or(most, |kib| format!("{:.1} MiB", kib.parse::<f64>().unwrap_or_default() / 1024.0));
        }
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        sleep(Duration::from_millis(5));
    };
    assert!(ended.success());
    (begun.elapsed(), most)
}
