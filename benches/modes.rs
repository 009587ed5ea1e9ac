//! What each mode of sharing costs: `File` and redb itself, each as exclusive, single writer and multi
//! writer.
//!
//! `cargo bench --bench modes` prints one table. In each sample all contenders run the same operations, one
//! right after the other, on the same disk. The ratio is how many times faster the row's first contender is.

mod contest;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use contest::{Contender, Contest, credential, of, on_tasks, on_threads};
use gateway_storage::{Credential, File, FileOptions, Key, Sharing, Storage};
use redb::{Builder, ConcurrencyMode, Database, ReadableDatabase, TableDefinition};
use serde_json::{Map, Value};
use tempfile::TempDir;

const MODES: [(Sharing, ConcurrencyMode, [&str; 2]); 3] = [
    (Sharing::Exclusive, ConcurrencyMode::ExclusiveWriter, ["File, exclusive", "redb, exclusive"]),
    (Sharing::SingleWriter, ConcurrencyMode::SingleWriter, ["File, single writer", "redb, single writer"]),
    (Sharing::MultiWriter, ConcurrencyMode::MultiWriter, ["File, multi writer", "redb, multi writer"]),
];

/// Records of each store.
const RECORDS: u64 = 100_000;
/// Records that the cache holds.
const HOT: u64 = 10_000;
/// The size of a page cache of redb, which has half of `File`'s default.
const PAGES: usize = 32 << 20;

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");

fn main() {
    // In the build's directory: the directory for temporary files may be in memory.
    let program = std::env::current_exe().unwrap();
    let folder = TempDir::new_in(program.parent().unwrap()).unwrap();
    let mut contest = Contest::new("Modes. The ratio is how many times faster the first contender is.");
    let stores: Vec<_> = MODES.iter().map(|(mode, ..)| store(&contest, &folder, *mode)).collect();
    let peers: Vec<_> = MODES.iter().map(|(_, mode, _)| Arc::new(peer(&folder, *mode))).collect();
    let runtime = &contest.runtime.clone();
    let json: &'static [u8] = serde_json::to_vec(&credential()).unwrap().leak();
    for tasks in [1, 8, 64] {
        let mut contenders: Vec<Contender<'_>> = Vec::new();
        for (storage, (.., [name, _])) in stores.iter().zip(MODES) {
            let shared = Arc::new((storage.clone(), Credential::new(credential()).unwrap()));
            let set = move |n: u64| {
                let shared = shared.clone();
                async move { shared.0.set_credential(id(n * 7919 % RECORDS), shared.1.clone()).await.unwrap() }
            };
            contenders.push((name, Box::new(move |count| on_tasks(runtime, tasks, count, set.clone()))));
        }
        for (peer, (.., [_, name])) in peers.iter().zip(MODES) {
            contenders.push((
                name,
                Box::new(move |count| on_threads(tasks, count, |n| put(peer, n * 7919 % RECORDS, json))),
            ));
        }
        contest.row(&format!("durable set, {}", of(tasks)), contenders);
    }
    for (row, records) in [("get of a cached document", HOT), ("get of another document", RECORDS)] {
        let mut contenders: Vec<Contender<'_>> = Vec::new();
        let ids: Arc<Vec<Key>> = Arc::new((0..records).map(id).collect());
        // A multiple of a large prime comes to every record before it comes to one again.
        let next = || {
            let calls = AtomicU64::new(0);
            move || (calls.fetch_add(7919, Ordering::Relaxed) % records) as usize
        };
        for (storage, (.., [name, _])) in stores.iter().zip(MODES) {
            let shared = Arc::new((storage.clone(), ids.clone(), next()));
            let get = move |_| {
                let shared = shared.clone();
                async move {
                    let (storage, ids, next) = &*shared;
                    storage.get_credential(&ids[next()]).await.unwrap()
                }
            };
            contenders.push((name, Box::new(move |count| on_tasks(runtime, 1, count, get.clone()))));
        }
        for (peer, (.., [_, name])) in peers.iter().zip(MODES) {
            let (ids, next) = (ids.clone(), next());
            contenders.push((name, Box::new(move |count| on_threads(1, count, |_| get(peer, &ids[next()])))));
        }
        contest.row(row, contenders);
    }
    contest.print();
}

fn id(n: u64) -> Key {
    Key::new(&format!("user.name+{n:08}@example.com")).unwrap()
}

fn store(contest: &Contest, folder: &TempDir, mode: Sharing) -> Storage<File> {
    let mut options = FileOptions::new(folder.path().join(format!("{mode:?}")));
    options.shared = mode;
    contest.runtime.block_on(async {
        let storage = Storage::<File>::open(options).await.unwrap();
        let credential = Credential::new(credential()).unwrap();
        let items: Vec<_> = (0..RECORDS).map(|n| (id(n), credential.clone())).collect();
        for chunk in items.chunks(5000) {
            assert!(storage.set_credentials(chunk).await.unwrap().is_complete());
        }
        storage
    })
}

fn peer(folder: &TempDir, mode: ConcurrencyMode) -> Database {
    let path = folder.path().join(format!("{mode:?}.redb"));
    let peer = Builder::new().set_cache_size(PAGES).set_concurrency_mode(mode).create(path).unwrap();
    let write = peer.begin_write().unwrap();
    {
        let json = serde_json::to_vec(&credential()).unwrap();
        let mut table = write.open_table(TABLE).unwrap();
        for n in 0..RECORDS {
            table.insert(id(n).as_str().as_bytes(), &*json).unwrap();
        }
    }
    write.commit().unwrap();
    peer
}

/// A transaction for each write.
fn put(peer: &Database, n: u64, json: &[u8]) {
    let write = peer.begin_write().unwrap();
    write.open_table(TABLE).unwrap().insert(id(n).as_str().as_bytes(), json).unwrap();
    write.commit().unwrap();
}

/// A transaction for each read, and the parse.
fn get(peer: &Database, id: &Key) -> Map<String, Value> {
    let table = peer.begin_read().unwrap().open_table(TABLE).unwrap();
    let found = table.get(id.as_str().as_bytes()).unwrap().unwrap();
    serde_json::from_slice(found.value()).unwrap()
}
