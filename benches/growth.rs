//! How `File` grows: the time to open, memory, reads, writes, lists and exports by the number of records.
//!
//! `cargo bench --bench growth -- 1000 100000` measures stores of these sizes (1,000 to a million without
//! arguments) and prints a table for each question. Each measurement runs in a process of its own, so that
//! its memory is that of one store. `--keep FOLDER` keeps the stores there and uses those that it finds.

use std::{
    fs,
    hint::black_box,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future, stream};
use gateway_storage::{Credential, ErrorKind, File, FileOptions, Key, Record, Sharing, Storage, Verify};
use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

const SIZES: [u64; 4] = [1_000, 10_000, 100_000, 1_000_000];
const MODES: [Sharing; 3] = [Sharing::Exclusive, Sharing::SingleWriter, Sharing::MultiWriter];
const GETS: u64 = 10_000;
/// Times that a measurement is repeated; the tables have medians.
const REPEATS: usize = 5;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let Some(("--child", rest)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return child(rest);
    }
    let kept = arguments.iter().position(|word| word == "--keep").map(|at| PathBuf::from(&arguments[at + 1]));
    let mut sizes: Vec<u64> = arguments.iter().filter_map(|word| word.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = SIZES.to_vec();
    }
    // In the build's directory: the directory for temporary files may be in memory.
    let program = std::env::current_exe().unwrap();
    let folder = TempDir::new_in(program.parent().unwrap()).unwrap();
    let folder = kept.as_deref().unwrap_or(folder.path());
    let mut report = Report::default();
    for size in sizes {
        report.measure(folder, size);
    }
    report.wide_config(folder);
    report.print();
}

/// An OAuth credential of some 600 bytes of JSON.
fn credential(n: u64) -> Credential {
    let token = |prefix: &str, length| format!("{prefix}{n:08}{}", "x".repeat(length));
    let fields = json!({
        "access_token": token("ya29.", 205), "refresh_token": token("1//", 90), "client_id": token("", 50),
        "client_secret": token("GOCSPX-", 20), "expiry": "2026-12-31T23:59:59Z",
        "token_uri": "https://oauth2.googleapis.com/token", "scope": "cloud-platform",
    });
    Credential::try_from(fields).unwrap()
}

fn id(n: u64) -> Key {
    Key::new(&format!("user.name+{n:08}@example.com")).unwrap()
}

/// The lines of the tables.
#[derive(Default)]
struct Report {
    calls: Vec<String>,
    memory: Vec<String>,
    opening: Vec<String>,
    killed: Vec<String>,
    wide: Vec<String>,
}

impl Report {
    fn measure(&mut self, folder: &Path, size: u64) {
        let path = folder.join(size.to_string());
        if !path.exists() {
            let filled = run(&["fill", text(&path), &size.to_string()]);
            eprintln!("{size} records imported in {:.1?}", seconds(&filled[0]["seconds"]));
        }
        let (file, json) = (fs::metadata(path.join("store.redb")).unwrap().len(), json_bytes(size));
        let act = |action: &str, mode: Sharing| {
            run(&[action, text(&path), &size.to_string(), &option(mode), &option(Verify::Always)])
        };
        let [used, rates, sets] = ["use", "rates", "sets"].map(|action| act(action, Sharing::Exclusive));
        let shared = act("use", Sharing::MultiWriter);
        let of = |name: &str, lines: &[Value]| {
            lines.iter().find_map(|line| line.get(name)).and_then(Value::as_f64).unwrap()
        };
        let time = |name: &str, lines: &[Value]| format!("{:.2?}", Duration::from_secs_f64(of(name, lines)));
        let rate = |name: &str| format!("{:.0}k", size as f64 / of(name, &rates) / 1000.0);
        self.calls.push(format!(
            "| {size} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {:.2} |",
            time("get", &used),
            time("get", &shared),
            time("set", &sets),
            time("set64", &sets),
            time("list", &used),
            rate("export"),
            rate("walk"),
            rate("parsed"),
            format_args!("{:.2}x", of("walk", &rates) / of("export", &rates)),
            file as f64 / json as f64,
        ));
        let mib = |name: &str| format!("{:.1}", of(name, &used) / 1024.0);
        self.memory.push(format!(
            "| {size} | {} | {} | {} | {} | {} |",
            mib("opened"),
            mib("after gets"),
            mib("after export"),
            mib("after list"),
            mib("most"),
        ));
        let repeats = if size > 1_000_000 { 3 } else { REPEATS };
        let open = |mode: Sharing, verify: Verify| {
            let opened = run(&["open", text(&path), &size.to_string(), &option(mode), &option(verify)]);
            opened[0]["seconds"].as_f64().unwrap()
        };
        for (number, mode) in MODES.into_iter().enumerate() {
            let clean = [Verify::Always, Verify::Unclean]
                .map(|verify| shown((0..repeats).map(|_| open(mode, verify)).collect()));
            let after_kill = [Verify::Always, Verify::Unclean].map(|verify| {
                let mut times = Vec::new();
                for _ in 0..repeats {
                    kill_while_writing(&path, size, mode);
                    times.push(open(mode, verify));
                }
                shown(times)
            });
            let mode = ["exclusive", "single writer", "multi writer"][number];
            self.opening.push(format!("| {size} | {mode} | {} | {} |", clean[0], clean[1]));
            self.killed.push(format!("| {size} | {mode} | {} | {} |", after_kill[0], after_kill[1]));
        }
    }

    /// One wide config value, as large as a value may be.
    fn wide_config(&mut self, folder: &Path) {
        let path = folder.join("wide");
        let lines = run(&["wide", text(&path)]);
        let lines = [&lines[..], &run(&["wide", text(&path)])[..]].concat();
        for line in lines {
            self.wide.push(format!(
                "| {} | {:.1} |",
                line["state"].as_str().unwrap(),
                line["resident"].as_f64().unwrap() / 1024.0
            ));
        }
    }

    fn print(self) {
        table(
            "Calls",
            "records | get of any | the same, multi writer | set, 1 task | set, 64 tasks | list | export, records/s | walk of redb | walk and \
             parse | export against the walk | file / JSON",
            &self.calls,
        );
        table(
            "Resident memory, MiB",
            "records | open | 10,000 gets | full export | full list | most",
            &self.memory,
        );
        table("Opening after closing", "records | mode | verified | unverified", &self.opening);
        table("Opening after `kill -9`", "records | mode | verified | unverified", &self.killed);
        table("One config value of 1 MiB of JSON", "state | resident memory, MiB", &self.wide);
    }
}

fn table(title: &str, head: &str, lines: &[String]) {
    println!("\n{title}:\n\n| {head} |\n|{}", "---:|".repeat(head.split(" | ").count()));
    lines.iter().for_each(|line| println!("{line}"));
}

fn shown(mut seconds: Vec<f64>) -> String {
    seconds.sort_by(f64::total_cmp);
    format!("{:.2?}", Duration::from_secs_f64(seconds[seconds.len() / 2]))
}

fn seconds(value: &Value) -> Duration {
    Duration::from_secs_f64(value.as_f64().unwrap())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn option(value: impl serde::Serialize) -> String {
    serde_json::to_value(value).unwrap().as_str().unwrap().to_owned()
}

/// The bytes of all credentials as JSON.
fn json_bytes(size: u64) -> u64 {
    size * credential(0).to_json().len() as u64
}

fn spawn(arguments: &[&str]) -> Child {
    let program = std::env::current_exe().unwrap();
    Command::new(program).arg("--child").args(arguments).stdout(Stdio::piped()).spawn().unwrap()
}

/// Runs a child to its end and returns the lines that it printed.
fn run(arguments: &[&str]) -> Vec<Value> {
    let done = spawn(arguments).wait_with_output().unwrap();
    assert!(done.status.success(), "{arguments:?}");
    String::from_utf8(done.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn kill_while_writing(path: &Path, size: u64, mode: Sharing) {
    let mut child = spawn(&["write", text(path), &size.to_string(), &option(mode), "unclean"]);
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// What a child process does.
fn child(arguments: &[String]) {
    let path = PathBuf::from(&arguments[1]);
    let size = || arguments[2].parse::<u64>().unwrap();
    let mut options = FileOptions::new(&path);
    options.deadline = Duration::from_secs(600);
    if let [.., mode, verify] = &arguments[1..]
        && arguments.len() == 5
    {
        options.shared = serde_json::from_value(json!(mode)).unwrap();
        options.verify = serde_json::from_value(json!(verify)).unwrap();
    }
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match &*arguments[0] {
        "fill" => fill(&runtime, options, size()),
        "use" => use_all(&runtime, options, size()),
        "rates" => rates(&runtime, options),
        "sets" => sets(&runtime, options, size()),
        "open" => {
            let start = Instant::now();
            let storage: Storage<File> = runtime.block_on(Storage::open(options)).unwrap();
            println!("{}", json!({ "seconds": start.elapsed().as_secs_f64() }));
            runtime.block_on(storage.close()).unwrap();
        }
        "write" => {
            let storage: Storage<File> = runtime.block_on(Storage::open(options)).unwrap();
            for n in 0.. {
                let n = n * 7919 % size();
                runtime.block_on(storage.set_credential(id(n), credential(n))).unwrap();
                println!("{n}");
            }
        }
        "wide" => wide(&runtime, options),
        other => panic!("{other}"),
    }
}

/// Fills a store by imports, some at once, so that commits are large.
fn fill(runtime: &Runtime, mut options: FileOptions, size: u64) {
    const IMPORTS: u64 = 8;
    options.shared = Sharing::Exclusive;
    let start = Instant::now();
    let storage: Storage<File> = runtime.block_on(Storage::open(options)).unwrap();
    let imports = (0..IMPORTS.min(size)).map(|first| {
        let storage = storage.clone();
        let records = (first..size)
            .step_by(IMPORTS as usize)
            .map(|n| Ok(Record::Credential { id: id(n), credential: credential(n) }));
        runtime.spawn(async move { storage.import(stream::iter(records)).await.unwrap() })
    });
    let imports: Vec<_> = imports.collect();
    for report in runtime.block_on(future::join_all(imports)) {
        assert!(report.unwrap().is_complete());
    }
    runtime.block_on(storage.close()).unwrap();
    println!("{}", json!({ "seconds": start.elapsed().as_secs_f64() }));
}

/// The memory of a process that reads all of a store.
fn use_all(runtime: &Runtime, options: FileOptions, size: u64) {
    let report = |name: &str, value: f64| println!("{}", json!({ name: value }));
    let storage: Storage<File> = runtime.block_on(Storage::open(options)).unwrap();
    report("opened", memory("VmRSS:"));
    let mut random = fastrand::Rng::with_seed(1);
    let mut gets = Vec::new();
    for _ in 0..GETS {
        let id = id(random.u64(..size));
        let start = Instant::now();
        black_box(runtime.block_on(storage.get_credential(&id)).unwrap());
        gets.push(start.elapsed().as_secs_f64());
    }
    gets.sort_by(f64::total_cmp);
    report("get", gets[gets.len() / 2]);
    report("after gets", memory("VmRSS:"));
    runtime.block_on(export(&storage));
    report("after export", memory("VmRSS:"));
    let start = Instant::now();
    let list = runtime.block_on(storage.list_credentials()).unwrap();
    report("list", start.elapsed().as_secs_f64());
    assert_eq!(list.len() as u64, size);
    drop(list);
    report("after list", memory("VmRSS:"));
    report("most", memory("VmHWM:"));
    runtime.block_on(storage.close()).unwrap();
}

/// The seconds that an export takes.
async fn export(storage: &Storage<File>) -> f64 {
    let start = Instant::now();
    let mut records = std::pin::pin!(storage.export());
    while let Some(record) = records.next().await {
        black_box(record.unwrap());
    }
    start.elapsed().as_secs_f64()
}

/// The time of an export, and of a walk of the same file by redb, by turns.
fn rates(runtime: &Runtime, options: FileOptions) {
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..3 {
        let storage: Storage<File> = runtime.block_on(Storage::open(options.clone())).unwrap();
        times[0].push(runtime.block_on(export(&storage)));
        runtime.block_on(storage.close()).unwrap();
        times[1].push(walk(&options.path, |value| u64::from(value[value.len() - 1])));
        times[2].push(walk(&options.path, |value| {
            black_box(serde_json::from_slice::<Map<String, Value>>(value).unwrap()).len() as u64
        }));
    }
    for (name, mut times) in ["export", "walk", "parsed"].into_iter().zip(times) {
        times.sort_by(f64::total_cmp);
        println!("{}", json!({ name: times[1] }));
    }
}

/// Reads the names and values of all records with redb and a page cache as large as `File`'s.
fn walk(path: &Path, each: impl Fn(&[u8]) -> u64) -> f64 {
    const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");
    let database =
        redb::Builder::new().set_cache_size(32 << 20).open_read_only(path.join("store.redb")).unwrap();
    let start = Instant::now();
    let records = database.begin_read().unwrap().open_table(RECORDS).unwrap();
    let mut sum = 0;
    for record in records.iter().unwrap() {
        let (name, value) = record.unwrap();
        sum += u64::from(name.value()[0]) + each(value.value());
    }
    black_box(sum);
    start.elapsed().as_secs_f64()
}

fn sets(runtime: &Runtime, options: FileOptions, size: u64) {
    let storage: Storage<File> = runtime.block_on(Storage::open(options)).unwrap();
    let mut random = fastrand::Rng::with_seed(2);
    let mut times = Vec::new();
    for _ in 0..300 {
        let n = random.u64(..size);
        let start = Instant::now();
        runtime.block_on(storage.set_credential(id(n), credential(n))).unwrap();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    println!("{}", json!({ "set": times[times.len() / 2] }));
    let start = Instant::now();
    let tasks = (0..64_u64).map(|task| {
        let (storage, mut random) = (storage.clone(), fastrand::Rng::with_seed(task + 3));
        runtime.spawn(async move {
            for _ in 0..50 {
                let n = random.u64(..size);
                storage.set_credential(id(n), credential(n)).await.unwrap();
            }
        })
    });
    let tasks: Vec<_> = tasks.collect();
    runtime.block_on(future::join_all(tasks)).into_iter().for_each(|done| done.unwrap());
    println!("{}", json!({ "set64": start.elapsed().as_secs_f64() / (64.0 * 50.0) }));
    runtime.block_on(storage.close()).unwrap();
}

/// The memory of a process whose store has one wide config value: after it was written or, in the second
/// process, after opening and after one read.
fn wide(runtime: &Runtime, options: FileOptions) {
    let report = |state: &str| println!("{}", json!({ "state": state, "resident": memory("VmRSS:") }));
    let storage: Storage<File> = runtime.block_on(Storage::open(options)).unwrap();
    report("open");
    match runtime.block_on(storage.get_config("wide")) {
        Ok(value) => {
            report("the caller has the value");
            drop(value);
            report("read, and dropped by the caller");
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let value = Value::Array(vec![json!({ "a": 0 }); ((1 << 20) - 1) / 8]);
            runtime.block_on(storage.set_config("wide", value)).unwrap();
            report("written, and dropped by the caller");
        }
        Err(error) => panic!("{error}"),
    }
    runtime.block_on(storage.close()).unwrap();
}

/// A number of `/proc/self/status`, in KiB.
fn memory(name: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let number = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    number.trim().trim_end_matches(" kB").parse().unwrap()
}
