//! What a stream of all records takes, and a page of one.
//!
//! `cargo bench --bench lists` streams a million credentials of 200 bytes, as many config values and as many
//! usage records of `File` and of `Memory`, each kind in a process of its own, and prints by how much the
//! resident memory grew at most, and the records a second. For `File` it then prints the median time of a
//! page of 100 records after a random key, of stores with 1,000 and with a million records of a kind.
//!
//! `cargo bench --bench lists --features full -- redis postgres mongodb 100000` measures these backends, with
//! servers that it starts, and 100,000 records of a kind.

use std::{
    fs,
    hint::black_box,
    pin::pin,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use futures_util::{Stream, TryStreamExt, stream};
use gateway_storage::{
    Backend, ConfigStore, CredentialStore, Exportable, File, Key, Memory, Open, Record, RecordKind, Result,
    Storage, UsageStore, list::ListOptions,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const SIZE: u64 = 1_000_000;
const FEW: u64 = 1_000;
const PAGE: usize = 100;
const PAGES: usize = 500;
const KINDS: [RecordKind; 3] = [RecordKind::Credential, RecordKind::Config, RecordKind::Usage];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let [first, rest @ ..] = &arguments[..]
        && first == "--child"
    {
        return child(rest);
    }
    let size = arguments.iter().find_map(|word| word.parse().ok()).unwrap_or(SIZE);
    let mut backends: Vec<&str> =
        arguments.iter().map(String::as_str).filter(|word| word.parse::<u64>().is_err()).collect();
    if backends.is_empty() {
        backends = vec!["file", "memory"];
    }
    println!("| backend | kind | records | grew by (MiB) | records/s |");
    println!("|---|---|---:|---:|---:|");
    for backend in backends {
        measure(backend, size);
    }
}

/// The store is there, and is filled, while the server or the folder is in scope.
fn measure(backend: &str, size: u64) {
    match backend {
        "file" => {
            // In the build's directory: the directory for temporary files may be in memory.
            let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let [many, few] =
                ["many", "few"].map(|name| format!("file:{}", folder.path().join(name).display()));
            run(&["fill", &many, &size.to_string()]);
            streams(backend, &many, size);
            run(&["fill", &few, &FEW.to_string()]);
            pages(&[(FEW, &few), (size, &many)]);
        }
        "memory" => streams(backend, "memory:", size),
        #[cfg(feature = "redis")]
        "redis" => {
            let server = testkit::servers::redis::Server::start(&["--appendonly", "no"]);
            run(&["fill", &server.url(), &size.to_string()]);
            streams(backend, &server.url(), size);
        }
        #[cfg(feature = "postgres")]
        "postgres" => {
            let server = testkit::servers::postgres::Server::start(&[]);
            run(&["fill", &server.url(), &size.to_string()]);
            streams(backend, &server.url(), size);
        }
        #[cfg(feature = "mongodb")]
        "mongodb" => {
            let set = testkit::servers::mongodb::ReplicaSet::start(1);
            let url = set.url("lists");
            run(&["fill", &url, &size.to_string()]);
            streams(backend, &url, size);
        }
        other => panic!("there is no backend `{other}` in this build"),
    }
}

fn streams(backend: &str, url: &str, size: u64) {
    for kind in KINDS {
        let name = kind.as_str();
        let measured = run(&["stream", url, &size.to_string(), name]);
        let number = |name: &str| measured[name].as_f64().unwrap();
        println!(
            "| {backend} | {name} | {size} | {:.1} | {:.0} |",
            number("grew") / 1024.0,
            size as f64 / number("seconds"),
        );
    }
}

fn pages(stores: &[(u64, &str); 2]) {
    println!();
    println!("| page of {PAGE} | records | time | against few records |");
    println!("|---|---:|---:|---:|");
    for kind in KINDS {
        let mut first = None;
        for (size, url) in stores {
            let measured = run(&["page", url, &size.to_string(), kind.as_str()]);
            let seconds = measured["seconds"].as_f64().unwrap();
            let ratio = seconds / *first.get_or_insert(seconds);
            println!(
                "| {} | {size} | {:.1?} | {ratio:.2} |",
                kind.as_str(),
                Duration::from_secs_f64(seconds)
            );
        }
    }
}

/// Runs this program as a child, and returns the line that it printed.
fn run(arguments: &[&str]) -> Value {
    let mut child = Command::new(std::env::current_exe().unwrap());
    let done = child.arg("--child").args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let done = done.wait_with_output().unwrap();
    assert!(done.status.success(), "{arguments:?}");
    serde_json::from_slice(&done.stdout).unwrap()
}

fn child(arguments: &[String]) {
    let [action, url, size, rest @ ..] = arguments else { panic!("{arguments:?}") };
    let size = size.parse().unwrap();
    let kind = rest.first().map(|kind| *KINDS.iter().find(|known| known.as_str() == kind).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let done = runtime.block_on(async {
        match url.split(':').next().unwrap() {
            "file" => act::<File>(action, url, size, kind).await,
            "memory" => act::<Memory>(action, url, size, kind).await,
            #[cfg(feature = "redis")]
            "redis" => act::<gateway_storage::Redis>(action, url, size, kind).await,
            #[cfg(feature = "postgres")]
            "postgres" | "postgresql" => act::<gateway_storage::Postgres>(action, url, size, kind).await,
            #[cfg(feature = "mongodb")]
            "mongodb" => act::<gateway_storage::MongoDb>(action, url, size, kind).await,
            other => panic!("{other}"),
        }
    });
    println!("{done}");
}

trait Measured: Backend + Open + CredentialStore + ConfigStore + UsageStore + Exportable {}
impl<B: Backend + Open + CredentialStore + ConfigStore + UsageStore + Exportable> Measured for B {}

async fn act<B: Measured>(action: &str, url: &str, size: u64, kind: Option<RecordKind>) -> Value {
    let storage = Storage::<B>::open(url).await.unwrap().with_deadline(Duration::from_secs(600));
    if action == "fill" || url == "memory:" {
        for kind in KINDS.into_iter().filter(|one| kind.is_none_or(|kind| kind == *one)) {
            let records = (0..size).map(|n| Ok(record(kind, n)));
            assert!(storage.import(stream::iter(records)).await.unwrap().is_complete());
        }
    }
    let measured = match action {
        "fill" => json!({}),
        "stream" => streamed(&storage, size, kind.unwrap()).await,
        "page" => page(&storage, size, kind.unwrap()).await,
        other => panic!("{other}"),
    };
    storage.close().await.unwrap();
    measured
}

fn key(n: u64) -> Key {
    Key::new(&format!("user.name+{n:08}@example.com")).unwrap()
}

/// A credential of 200 bytes of JSON, a value of as many, or a counter.
fn record(kind: RecordKind, n: u64) -> Record {
    let fields =
        json!({ "access_token": format!("ya29.{n:08}{}", "x".repeat(138)), "scope": "cloud-platform" });
    match kind {
        RecordKind::Credential => Record::Credential { id: key(n), credential: fields.try_into().unwrap() },
        RecordKind::Config => Record::Config { key: key(n), value: fields.try_into().unwrap() },
        _ => Record::Usage { key: key(n), field: Key::new("requests").unwrap(), count: n as i64 },
    }
}

/// How the resident memory grows at most during a stream of all records, in KiB.
async fn streamed<B: Measured>(storage: &Storage<B>, size: u64, kind: RecordKind) -> Value {
    // The most of what follows, and not of the time before.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory("VmRSS:");
    let begun = Instant::now();
    let count = count(storage, kind, ListOptions::default()).await;
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!(count, size);
    json!({ "grew": memory("VmHWM:") - before, "seconds": seconds })
}

/// The median time of a page after a random key.
async fn page<B: Measured>(storage: &Storage<B>, size: u64, kind: RecordKind) -> Value {
    let mut random = fastrand::Rng::with_seed(1);
    let mut times = Vec::new();
    for _ in 0..PAGES {
        let after = key(random.u64(..size - PAGE as u64 - 1));
        let options = ListOptions::default().with_after(after).with_limit(PAGE);
        let begun = Instant::now();
        assert_eq!(count(storage, kind, options).await, PAGE as u64);
        times.push(begun.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    json!({ "seconds": times[PAGES / 2] })
}

async fn count<B: Measured>(storage: &Storage<B>, kind: RecordKind, options: ListOptions) -> u64 {
    match kind {
        RecordKind::Credential => counted(storage.stream_credentials(options)).await,
        RecordKind::Config => counted(storage.stream_configs(options)).await,
        _ => counted(storage.stream_usage(options)).await,
    }
}

async fn counted<V>(records: impl Stream<Item = Result<(Key, V)>>) -> u64 {
    let (mut records, mut count) = (pin!(records), 0);
    while let Some(record) = records.try_next().await.unwrap() {
        black_box(record);
        count += 1;
    }
    count
}

/// A number of `/proc/self/status`, in KiB.
fn memory(name: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let number = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    number.trim().trim_end_matches(" kB").parse().unwrap()
}
