//! The Redis backend compared with direct use of the driver, in one run, as ratios.
//!
//! `cargo bench --bench redis --features redis` starts a `redis-server` and prints, after criterion's report,
//! one table (with `-- get` only the rows whose names contain "get"). The driver is used in three ways: one
//! connection shared by all tasks, its fastest use; the same with the driver's default settings, without
//! TCP_NODELAY; and a bb8 pool of ten connections, the most common use. All read and write the same JSON as
//! ours.

mod contest;

use std::{sync::Arc, time::Duration};

use contest::{Contender, Contest, Lap, credential, of, on_tasks};
use gateway_storage::{Credential, Increment, Key, Redis, Storage};
use redis::{
    AsyncConnectionConfig, Client, IntoConnectionInfo, aio::MultiplexedConnection, cmd, io::tcp::TcpSettings,
    pipe,
};
use serde_json::{Map, Value};
use testkit::servers::redis::Server;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const RECORDS: u64 = 1000;

fn main() {
    let server = Server::start(&["--appendonly", "no"]);
    let mut contest = Contest::new("Redis. The ratio is how many times faster ours is.");
    let bench = Bench::new(&contest, &server.url());
    for tasks in [1, 64] {
        bench.get(&mut contest, tasks);
        bench.set(&mut contest, tasks);
        bench.increment(&mut contest, tasks);
    }
    bench.batches(&mut contest);
    bench.connections(&mut contest, &server.url());
    contest.print();
}

struct Bench {
    runtime: Arc<tokio::runtime::Runtime>,
    ours: Storage<Redis>,
    shared: MultiplexedConnection,
    nagling: MultiplexedConnection,
    pool: bb8::Pool<Client>,
    names: Arc<Vec<String>>,
    ids: Arc<Vec<Key>>,
    credential: Credential,
}

impl Bench {
    fn new(contest: &Contest, url: &str) -> Self {
        let runtime = contest.runtime.clone();
        let ids: Arc<Vec<Key>> =
            Arc::new((0..RECORDS).map(|n| Key::new(&format!("user+{n}@example.com")).unwrap()).collect());
        let names = Arc::new(ids.iter().map(|id| format!("gcli2api:cred:{}", id.as_str())).collect());
        // The same settings as ours.
        let settings = TcpSettings::default().set_nodelay(true);
        let client = Client::open(url.into_connection_info().unwrap().set_tcp_settings(settings)).unwrap();
        let defaults = Client::open(url).unwrap();
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(10)));
        let (ours, shared, nagling, pool) = runtime.block_on(async {
            let ours = Storage::<Redis>::open(url).await.unwrap();
            let shared = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
            let nagling = defaults.get_multiplexed_async_connection_with_config(&config).await.unwrap();
            let pool = bb8::Pool::builder()
                .max_size(10)
                .min_idle(10)
                .test_on_check_out(false)
                .connection_timeout(Duration::from_secs(60))
                .build(client)
                .await
                .unwrap();
            (ours, shared, nagling, pool)
        });
        let credential = Credential::try_from(Value::Object(credential())).unwrap();
        let bench = Self { runtime, ours, shared, nagling, pool, names, ids, credential };
        bench.runtime.block_on(async {
            let all: Vec<_> = bench.ids.iter().map(|id| (id.clone(), bench.credential.clone())).collect();
            assert!(bench.ours.set_credentials(&all).await.unwrap().is_complete());
        });
        bench
    }

    fn contender<'c, F, T>(
        &'c self,
        who: &'static str,
        tasks: u64,
        operation: impl Fn(u64) -> F + Clone + Send + 'static,
    ) -> Contender<'c>
    where
        F: Future<Output = T> + Send + 'static,
    {
        (who, Box::new(move |count| on_tasks(&self.runtime, tasks, count, operation.clone())))
    }

    /// The same request over each of the shared connections, and over one of the pool.
    fn raw<'c, F, T>(
        &'c self,
        tasks: u64,
        request: impl Fn(MultiplexedConnection, u64) -> F + Clone + Send + Sync + 'static,
    ) -> [Contender<'c>; 3]
    where
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        let (shared, nagling, pool) = (self.shared.clone(), self.nagling.clone(), self.pool.clone());
        let on_shared = {
            let request = request.clone();
            self.contender("shared connection", tasks, move |n| request(shared.clone(), n))
        };
        let on_nagling = {
            let request = request.clone();
            self.contender("the same with TCP_NODELAY off", tasks, move |n| request(nagling.clone(), n))
        };
        let on_pool = self.contender("bb8 pool of ten", tasks, move |n| {
            let (pool, request) = (pool.clone(), request.clone());
            async move {
                let connection = pool.get().await.unwrap();
                // The connection returns to the pool after the reply.
                request(connection.clone(), n).await
            }
        });
        [on_shared, on_nagling, on_pool]
    }

    fn get(&self, contest: &mut Contest, tasks: u64) {
        let names = self.names.clone();
        let ours = Arc::new((self.ours.clone(), self.ids.clone()));
        let mine = self.contender("ours", tasks, move |n| {
            let ours = ours.clone();
            async move { ours.0.get_credential(&ours.1[(n % RECORDS) as usize]).await.unwrap() }
        });
        let raw = self.raw(tasks, move |mut connection, n| {
            let names = names.clone();
            async move {
                let name = &names[(n % RECORDS) as usize];
                let text: Vec<u8> = cmd("GET").arg(name).query_async(&mut connection).await.unwrap();
                serde_json::from_slice::<Map<String, Value>>(&text).unwrap()
            }
        });
        contest.row(&format!("get, {}", of(tasks)), [mine].into_iter().chain(raw).collect());
    }

    fn set(&self, contest: &mut Contest, tasks: u64) {
        let (names, fields) = (self.names.clone(), Arc::new(self.credential.fields().clone()));
        let ours = Arc::new((self.ours.clone(), self.ids.clone(), self.credential.clone()));
        let mine = self.contender("ours", tasks, move |n| {
            let ours = ours.clone();
            async move { ours.0.set_credential(&ours.1[(n % RECORDS) as usize], &ours.2).await.unwrap() }
        });
        let raw = self.raw(tasks, move |mut connection, n| {
            let (names, fields) = (names.clone(), fields.clone());
            async move {
                let name = &names[(n % RECORDS) as usize];
                let text = serde_json::to_vec(&*fields).unwrap();
                cmd("SET").arg(name).arg(text).exec_async(&mut connection).await.unwrap();
            }
        });
        contest.row(&format!("set, {}", of(tasks)), [mine].into_iter().chain(raw).collect());
    }

    fn increment(&self, contest: &mut Contest, tasks: u64) {
        let ours = Arc::new((self.ours.clone(), Key::new("total").unwrap(), Key::new("requests").unwrap()));
        let mine = self.contender("ours", tasks, move |_| {
            let ours = ours.clone();
            async move { ours.0.increment_usage(&ours.1, &ours.2, 1).await.unwrap() }
        });
        let raw = self.raw(tasks, |mut connection, _| async move {
            let increment = cmd("HINCRBY").arg("gcli2api:usage:raw").arg("requests").arg(1).to_owned();
            increment.query_async::<i64>(&mut connection).await.unwrap()
        });
        contest.row(&format!("increment, {}", of(tasks)), [mine].into_iter().chain(raw).collect());
    }

    fn batches(&self, contest: &mut Contest) {
        let (names, fields) = (self.names.clone(), Arc::new(self.credential.fields().clone()));
        let all: Arc<Vec<_>> =
            Arc::new(self.ids.iter().map(|id| (id.clone(), self.credential.clone())).collect());
        let ours = self.ours.clone();
        let mine = self.contender("ours", 1, move |_| {
            let (ours, all) = (ours.clone(), all.clone());
            async move { assert!(ours.set_credentials(&*all).await.unwrap().is_complete()) }
        });
        let raw = self.raw(1, move |mut connection, _| {
            let (names, fields) = (names.clone(), fields.clone());
            async move {
                let mut mset = cmd("MSET");
                for name in &*names {
                    mset.arg(name).arg(serde_json::to_vec(&*fields).unwrap());
                }
                mset.exec_async(&mut connection).await.unwrap();
            }
        });
        contest.row("set of 1000", [mine].into_iter().chain(raw).collect());

        let (ours, ids, names) = (self.ours.clone(), self.ids.clone(), self.names.clone());
        let mine = self.contender("ours", 1, move |_| {
            let (ours, ids) = (ours.clone(), ids.clone());
            async move { ours.get_credentials(&*ids).await.unwrap() }
        });
        let raw = self.raw(1, move |mut connection, _| {
            let names = names.clone();
            async move {
                let texts: Vec<Vec<u8>> =
                    cmd("MGET").arg(&*names).query_async(&mut connection).await.unwrap();
                let read = |text: &Vec<u8>| serde_json::from_slice::<Map<String, Value>>(text).unwrap();
                let found: std::collections::BTreeMap<_, _> =
                    names.iter().cloned().zip(texts.iter().map(read)).collect();
                found
            }
        });
        contest.row("get of 1000", [mine].into_iter().chain(raw).collect());

        let field = Key::new("requests").unwrap();
        let steps: Arc<Vec<_>> = Arc::new(self.ids.iter().map(|id| Increment::new(id, &field, 1)).collect());
        let (ours, names) = (self.ours.clone(), self.names.clone());
        let mine = self.contender("ours", 1, move |_| {
            let (ours, steps) = (ours.clone(), steps.clone());
            async move { assert!(ours.increment_many(&steps).await.unwrap().is_complete()) }
        });
        let raw = self.raw(1, move |mut connection, _| {
            let names = names.clone();
            async move {
                let mut many = pipe();
                for name in &*names {
                    many.cmd("HINCRBY").arg(format!("{name}:usage")).arg("requests").arg(1);
                }
                many.query_async::<Vec<i64>>(&mut connection).await.unwrap()
            }
        });
        contest.row("increment of 1000", [mine].into_iter().chain(raw).collect());
    }

    /// Gets by 64 tasks, alone and while two more tasks read a cache value of 1 MiB, over two shared
    /// connections and over one. Then the same over a network that carries some 16 MB/s per connection.
    fn connections(&self, contest: &mut Contest, url: &str) {
        self.connections_to(contest, url, "");
        let slow = self.runtime.block_on(slow_network(url.trim_start_matches("redis://").to_owned()));
        self.connections_to(contest, &format!("redis://{slow}"), ", slow network");
    }

    fn connections_to(&self, contest: &mut Contest, url: &str, network: &str) {
        let open = |shared: u32| {
            let url = format!("{url}?min_idle={shared}");
            self.runtime.block_on(Storage::<Redis>::open(url.as_str())).unwrap()
        };
        let (two, one) = (open(2), open(1));
        let large = vec![0; 1 << 20];
        let ttl = Duration::from_secs(24 * 60 * 60);
        self.runtime.block_on(self.ours.set_cache("large", &large, ttl)).unwrap();
        let contenders = [
            ("2 connections", &two, false),
            ("2, beside large values", &two, true),
            ("1 connection", &one, false),
            ("1, beside large values", &one, true),
        ];
        let contenders = contenders.map(|(name, store, beside_large)| -> Contender<'_> {
            (name, Box::new(move |count| self.gets(store, &self.ids, count, beside_large)))
        });
        contest.row(&format!("connections: get, 64 tasks{network}"), contenders.into());
    }

    fn gets(&self, store: &Storage<Redis>, ids: &Arc<Vec<Key>>, count: u64, beside_large: bool) -> Lap {
        let readers: Vec<_> = (0..if beside_large { 2 } else { 0 })
            .map(|_| {
                let store = store.clone();
                self.runtime.spawn(async move {
                    loop {
                        assert_eq!(store.get_cache("large").await.unwrap().len(), 1 << 20);
                    }
                })
            })
            .collect();
        let (store, ids) = (store.clone(), ids.clone());
        let lap = on_tasks(&self.runtime, 64, count, move |n| {
            let (store, ids) = (store.clone(), ids.clone());
            async move { store.get_credential(&ids[(n % RECORDS) as usize]).await.unwrap() }
        });
        readers.iter().for_each(tokio::task::JoinHandle::abort);
        lap
    }
}

/// A relay that passes replies slowly. Returns its address.
async fn slow_network(server: String) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&server).await.unwrap();
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            let (mut requests, mut to_client) = client.into_split();
            let (mut replies, mut to_server) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut requests, &mut to_server).await });
            tokio::spawn(async move {
                let mut piece = vec![0; 16 << 10];
                while let Ok(length @ 1..) = replies.read(&mut piece).await {
                    to_client.write_all(&piece[..length]).await?;
                    if length == piece.len() {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
                Ok::<(), std::io::Error>(())
            });
        }
    });
    addr
}
