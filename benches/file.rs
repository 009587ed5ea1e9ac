//! The File backend compared with what an application would write instead, in one run, as ratios.
//!
//! `cargo bench --bench file` prints criterion's own report and then one table (with `-- get` only the rows
//! whose names contain "get"). In each sample the peer runs right before ours, so that both see the machine
//! in the same state. The table has the medians of the samples. `modes` and `growth` measure the rest.

use std::{
    collections::HashMap,
    fs::{self, OpenOptions},
    hint::black_box,
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use criterion::Criterion;
use futures_util::FutureExt;
use gateway_storage::{Credential, File, FileOptions, Key, Sharing, Storage};
use redb::ReadableTable;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Documents that the cache holds.
const CACHED: usize = 10_000;

fn main() {
    let bench = Bench::new();
    let mut table = Table::default();
    for (mode, name) in [
        (Sharing::Exclusive, "exclusive"),
        (Sharing::SingleWriter, "single writer"),
        (Sharing::MultiWriter, "multi writer"),
    ] {
        bench.reads(&mut table, mode, name);
    }
    bench.durable_sets(&mut table);
    bench.hot_counter(&mut table);
    bench.configs(&mut table);
    bench.batch(&mut table);
    table.print();
    bench.criterion().final_summary();
}

fn id(n: usize) -> Key {
    Key::new(&format!("user.name+{n:06}@example.com")).unwrap()
}

/// An OAuth credential of 640 bytes of JSON.
fn credential(n: usize) -> Credential {
    let token = |prefix: &str, length| format!("{prefix}{n:08}{}", "x".repeat(length));
    let fields = json!({
        "access_token": token("ya29.", 205), "refresh_token": token("1//", 90), "client_id": token("", 50),
        "client_secret": token("GOCSPX-", 20), "expiry": "2026-12-31T23:59:59Z", "project_id": token("project-", 4),
        "token_uri": "https://oauth2.googleapis.com/token", "scope": "cloud-platform",
    });
    Credential::try_from(fields).unwrap()
}

/// Ours compared with a peer, one comparison per row.
#[derive(Default)]
struct Table(Vec<[String; 5]>);

impl Table {
    fn add(&mut self, row: &str, peer: &str, mut samples: Vec<(f64, f64)>) {
        let mut median = |of: fn(&(f64, f64)) -> f64| {
            samples.sort_by(|a, b| of(a).total_cmp(&of(b)));
            of(&samples[samples.len() / 2])
        };
        let (ours, theirs, ratio) = (median(|s| s.0), median(|s| s.1), median(|s| s.1 / s.0));
        let shown = |nanos: f64| format!("{:.2?}", Duration::from_secs_f64(nanos * 1e-9));
        self.0.push([row.into(), peer.into(), shown(ours), shown(theirs), format!("{ratio:.2}x")]);
    }

    fn print(&self) {
        println!("\nTime for one operation, medians; the ratio is how many times faster File is.\n");
        println!("| operation | against | File | peer | ratio |\n|---|---|---:|---:|---:|");
        for [row, peer, ours, theirs, ratio] in &self.0 {
            println!("| {row} | {peer} | {ours} | {theirs} | {ratio} |");
        }
    }
}

struct Bench {
    runtime: Runtime,
    wanted: String,
    folder: TempDir,
    credential: Credential,
}

impl Bench {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        // In the build's directory: the directory for temporary files may be in memory.
        let program = std::env::current_exe().unwrap();
        let folder = TempDir::new_in(program.parent().unwrap()).unwrap();
        let wanted = std::env::args().skip(1).find(|word| !word.starts_with('-')).unwrap_or_default();
        Self { runtime, wanted, folder, credential: credential(0) }
    }

    fn criterion(&self) -> Criterion {
        Criterion::default()
            .sample_size(10)
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_secs(2))
            .without_plots()
    }

    fn store(&self, name: &str, mode: Sharing) -> Storage<File> {
        let mut options = FileOptions::new(self.folder.path().join(name));
        options.shared = mode;
        self.runtime.block_on(Storage::open(options)).unwrap()
    }

    fn filled(&self, name: &str, mode: Sharing, count: usize) -> Storage<File> {
        let storage = self.store(name, mode);
        let items: Vec<_> = (0..count).map(|n| (id(n), credential(n))).collect();
        for chunk in items.chunks(10_000) {
            let report = self.runtime.block_on(storage.set_credentials(chunk)).unwrap();
            assert!(report.is_complete());
        }
        storage
    }

    /// Measures a row: `ours` and `peer` run this many operations and return the time that they took.
    fn row(
        &self,
        table: &mut Table,
        (row, against): (&str, &str),
        most_of_peer: u64,
        mut ours: impl FnMut(u64) -> Duration,
        mut peer: impl FnMut(u64) -> Duration,
    ) {
        if !row.contains(&self.wanted) {
            return;
        }
        let mut samples = Vec::new();
        let each = |time: Duration, count: u64| time.as_secs_f64() * 1e9 / count as f64;
        self.criterion().bench_function(&format!("{row} (against {against})"), |bencher| {
            bencher.iter_custom(|count| {
                let theirs = count.min(most_of_peer);
                let their_time = peer(theirs);
                let our_time = ours(count);
                samples.push((each(our_time, count), each(their_time, theirs)));
                our_time
            });
        });
        table.add(row, against, samples);
    }

    fn reads(&self, table: &mut Table, mode: Sharing, name: &str) {
        let rows = ["1 thread", "2 threads", "2 threads and a busy writer"];
        let rows = rows.map(|row| format!("get of a cached document, {name}, {row}"));
        if !rows.iter().any(|row| row.contains(&self.wanted)) {
            return;
        }
        let storage = self.filled(&format!("reads-{name}"), mode, CACHED);
        let ids: Arc<Vec<Key>> = Arc::new((0..CACHED).map(id).collect());
        type Plain = RwLock<HashMap<String, Arc<Map<String, Value>>>>;
        let plain: Arc<Plain> = Arc::new(RwLock::new(
            (0..CACHED)
                .map(|n| (id(n).as_str().to_owned(), Arc::new(credential(n).fields().clone())))
                .collect(),
        ));
        let get = |id: &Key| {
            black_box(storage.get_credential(id).now_or_never().expect("a read never waits").unwrap());
        };
        ids.iter().chain(&*ids).for_each(get);
        let ours = |count: u64| {
            let mut random = Random(count);
            (0..count).for_each(|_| get(&ids[random.below(CACHED)]));
        };
        let theirs = |count: u64| {
            let mut random = Random(count);
            for _ in 0..count {
                black_box(plain.read().unwrap().get(ids[random.below(CACHED)].as_str()).cloned().unwrap());
            }
        };
        let peer = "RwLock<HashMap>";
        for (row, threads) in rows.iter().zip([1, 2]) {
            self.row(
                table,
                (row, peer),
                u64::MAX,
                |n| on_threads(threads, n, ours),
                |n| on_threads(threads, n, theirs),
            );
        }
        // The writers replace one document without pause: the plain map's in memory, ours durably.
        let replacement = Arc::new(self.credential.fields().clone());
        let plain_write = || {
            let key = ids[7].as_str().to_owned();
            plain.write().unwrap().insert(key, replacement.clone());
        };
        let our_write = || {
            self.runtime.block_on(storage.set_credential(&ids[7], &self.credential)).unwrap();
        };
        self.row(
            table,
            (&rows[2], peer),
            u64::MAX,
            |n| beside(our_write, || on_threads(2, n, ours)),
            |n| beside(plain_write, || on_threads(2, n, theirs)),
        );
        self.runtime.block_on(storage.close()).unwrap();
    }

    fn durable_sets(&self, table: &mut Table) {
        let storage = self.store("sets", Sharing::Exclusive);
        let files = self.folder.path().join("files");
        fs::create_dir(&files).unwrap();
        let json = self.credential.to_json();
        let redb = Redb::new(&self.folder.path().join("plain.redb"));
        for tasks in [1, 8, 64] {
            let ours = |count| {
                self.on_tasks(tasks, count, |n| {
                    let (storage, credential) = (storage.clone(), self.credential.clone());
                    async move { storage.set_credential(id(n as usize % 1000), credential).await.unwrap() }
                })
            };
            let row = format!("durable set, {tasks} task{}", if tasks == 1 { "" } else { "s" });
            self.row(table, (&row, "write+fsync+rename"), 400, ours, |count| {
                self.on_blocking_tasks(tasks, count, |n| {
                    let (files, json) = (files.clone(), json.clone());
                    move || write_file(&files, n as usize % 1000, n, json.as_bytes())
                })
            });
            self.row(table, (&row, "redb, one transaction per write"), 400, ours, |count| {
                self.on_blocking_tasks(tasks, count, |n| {
                    let (redb, json) = (redb.clone(), json.clone());
                    move || redb.put(id(n as usize % 1000).as_str(), json.as_bytes())
                })
            });
        }
        self.runtime.block_on(storage.close()).unwrap();
    }

    fn hot_counter(&self, table: &mut Table) {
        let storage = self.store("counter", Sharing::Exclusive);
        let redb = Redb::new(&self.folder.path().join("counter.redb"));
        let (key, field) = (Key::new("total").unwrap(), Key::new("requests").unwrap());
        self.row(
            table,
            ("increment one counter, 64 tasks", "redb, one transaction per write"),
            400,
            |count| {
                self.on_tasks(64, count, |_| {
                    let (storage, key, field) = (storage.clone(), key.clone(), field.clone());
                    async move { assert!(storage.increment_usage(key, field, 1).await.unwrap() > 0) }
                })
            },
            |count| {
                self.on_blocking_tasks(64, count, |_| {
                    let redb = redb.clone();
                    move || redb.increment("total")
                })
            },
        );
        self.runtime.block_on(storage.close()).unwrap();
    }

    /// The cost of a write must not depend on the size of the store.
    fn configs(&self, table: &mut Table) {
        let [few, many] = [10, 1000].map(|keys| {
            let storage = self.store(&format!("configs-{keys}"), Sharing::Exclusive);
            for n in 0..keys {
                self.runtime.block_on(storage.set_config(id(n), json!({ "n": n }))).unwrap();
            }
            storage
        });
        let set = |storage: &Storage<File>, count: u64| {
            let start = Instant::now();
            for n in 0..count {
                self.runtime.block_on(storage.set_config(id(n as usize % 10), json!({ "n": n }))).unwrap();
            }
            start.elapsed()
        };
        self.row(
            table,
            ("set_config with 1000 keys", "the same with 10 keys"),
            u64::MAX,
            |count| set(&many, count),
            |count| set(&few, count),
        );
        for storage in [few, many] {
            self.runtime.block_on(storage.close()).unwrap();
        }
    }

    fn batch(&self, table: &mut Table) {
        let storage = self.filled("batch", Sharing::Exclusive, 10_000);
        let items: Vec<_> = (0..1000).map(|n| (id(n * 10), credential(n))).collect();
        self.row(
            table,
            ("batch of 1000 onto 10,000", "1000 times set, one task"),
            1,
            |count| {
                let start = Instant::now();
                for _ in 0..count {
                    let report = self.runtime.block_on(storage.set_credentials(&items)).unwrap();
                    assert!(report.is_complete());
                }
                start.elapsed()
            },
            |count| {
                let start = Instant::now();
                for (id, credential) in (0..count).flat_map(|_| &items) {
                    self.runtime.block_on(storage.set_credential(id, credential)).unwrap();
                }
                start.elapsed()
            },
        );
        self.runtime.block_on(storage.close()).unwrap();
    }

    /// Runs `count` operations, shared among this many tasks, and returns the time that they took.
    fn on_tasks<F: Future<Output = ()> + Send + 'static>(
        &self,
        tasks: u64,
        count: u64,
        operation: impl Fn(u64) -> F,
    ) -> Duration {
        let start = Instant::now();
        let work: Vec<_> = (0..tasks)
            .map(|task| {
                let operations: Vec<F> = (task..count).step_by(tasks as usize).map(&operation).collect();
                self.runtime.spawn(async move {
                    for operation in operations {
                        operation.await;
                    }
                })
            })
            .collect();
        self.runtime.block_on(async {
            for task in work {
                task.await.unwrap();
            }
        });
        start.elapsed()
    }

    /// As [`on_tasks`](Self::on_tasks), for operations that block, with one thread per task.
    fn on_blocking_tasks<F: FnOnce() + Send>(
        &self,
        tasks: u64,
        count: u64,
        operation: impl Fn(u64) -> F + Sync,
    ) -> Duration {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for task in 0..tasks.min(count) {
                let operation = &operation;
                scope.spawn(move || (task..count).step_by(tasks as usize).for_each(|n| operation(n)()));
            }
        });
        start.elapsed()
    }
}

/// Runs `count` operations on each of this many threads.
fn on_threads(threads: u64, count: u64, work: impl Fn(u64) + Sync) -> Duration {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(count));
        }
    });
    start.elapsed()
}

/// Measures while another thread runs `busy` without pause.
fn beside(busy: impl Fn() + Sync, measured: impl FnOnce() -> Duration) -> Duration {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                busy();
            }
        });
        let time = measured();
        stop.store(true, Ordering::Relaxed);
        time
    })
}

/// Replaces a record's file: writes a temporary file, syncs and renames it, and syncs the directory.
fn write_file(folder: &Path, record: usize, unique: u64, json: &[u8]) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let temporary: PathBuf = folder.join(format!("{unique}-{}.tmp", COUNT.fetch_add(1, Ordering::Relaxed)));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&temporary).unwrap();
    file.write_all(json).unwrap();
    file.sync_all().unwrap();
    fs::rename(&temporary, folder.join(format!("{record}.json"))).unwrap();
    fs::File::open(folder).unwrap().sync_all().unwrap();
}

/// redb in its simplest use: one transaction per write.
#[derive(Clone)]
struct Redb(Arc<redb::Database>);

const BYTES: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("bytes");
const COUNTS: redb::TableDefinition<'_, &str, i64> = redb::TableDefinition::new("counts");

impl Redb {
    fn new(path: &Path) -> Self {
        Self(Arc::new(redb::Database::create(path).unwrap()))
    }

    fn put(&self, key: &str, value: &[u8]) {
        let write = self.0.begin_write().unwrap();
        write.open_table(BYTES).unwrap().insert(key, value).unwrap();
        write.commit().unwrap();
    }

    fn increment(&self, key: &str) {
        let write = self.0.begin_write().unwrap();
        {
            let mut counts = write.open_table(COUNTS).unwrap();
            let before = counts.get(key).unwrap().map_or(0, |count| count.value());
            counts.insert(key, before + 1).unwrap();
        }
        write.commit().unwrap();
    }
}

/// A xorshift generator, which picks the next record to read.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = (self.0 | 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 ^= self.0 >> 29;
        (self.0 % limit as u64) as usize
    }
}
