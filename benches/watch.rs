//! How soon a change is told, and how a thousand watches come back.
//!
//! `cargo bench --bench watch` writes 2,000 changes through one handle, one after the other, and measures
//! when a watch of another handle tells each: since its write began, and since its write returned. It does so
//! for `File` (with one writer, and shared with another handle) and `Memory`. `cargo bench --bench watch
//! --features full -- redis postgres mongodb git` measures these, with servers that it starts.
//!
//! `cargo bench --bench watch --features full -- herd` opens 1,000 stores on one Redis server, each with a
//! watch, cuts all connections at once and prints how many watches came back in each tenth of a second.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use gateway_storage::{
    CredentialStore, File, FileOptions, Key, Memory, Sharing, Storage,
    watch::{Event, Watch, WatchOptions},
};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::mpsc;

const CHANGES: usize = 2000;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let mut names: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if names.is_empty() {
        names = vec!["memory", "file", "shared"];
    }
    #[cfg(feature = "redis")]
    if names == ["herd"] {
        return herd().await;
    }
    println!("| backend | since | p50 (ms) | p99 (ms) | longest (ms) |");
    println!("|---|---|---:|---:|---:|");
    for name in names {
        measure(name).await;
    }
}

async fn measure(name: &str) {
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("store");
    match name {
        "memory" => {
            let storage = Storage::<Memory>::open("memory:").await.unwrap();
            latency(name, &storage, &storage).await;
        }
        "file" => {
            let options = FileOptions::new(&path).with_shared(Sharing::Exclusive);
            let storage = Storage::<File>::open(options).await.unwrap();
            latency("file, one process", &storage, &storage).await;
        }
        "shared" => {
            let open = || Storage::<File>::open(FileOptions::new(&path).with_shared(Sharing::MultiWriter));
            latency("file, another handle", &open().await.unwrap(), &open().await.unwrap()).await;
        }
        #[cfg(feature = "git")]
        "git" => {
            let url = format!("git:{}", path.display());
            let storage = Storage::<gateway_storage::Git>::open(url).await.unwrap();
            latency(name, &storage, &storage).await;
        }
        #[cfg(feature = "redis")]
        "redis" => {
            let server = testkit::servers::redis::Server::start(&["--appendonly", "yes"]);
            let open = || Storage::<gateway_storage::Redis>::open(server.url());
            latency(name, &open().await.unwrap(), &open().await.unwrap()).await;
        }
        #[cfg(feature = "postgres")]
        "postgres" => {
            let server = testkit::servers::postgres::Server::start(&[]);
            let open = || Storage::<gateway_storage::Postgres>::open(server.url());
            latency(name, &open().await.unwrap(), &open().await.unwrap()).await;
        }
        #[cfg(feature = "mongodb")]
        "mongodb" => {
            let set = testkit::servers::mongodb::ReplicaSet::start(1);
            let open = || Storage::<gateway_storage::MongoDb>::open(set.url("watch"));
            latency(name, &open().await.unwrap(), &open().await.unwrap()).await;
        }
        other => panic!("there is no backend `{other}` in this build"),
    }
}

/// Writes with one handle and watches with the other.
async fn latency<B: CredentialStore + Watch>(name: &str, writer: &Storage<B>, watched: &Storage<B>) {
    let (told, mut events) = mpsc::unbounded_channel();
    let watching = watched.clone();
    let task = tokio::spawn(async move {
        let mut stream = pin!(watching.watch(WatchOptions::default()));
        while let Some(event) = stream.next().await {
            told.send((Instant::now(), event.unwrap())).unwrap();
        }
    });
    while !matches!(events.recv().await, Some((_, Event::Resync { .. }))) {}
    let (mut since_begin, mut since_end) = (Vec::new(), Vec::new());
    for n in 0..CHANGES {
        // As writes of people come: not at the same moment of the source's clock each time.
        tokio::time::sleep(Duration::from_micros(fastrand::u64(..8000))).await;
        let id = Key::new(&format!("a{}", n % 100)).unwrap();
        let begun = Instant::now();
        writer.set_credential(&id, json!({ "n": n })).await.unwrap();
        let ended = Instant::now();
        loop {
            match tokio::time::timeout(Duration::from_secs(20), events.recv()).await.unwrap().unwrap() {
                // Another handle's commit of a shared file may be told without its key.
                (at, Event::Changed { key, .. })
                    if at > begun && key.as_ref().is_none_or(|key| *key == id) =>
                {
                    since_begin.push(at.duration_since(begun));
                    since_end.push(at.saturating_duration_since(ended));
                    break;
                }
                _ => {}
            }
        }
    }
    task.abort();
    for (what, mut times) in [("begin", since_begin), ("return", since_end)] {
        times.sort();
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1000.0;
        println!("| {name} | {what} | {:.2} | {:.2} | {:.2} |", at(0.5), at(0.99), at(1.0));
    }
}

/// A thousand watches whose connections are cut at once.
#[cfg(feature = "redis")]
async fn herd() {
    const WATCHES: usize = 1000;
    const TENTH: Duration = Duration::from_millis(100);
    let server = testkit::servers::redis::Server::start(&["--appendonly", "no", "--maxclients", "9000"]);
    let (told, mut events) = mpsc::unbounded_channel();
    for n in 0..WATCHES {
        let (url, told) = (server.url(), told.clone());
        tokio::spawn(async move {
            let storage = Storage::<gateway_storage::Redis>::open(url).await.unwrap();
            let mut stream = pin!(storage.watch(WatchOptions::default()));
            while let Some(event) = stream.next().await {
                if let Event::Resync { .. } = event.unwrap() {
                    // As an application reads again.
                    storage.list_credentials().await.unwrap();
                    told.send((n, Instant::now())).unwrap();
                }
            }
        });
    }
    for _ in 0..WATCHES {
        events.recv().await.unwrap();
    }
    let cut = Instant::now();
    server.raw().words("CLIENT KILL TYPE normal SKIPME yes");
    let mut tenths = vec![0_usize; 200];
    for _ in 0..WATCHES {
        let (_, at) = tokio::time::timeout(Duration::from_secs(60), events.recv()).await.unwrap().unwrap();
        let tenth = at.duration_since(cut).as_millis() / TENTH.as_millis();
        tenths[(tenth as usize).min(199)] += 1;
    }
    println!("| after the cut (ms) | watches that had read again |");
    println!("|---:|---:|");
    for (tenth, count) in tenths.iter().enumerate().filter(|(_, count)| **count > 0) {
        println!("| {} | {count} |", tenth * 100);
    }
}
