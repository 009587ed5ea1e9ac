//! The Postgres backend compared with direct use of its driver, in one run, as ratios.
//!
//! `cargo bench --bench postgres --features postgres` prints criterion's own report and then one table (with
//! `-- get` only the rows whose names contain "get"). The peer is tokio-postgres on a bb8 pool of the same
//! size, with the same JSON and the same statements, prepared once per connection. Each sample runs both, in
//! alternating order.
//!
//! The benchmark starts a server without fsync, because waiting for the disk would hide the cost of the
//! backends.

use std::{
    error::Error as StdError,
    hint::black_box,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use criterion::Criterion;
use futures_util::StreamExt;
use gateway_storage::{
    Credential, Key, Postgres, Storage,
    watch::{Event, WatchOptions},
};
use serde_json::{Map, Value, json};
use testkit::servers::postgres::Server;
use tokio::{runtime::Runtime, sync::Semaphore};
use tokio_postgres::{
    Client, NoTls, Statement,
    types::{FromSql, IsNull, ToSql, Type, to_sql_checked},
};

const POOL: u32 = 10;
const RECORDS: usize = 10_000;
const BATCH: usize = 1000;

fn main() {
    let bench = Bench::new();
    let mut table = Table::default();
    for tasks in [1, 64] {
        bench.get(&mut table, tasks);
        bench.set(&mut table, tasks);
        bench.increment(&mut table, tasks);
    }
    bench.hot_counter(&mut table);
    bench.batches(&mut table);
    bench.watched(&mut table, "without fsync", &[]);
    bench.watched(&mut table, "with fsync", &["fsync=on"]);
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

/// The time per operation, and the duration of each call.
struct Sample {
    each: f64,
    calls: Vec<Duration>,
}

impl Sample {
    fn new(whole: Duration, count: u64, calls: Vec<Duration>) -> Self {
        Self { each: whole.as_secs_f64() / count as f64, calls }
    }
}

/// The rows of the table, each a comparison of `Postgres` with a peer.
#[derive(Default)]
struct Table(Vec<Vec<String>>);

impl Table {
    fn add(&mut self, row: &str, peer: &str, mut samples: Vec<(Sample, Sample)>) {
        let mut median = |of: fn(&(Sample, Sample)) -> f64| {
            samples.sort_by(|a, b| of(a).total_cmp(&of(b)));
            of(&samples[samples.len() / 2])
        };
        let (ours, theirs) = (median(|s| s.0.each), median(|s| s.1.each));
        let ratio = median(|s| s.1.each / s.0.each);
        let shown = |seconds: f64| format!("{:.2?}", Duration::from_secs_f64(seconds));
        let mut cells = vec![row.into(), peer.into(), shown(ours), shown(theirs), format!("{ratio:.2}x")];
        let (ours, theirs): (Vec<_>, Vec<_>) = samples.into_iter().unzip();
        for side in [ours, theirs] {
            let mut calls: Vec<Duration> = side.into_iter().flat_map(|sample| sample.calls).collect();
            calls.sort_unstable();
            let at = |share: f64| calls[((calls.len() - 1) as f64 * share) as usize];
            cells.push(format!("{:.2?} / {:.2?} / {:.2?}", at(0.5), at(0.99), at(1.0)));
        }
        self.0.push(cells);
    }

    fn print(&self) {
        println!("\nTime for one operation, medians; the ratio is how many times faster Postgres is.\n");
        println!(
            "| operation | against | Postgres | peer | ratio | Postgres: p50 / p99 / slowest | peer: p50 / p99 / slowest |"
        );
        println!("|---|---|---:|---:|---:|---|---|");
        for cells in &self.0 {
            println!("| {} |", cells.join(" | "));
        }
    }
}

struct Bench {
    runtime: Runtime,
    wanted: String,
    storage: Storage<Postgres>,
    raw: bb8::Pool<Raw>,
    credential: Credential,
    server: Server,
}

impl Bench {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let wanted = std::env::args().skip(1).find(|word| !word.starts_with('-')).unwrap_or_default();
        let server = Server::start(&[]);
        let url = format!("{}&pool_size={POOL}&deadline=60s", server.url());
        let storage = runtime.block_on(Storage::<Postgres>::open(url.as_str())).unwrap();
        let items: Vec<_> = (0..RECORDS).map(|n| (id(n), credential(n))).collect();
        assert!(runtime.block_on(storage.set_credentials(&items)).unwrap().is_complete());
        let builder = bb8::Pool::builder().max_size(POOL).test_on_check_out(false);
        let raw = runtime.block_on(builder.build(Raw(server.port))).unwrap();
        Self { runtime, wanted, storage, raw, credential: credential(0), server }
    }

    fn criterion(&self) -> Criterion {
        Criterion::default()
            .sample_size(20)
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(4))
            .without_plots()
    }

    /// Measures a row with samples of at least `least` operations. `ours` and `peer` run as many operations
    /// as they are given.
    fn row(
        &self,
        table: &mut Table,
        (row, against): (&str, &str),
        least: u64,
        mut ours: impl FnMut(u64) -> Sample,
        mut peer: impl FnMut(u64) -> Sample,
    ) {
        if !row.contains(&self.wanted) {
            return;
        }
        let mut samples = Vec::new();
        self.criterion().bench_function(&format!("{row} (against {against})"), |bencher| {
            bencher.iter_custom(|count| {
                // Odd samples run ours first, even samples the peer.
                let (mine, theirs) = if samples.len() % 2 == 0 {
                    let theirs = peer(count);
                    (ours(count), theirs)
                } else {
                    (ours(count), peer(count))
                };
                let time = Duration::from_secs_f64(mine.each * count as f64);
                if count >= least {
                    samples.push((mine, theirs));
                }
                time
            });
        });
        table.add(row, against, samples);
    }

    /// Measures single calls by this many tasks.
    fn calls<O, P>(
        &self,
        table: &mut Table,
        row: &str,
        tasks: u64,
        ours: impl Fn(u64) -> O,
        peer: impl Fn(u64, Raws) -> P,
    ) where
        O: Future<Output = ()> + Send + 'static,
        P: Future<Output = ()> + Send + 'static,
    {
        let row = format!("{row}, {tasks} {}", if tasks == 1 { "task" } else { "tasks" });
        let bare = Raws { pool: self.raw.clone(), queue: None };
        self.row(
            table,
            (&row, "the driver on bb8"),
            4 * tasks,
            |count| self.on_tasks(tasks, count, &ours),
            |count| self.on_tasks(tasks, count, |n| peer(n, bare.clone())),
        );
        if tasks > 1 {
            let fair = Raws { pool: self.raw.clone(), queue: Some(Arc::new(Semaphore::new(POOL as usize))) };
            self.row(
                table,
                (&row, "the same behind a fair queue"),
                4 * tasks,
                |count| self.on_tasks(tasks, count, &ours),
                |count| self.on_tasks(tasks, count, |n| peer(n, fair.clone())),
            );
        }
    }

    fn get(&self, table: &mut Table, tasks: u64) {
        let ours = |n: u64| {
            let (storage, id) = (self.storage.clone(), id(n as usize * 7 % RECORDS));
            async move { drop(black_box(storage.get_credential(&id).await.unwrap())) }
        };
        self.calls(table, "get", tasks, ours, |n, raws| {
            let id = id(n as usize * 7 % RECORDS);
            async move {
                let raw = raws.get().await;
                let row = raw.client.query_one(&raw.get, &[&id.as_str()]).await.unwrap();
                let JsonText(text) = row.get(0);
                black_box(serde_json::from_slice::<Map<String, Value>>(text).unwrap());
            }
        });
    }

    fn set(&self, table: &mut Table, tasks: u64) {
        let ours = |n: u64| {
            let (storage, id) = (self.storage.clone(), id(n as usize * 7 % RECORDS));
            let credential = self.credential.clone();
            async move { storage.set_credential(&id, &credential).await.unwrap() }
        };
        self.calls(table, "set", tasks, ours, |n, raws| {
            let (id, credential) = (id(n as usize * 7 % RECORDS), self.credential.clone());
            async move {
                let text = serde_json::to_vec(credential.fields()).unwrap();
                let raw = raws.get().await;
                let changed = raw.client.execute(&raw.set, &[&id.as_str(), &JsonText(&text)]).await.unwrap();
                assert_eq!(changed, 1);
            }
        });
    }

    /// Writes to a store that another handle watches, compared with one that nothing watches, and with one
    /// whose writes notify in their own transaction.
    fn watched(&self, table: &mut Table, disk: &str, settings: &[&str]) {
        let row = format!("set while watched, {disk}, 64 tasks");
        if !row.contains(&self.wanted) {
            return;
        }
        let server = Server::start(settings);
        let open = |schema: &str| {
            let url = format!("{}&pool_size={POOL}&deadline=60s&schema={schema}", server.url());
            self.runtime.block_on(Storage::<Postgres>::open(url.as_str())).unwrap()
        };
        let [plain, watched, notifying] = ["plain", "watched", "notifying"].map(open);
        let watch = self.runtime.spawn(watch(open("watched"), watched.clone()));
        self.runtime.block_on(async {
            let url = format!("host=127.0.0.1 port={} user=tester dbname=postgres", server.port);
            let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
            let connection = tokio::spawn(connection);
            client.batch_execute(NOTIFY_IN_THE_WRITE).await.unwrap();
            connection.abort();
        });
        let set = |storage: Storage<Postgres>| {
            let credential = self.credential.clone();
            move |n: u64| {
                let (storage, id) = (storage.clone(), id(n as usize * 7 % RECORDS));
                let credential = credential.clone();
                async move { storage.set_credential(&id, &credential).await.unwrap() }
            }
        };
        let (plain, watched, notifying) = (set(plain), set(watched), set(notifying));
        self.on_tasks(64, 2 * RECORDS as u64, &plain);
        self.on_tasks(64, 2 * RECORDS as u64, &watched);
        self.on_tasks(64, 2 * RECORDS as u64, &notifying);
        // The writing handle learns meanwhile that the store is watched.
        std::thread::sleep(Duration::from_secs(2));
        let ours = |count| self.on_tasks(64, count, &watched);
        self.row(table, (&row, "not watched"), 64, ours, |count| self.on_tasks(64, count, &plain));
        self.row(table, (&row, "NOTIFY in the write"), 64, ours, |count| {
            self.on_tasks(64, count, &notifying)
        });
        let mut late = self.runtime.block_on(watch).unwrap();
        late.sort_unstable();
        let at = |share: f64| late[((late.len() - 1) as f64 * share) as usize];
        println!("a watch tells a change, {disk}: p50 {:.2?}, p99 {:.2?}", at(0.5), at(0.99));
    }

    fn increment(&self, table: &mut Table, tasks: u64) {
        self.increments(table, "increment", tasks, 1000);
    }

    fn hot_counter(&self, table: &mut Table) {
        self.increments(table, "increment one counter", 64, 1);
    }

    fn increments(&self, table: &mut Table, row: &str, tasks: u64, counters: u64) {
        let field = Key::new("requests").unwrap();
        let ours = |n: u64| {
            let (storage, key, field) = (self.storage.clone(), id((n % counters) as usize), field.clone());
            async move { assert!(storage.increment_usage(&key, &field, 1).await.unwrap() > 0) }
        };
        self.calls(table, row, tasks, ours, |n, raws| {
            let (key, field) = (id((n % counters) as usize), field.clone());
            async move {
                let raw = raws.get().await;
                let counter: [&(dyn ToSql + Sync); 3] = [&key.as_str(), &field.as_str(), &1_i64];
                let row = raw.client.query_one(&raw.increment, &counter).await.unwrap();
                assert!(row.get::<_, i64>(0) > 0);
            }
        });
    }

    fn batches(&self, table: &mut Table) {
        let ids: Vec<Key> = (0..BATCH).map(|n| id(n * 10)).collect();
        let items: Vec<_> = ids.iter().enumerate().map(|(n, id)| (id.clone(), credential(n))).collect();
        let texts = || -> Vec<Vec<u8>> {
            items.iter().map(|(_, credential)| serde_json::to_vec(credential.fields()).unwrap()).collect()
        };
        let names: Vec<&str> = ids.iter().map(Key::as_str).collect();
        let raws = Raws { pool: self.raw.clone(), queue: None };
        let set = |count| {
            self.in_a_row(count, async || {
                assert!(self.storage.set_credentials(&items).await.unwrap().is_complete());
            })
        };
        let raw_set = async || {
            let texts = texts();
            let texts: Vec<JsonText<'_>> = texts.iter().map(|text| JsonText(text)).collect();
            let raw = raws.get().await;
            let set = raw.client.execute(&raw.set_many, &[&names, &texts]).await.unwrap();
            assert_eq!(set, BATCH as u64);
        };
        let row = "batch set of 1000";
        self.row(table, (row, "the driver, unnest"), 1, set, |count| self.in_a_row(count, raw_set));
        self.row(table, (row, "a loop of single upserts"), 1, set, |count| {
            self.in_a_row(count, async || {
                let raw = raws.get().await;
                for (name, text) in names.iter().zip(texts()) {
                    raw.client.execute(&raw.set, &[name, &JsonText(&text)]).await.unwrap();
                }
            })
        });
        self.row(table, (row, "COPY into a temporary table"), 1, set, |count| {
            self.in_a_row(count, async || {
                let raw = raws.get().await;
                copy(&raw.client, &names, &texts()).await;
            })
        });
        self.row(
            table,
            ("batch get of 1000", "the driver, ANY"),
            1,
            |count| {
                self.in_a_row(count, async || {
                    assert_eq!(self.storage.get_credentials(&ids).await.unwrap().values.len(), BATCH);
                })
            },
            |count| {
                self.in_a_row(count, async || {
                    let raw = raws.get().await;
                    let rows = raw.client.query(&raw.get_many, &[&names]).await.unwrap();
                    let found: std::collections::BTreeMap<String, Map<String, Value>> = rows
                        .iter()
                        .map(|row| {
                            let JsonText(text) = row.get(1);
                            (row.get(0), serde_json::from_slice(text).unwrap())
                        })
                        .collect();
                    assert_eq!(found.len(), BATCH);
                })
            },
        );
        // Only the deletes are measured. The records are stored again before each one.
        self.row(
            table,
            ("batch delete of 1000", "the driver, one DELETE"),
            1,
            |count| {
                self.after_each(count, raw_set, async || {
                    assert!(self.storage.delete_credentials(&ids).await.unwrap().is_complete());
                })
            },
            |count| {
                self.after_each(count, raw_set, async || {
                    let raw = raws.get().await;
                    assert_eq!(raw.client.query(&raw.delete_many, &[&names]).await.unwrap().len(), BATCH);
                })
            },
        );
    }

    /// Runs `count` operations, shared among this many tasks.
    fn on_tasks<F: Future<Output = ()> + Send + 'static>(
        &self,
        tasks: u64,
        count: u64,
        operation: impl Fn(u64) -> F,
    ) -> Sample {
        let start = Instant::now();
        let work: Vec<_> = (0..tasks)
            .map(|task| {
                let operations: Vec<F> = (task..count).step_by(tasks as usize).map(&operation).collect();
                self.runtime.spawn(async move {
                    let mut calls = Vec::with_capacity(operations.len());
                    for operation in operations {
                        let start = Instant::now();
                        operation.await;
                        calls.push(start.elapsed());
                    }
                    calls
                })
            })
            .collect();
        let calls = self.runtime.block_on(async {
            let mut calls = Vec::new();
            for task in work {
                calls.extend(task.await.unwrap());
            }
            calls
        });
        Sample::new(start.elapsed(), count, calls)
    }

    fn in_a_row(&self, count: u64, operation: impl AsyncFn()) -> Sample {
        self.after_each(count, async || {}, operation)
    }

    /// Runs `prepare` before each `operation`, and measures only the operation.
    fn after_each(&self, count: u64, prepare: impl AsyncFn(), operation: impl AsyncFn()) -> Sample {
        self.runtime.block_on(async {
            let mut calls = Vec::new();
            for _ in 0..count {
                prepare().await;
                let start = Instant::now();
                operation().await;
                calls.push(start.elapsed());
            }
            Sample::new(calls.iter().sum(), count, calls)
        })
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(self.runtime.block_on(self.storage.clone().close()));
        let _ = &self.server;
    }
}

const NOTIFY_IN_THE_WRITE: &str = "CREATE FUNCTION notifying.notify() RETURNS trigger LANGUAGE plpgsql AS \
    $$ BEGIN PERFORM pg_notify('changes', ''); RETURN NULL; END $$; \
    CREATE TRIGGER notify AFTER INSERT OR UPDATE ON notifying.credentials \
    FOR EACH STATEMENT EXECUTE FUNCTION notifying.notify()";

/// Watches until there are no writes, and then measures how late single changes are told.
async fn watch(reader: Storage<Postgres>, writer: Storage<Postgres>) -> Vec<Duration> {
    let mut events = pin!(reader.watch(WatchOptions::default()));
    let mut quiet = 0;
    while quiet < 5 {
        match events.next().await.unwrap().unwrap() {
            Event::Idle { .. } => quiet += 1,
            _ => quiet = 0,
        }
    }
    let mut late = Vec::new();
    for n in 0..500 {
        let name = Key::new(&format!("late-{n}")).unwrap();
        writer.set_credential(&name, &credential(n)).await.unwrap();
        let written = Instant::now();
        loop {
            if let Event::Changed { key, .. } = events.next().await.unwrap().unwrap()
                && key.as_ref() == Some(&name)
            {
                break;
            }
        }
        late.push(written.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    late
}

/// The usual code for a large batch: copies the rows into a temporary table, and inserts them from there.
async fn copy(client: &Client, names: &[&str], texts: &[Vec<u8>]) {
    client
        .batch_execute("BEGIN; CREATE TEMPORARY TABLE incoming (id text, value json) ON COMMIT DROP")
        .await
        .unwrap();
    let sink = client.copy_in("COPY incoming (id, value) FROM STDIN BINARY").await.unwrap();
    let writer = tokio_postgres::binary_copy::BinaryCopyInWriter::new(sink, &[Type::TEXT, Type::JSON]);
    let mut writer = pin!(writer);
    for (name, text) in names.iter().zip(texts) {
        writer.as_mut().write(&[name, &JsonText(text)]).await.unwrap();
    }
    writer.finish().await.unwrap();
    client
        .batch_execute(
            "INSERT INTO gateway_storage.credentials SELECT id, value FROM incoming \
             ON CONFLICT (id) DO UPDATE SET value = excluded.value; COMMIT",
        )
        .await
        .unwrap();
}

/// The plain driver's pool, with or without a fair queue in front.
#[derive(Clone)]
struct Raws {
    pool: bb8::Pool<Raw>,
    queue: Option<Arc<Semaphore>>,
}

struct RawLease<'p> {
    connection: bb8::PooledConnection<'p, Raw>,
    _permit: Option<tokio::sync::SemaphorePermit<'p>>,
}

impl std::ops::Deref for RawLease<'_> {
    type Target = RawConnection;

    fn deref(&self) -> &RawConnection {
        &self.connection
    }
}

impl Raws {
    async fn get(&self) -> RawLease<'_> {
        let permit = match &self.queue {
            Some(queue) => Some(queue.acquire().await.unwrap()),
            None => None,
        };
        RawLease { connection: self.pool.get().await.unwrap(), _permit: permit }
    }
}

struct Raw(u16);

/// A connection with its prepared statements.
struct RawConnection {
    client: Client,
    get: Statement,
    set: Statement,
    increment: Statement,
    get_many: Statement,
    set_many: Statement,
    delete_many: Statement,
}

impl bb8::ManageConnection for Raw {
    type Connection = RawConnection;
    type Error = tokio_postgres::Error;

    async fn connect(&self) -> Result<RawConnection, tokio_postgres::Error> {
        let url = format!("host=127.0.0.1 port={} user=tester dbname=postgres", self.0);
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
        tokio::spawn(connection);
        let prepare = |text: &'static str| client.prepare(text);
        Ok(RawConnection {
            get: prepare("SELECT value FROM gateway_storage.credentials WHERE id = $1").await?,
            set: prepare(
                "INSERT INTO gateway_storage.credentials (id, value) VALUES ($1, $2) \
                 ON CONFLICT (id) DO UPDATE SET value = excluded.value",
            )
            .await?,
            increment: prepare(
                "INSERT INTO gateway_storage.usage AS counter (key, field, count) VALUES ($1, $2, $3) \
                 ON CONFLICT (key, field) DO UPDATE SET count = counter.count + excluded.count RETURNING count",
            )
            .await?,
            get_many: prepare("SELECT id, value FROM gateway_storage.credentials WHERE id = ANY($1)").await?,
            set_many: prepare(
                "INSERT INTO gateway_storage.credentials SELECT * FROM unnest($1::text[], $2::json[]) \
                 ON CONFLICT (id) DO UPDATE SET value = excluded.value",
            )
            .await?,
            delete_many: prepare("DELETE FROM gateway_storage.credentials WHERE id = ANY($1) RETURNING id").await?,
            client,
        })
    }

    async fn is_valid(&self, _: &mut RawConnection) -> Result<(), tokio_postgres::Error> {
        Ok(())
    }

    fn has_broken(&self, connection: &mut RawConnection) -> bool {
        connection.client.is_closed()
    }
}

#[derive(Debug)]
struct JsonText<'j>(&'j [u8]);

impl ToSql for JsonText<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        out.extend_from_slice(self.0);
        Ok(IsNull::No)
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::JSON
    }

    to_sql_checked!();
}

impl<'j> FromSql<'j> for JsonText<'j> {
    fn from_sql(_: &Type, text: &'j [u8]) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        Ok(Self(text))
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::JSON
    }
}
