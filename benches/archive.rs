//! Speed and memory of export and import with the command `storage`, compared with the backend's bulk calls.
//!
//! `cargo bench --bench archive --features full -- COUNT BACKEND..` (default: 100000 postgres redis file).
//! Six tenths of the COUNT records are credentials, one tenth config values and three tenths counters. The
//! bulk calls are `import` of chunks in memory, four concurrently as in the command, and `export` read to its
//! end. The bench starts its servers without fsync; `File` syncs.
//!
//! Memory is the peak resident memory of the command's process (VmHWM), read while it runs.

use std::{
    env, fs,
    path::Path,
    pin::pin,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use gateway_storage::{
    ConfigValue, Credential, Exportable, File, IMPORT_CHUNK, Key, Open, Postgres, Record, Redis, Storage,
};
use serde_json::json;
use testkit::servers;

fn main() {
    let mut arguments: Vec<String> = env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let count = arguments.first().and_then(|word| word.parse().ok());
    if count.is_some() {
        arguments.remove(0);
    }
    let count = count.unwrap_or(100_000);
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|word| word == name);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    println!("{count} records        raw/s   command/s   ratio   VmHWM");
    if wanted("postgres") {
        let server = servers::postgres::Server::start(&[]);
        let url = |name: &str| format!("{}&schema={name}", server.url());
        runtime.block_on(measure::<Postgres>("postgres", count, url));
    }
    if wanted("redis") {
        let server = servers::redis::Server::start(&["--appendonly", "no"]);
        let url = |name: &str| format!("{}?prefix={name}:", server.url());
        runtime.block_on(measure::<Redis>("redis", count, url));
    }
    if wanted("file") {
        let folder = tempfile::tempdir().unwrap();
        let url = |name: &str| format!("file:{}/{name}", folder.path().display());
        runtime.block_on(measure::<File>("file", count, url));
    }
}

async fn measure<B: Open + Exportable>(name: &str, count: usize, url: impl Fn(&str) -> String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("export.ndjson");
    let open = async |store: &str| Storage::<B>::open(url(store).as_str()).await.unwrap();

    let storage = open("raw").await;
    let chunks: Vec<Vec<Record>> =
        stream::iter(records(count)).chunks(IMPORT_CHUNK).collect::<Vec<Vec<Record>>>().await;
    let start = Instant::now();
    let backend = storage.backend();
    stream::iter(&chunks)
        .map(|chunk| async move { assert!(backend.import(chunk).await.unwrap().is_complete()) })
        .buffer_unordered(4)
        .for_each(|()| async {})
        .await;
    let imported = start.elapsed();
    drop(chunks);

    let start = Instant::now();
    let mut exported = 0;
    {
        let mut export = pin!(storage.export());
        while export.try_next().await.unwrap().is_some() {
            exported += 1;
        }
    }
    let exported = (start.elapsed(), exported);
    assert_eq!(exported.1, count);
    storage.close().await.unwrap();

    let base = run(&["--url", &url("raw"), "ping"]);
    let export = run(&["--url", &url("raw"), "export", file.to_str().unwrap()]);
    let check = run(&["inspect", file.to_str().unwrap()]);
    let import = run(&["--url", &url("import"), "import", file.to_str().unwrap()]);
    let piped = run(&["--url", &url("piped"), "import", file.to_str().unwrap(), "--no-verify-first"]);
    let storage = open("import").await;
    assert_eq!(storage.export().count().await, count);
    storage.close().await.unwrap();

    let rate = |elapsed: Duration| count as f64 / elapsed.as_secs_f64();
    let row = |what: &str, raw: Duration, ran: &Ran| {
        let (raw, command) = (rate(raw), rate(ran.elapsed));
        println!("{name:9} {what:22} {raw:9.0} {command:11.0} {:7.2} {:7.1} MiB", command / raw, ran.memory);
    };
    row("export", exported.0, &export);
    row("import", imported, &import);
    row("import, no check first", imported, &piped);
    println!("{name:9} inspect {:36.0} {:15.1} MiB", rate(check.elapsed), check.memory);
    println!("{name:9} ping, to compare {:43.1} MiB", base.memory);
    println!("{name:9} file {:.1} MiB", fs::metadata(&file).unwrap().len() as f64 / 1048576.0);
}

struct Ran {
    elapsed: Duration,
    memory: f64,
}

/// Runs the command, and measures its time and memory.
fn run(line: &[&str]) -> Ran {
    let start = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_storage"));
    let mut child = command.args(line).stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut memory = 0.0;
    loop {
        memory = resident(Path::new(&status)).unwrap_or(memory);
        if let Some(ended) = child.try_wait().unwrap() {
            assert!(ended.success(), "{line:?}");
            return Ran { elapsed: start.elapsed(), memory };
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Peak resident memory in MiB.
fn resident(status: &Path) -> Option<f64> {
    let text = fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? / 1024.0)
}

fn key(text: String) -> Key {
    Key::new(&text).unwrap()
}

/// `count` records, in the order of an export.
fn records(count: usize) -> impl Iterator<Item = Record> {
    let (credentials, configs) = (count * 6 / 10, count / 10);
    let counters = count - credentials - configs;
    let token = |prefix: &str, n, length| format!("{prefix}{n:08}{}", "x".repeat(length));
    let credentials = (0..credentials).map(move |n| {
        let fields = json!({
            "access_token": token("ya29.", n, 150), "refresh_token": token("1//", n, 60), "project_id": token("p-", n, 4),
            "expiry": "2026-12-31T23:59:59Z", "scopes": ["cloud-platform", "openid"], "disabled": false, "weight": 0.5,
        });
        Record::Credential {
            id: key(format!("user.name+{n:08}@example.com")),
            credential: Credential::try_from(fields).unwrap(),
        }
    });
    let configs = (0..configs).map(|n| Record::Config {
        key: key(format!("model:{n:08}")),
        value: ConfigValue::new(json!({ "max_tokens": n, "enabled": true, "aliases": ["a", "b"] })).unwrap(),
    });
    let counters = (0..counters).map(|n| Record::Usage {
        key: key(format!("sk-client-{:08}", n / 3)),
        field: key(["completion_tokens", "prompt_tokens", "requests"][n % 3].to_owned()),
        count: i64::try_from(n).unwrap(),
    });
    credentials.chain(configs).chain(counters)
}
