//! Watches: what other programs change is told, and a gap is never silent.

use std::pin::Pin;

use futures_util::{FutureExt, TryStreamExt};
use gateway_storage::{
    Error, OptionalExt,
    history::DocumentKind::{self, Config, Credential as OfCredentials},
    list::ListOptions,
    revision::Conditional,
    watch::{Event, WatchOptions},
};

use super::*;

const LATEST: Duration = Duration::from_secs(60);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LATEST, future).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// A watch after its first Resync.
pub(super) struct Watched<'s>(Pin<Box<dyn futures_core::Stream<Item = Result<Event>> + Send + 's>>);

type Change = (DocumentKind, Option<Key>);

impl<'s> Watched<'s> {
    pub(super) async fn begin(storage: &'s Storage<Redis>) -> Self {
        let mut watched = Self(Box::pin(storage.watch(WatchOptions::default())));
        assert!(matches!(watched.next().await, Event::Resync { .. }));
        watched
    }

    async fn next(&mut self) -> Event {
        soon("an event", self.0.try_next()).await.unwrap().unwrap()
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&Event) -> bool) {
        soon(what, async { while !holds(&self.next().await) {} }).await;
    }

    async fn resync(&mut self) {
        self.until("a Resync", |event| matches!(event, Event::Resync { .. })).await;
    }

    async fn idle(&mut self) {
        self.until("Idle", |event| matches!(event, Event::Idle { .. })).await;
    }

    /// Waits for this change. Others may come before it.
    pub(super) async fn told(&mut self, kind: DocumentKind, id: Option<&str>) {
        let change = (kind, id.map(key));
        self.until("a change", |event| match event {
            Event::Changed { kind, key, .. } => (*kind, key.clone()) == change,
            _ => false,
        })
        .await;
    }

    /// The changes until nothing was missed for one whole interval.
    async fn changes(&mut self) -> Vec<Change> {
        let (mut changes, mut idles) = (Vec::new(), 0);
        while idles < 2 {
            match self.next().await {
                Event::Changed { kind, key, .. } => changes.push((kind, key)),
                Event::Idle { .. } => idles += 1,
                Event::Resync { .. } => panic!("a Resync after {changes:?}"),
            }
        }
        changes
    }

    async fn error(mut self) -> Error {
        soon("the error", async {
            loop {
                match self.0.try_next().await {
                    Ok(event) => assert!(event.is_some(), "a watch ended without an error"),
                    Err(error) => return error,
                }
            }
        })
        .await
    }
}

fn number_of(text: &str, name: &str) -> u64 {
    let number = text.lines().find_map(|line| line.strip_prefix(name)?.split([',', '\r']).next());
    number.map_or(0, |number| number.parse().unwrap())
}

/// How many connections are told what changes.
fn tracking(raw: &mut Raw) -> u64 {
    number_of(&raw.words("INFO clients"), "tracking_clients:")
}

#[tokio::test]
async fn tells_what_this_store_and_other_programs_change() -> Result {
    let server = Server::start(&[]);
    let (mut raw, storage) = (server.raw(), Storage::<Redis>::open(server.url().as_str()).await?);
    let mut watched = Watched::begin(&storage).await;
    storage.set_credential("own", json!({})).await?;
    watched.told(OfCredentials, Some("own")).await;
    storage.set_config("c", json!(1)).await?;
    watched.told(Config, None).await;
    // As the Go program and people write.
    for (command, change) in [
        ("SET gcli2api:cred:a {}", (OfCredentials, Some("a"))),
        ("HSET gcli2api:config c 2", (Config, None)),
        ("HDEL gcli2api:config c", (Config, None)),
        ("RENAME gcli2api:cred:a gcli2api:cred:b", (OfCredentials, Some("b"))),
        ("DEL gcli2api:cred:b", (OfCredentials, Some("b"))),
        ("SET gcli2api:cred: {}", (OfCredentials, None)),
        ("SET gcli2api:cred:brief {} PX 50", (OfCredentials, Some("brief"))),
    ] {
        raw.words(command);
        watched.told(change.0, change.1).await;
    }
    // It expires.
    watched.told(OfCredentials, Some("brief")).await;
    storage.delete_credential("own").await?;
    watched.told(OfCredentials, Some("own")).await;
    storage.clone().close().await?;
    assert_eq!(watched.error().await.kind(), ErrorKind::Closed);
    Ok(())
}

#[tokio::test]
async fn tells_nothing_else_and_each_once() -> Result {
    let server = Server::start(&[]);
    let (mut raw, storage) = (server.raw(), Storage::<Redis>::open(server.url().as_str()).await?);
    let mut watched = Watched::begin(&storage).await;
    storage.increment_usage("u", "n", 1).await?;
    storage.set_cache("x", "y", Duration::from_secs(60)).await?;
    raw.words("SET gcli2api:configuration 1");
    raw.words("SET other:cred:a {}");
    raw.ask(&[b"EVAL", b"for n = 1, 100 do redis.call('HSET', 'gcli2api:config', n, n) end", b"0"]);
    raw.words("MSET gcli2api:cred:a {} gcli2api:cred:b {}");
    let mut changes = watched.changes().await;
    changes.sort_by_key(|(_, key)| key.clone());
    let of = |id| (OfCredentials, Some(key(id)));
    assert_eq!(changes, [(Config, None), of("a"), of("b")]);
    drop(watched);
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_is_a_resync() -> Result {
    let server = Server::start(&[]);
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    let mut watched = Watched::begin(&storage).await;
    for command in ["FLUSHALL", "FLUSHDB", "FLUSHALL", "FLUSHDB"] {
        storage.set_credential("a", json!({})).await?;
        watched.told(OfCredentials, Some("a")).await;
        // The next Idle is due soon, and must not come before the Resync: the data is gone.
        watched.idle().await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        while watched.0.try_next().now_or_never().is_some() {}
        server.raw().words(command);
        let event = watched.next().await;
        assert!(matches!(event, Event::Resync { .. }), "{event:?} after {command}");
    }
    drop(watched);
    storage.close().await
}

/// What is written while the watch is cut off, and at once after the Resync.
async fn recovers(watched: &mut Watched<'_>, mut raw: Raw) {
    watched.resync().await;
    raw.words("SET gcli2api:cred:after {}");
    watched.told(OfCredentials, Some("after")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_is_a_resync() -> Result {
    let mut server = Server::start(&[]);
    let proxy = Proxy::start(server.addr()).await;
    let storage = Storage::<Redis>::open(format!("redis://{}", proxy.addr).as_str()).await?;
    let mut watched = Watched::begin(&storage).await;
    while proxy.cut_one() > 0 {}
    recovers(&mut watched, server.raw()).await;
    // The connection of `raw` ends, too.
    drop(
        Command::new("redis-cli")
            .args(["-p", &server.port.to_string(), "CLIENT", "KILL", "TYPE", "normal"])
            .output(),
    );
    recovers(&mut watched, server.raw()).await;
    server.kill();
    server.restart();
    recovers(&mut watched, server.raw()).await;
    // Both ends stay open. A reply is missing, so nothing says that nothing was missed.
    proxy.fall_silent();
    tokio::time::sleep(Duration::from_millis(300)).await;
    while watched.0.try_next().now_or_never().is_some() {}
    server.raw().words("SET gcli2api:cred:unheard {}");
    let event = watched.next().await;
    assert!(matches!(event, Event::Resync { .. }), "{event:?}");
    recovers_now(&mut watched, server.raw()).await;
    drop(watched);
    storage.close().await
}

async fn recovers_now(watched: &mut Watched<'_>, mut raw: Raw) {
    raw.words("SET gcli2api:cred:now {}");
    watched.told(OfCredentials, Some("now")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_becomes_a_replica_is_left() -> Result {
    let server = Server::start(&[]);
    let (mut raw, storage) = (server.raw(), Storage::<Redis>::open(server.url().as_str()).await?);
    let mut watched = Watched::begin(&storage).await;
    raw.words("REPLICAOF 127.0.0.1 1");
    servers::until("the replica is left", || tracking(&mut raw) == 0);
    raw.words("REPLICAOF NO ONE");
    watched.resync().await;
    drop(watched);
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follows_a_failover_of_sentinels() -> Result {
    let mut sentinels = Sentinels::start();
    let storage = Storage::<Redis>::open(format!("{}?dial_timeout=1s", sentinels.url()).as_str()).await?;
    let mut watched = Watched::begin(&storage).await;
    storage.set_credential("before", json!({})).await?;
    watched.told(OfCredentials, Some("before")).await;
    let sentinels = tokio::task::spawn_blocking(move || {
        sentinels.fail_over();
        sentinels
    });
    let sentinels = sentinels.await.unwrap();
    recovers(&mut watched, sentinels.servers[1].raw()).await;
    drop(watched);
    storage.close().await
}

/// The old master is cut off from the sentinels only: it stays a master, and our connections to it stay open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaves_a_master_that_the_sentinels_have_replaced() -> Result {
    let sentinels = Sentinels::start();
    let storage = Storage::<Redis>::open(sentinels.url().as_str()).await?;
    let mut watched = Watched::begin(&storage).await;
    storage.list_credentials().await?;
    let mut new = sentinels.servers[1].raw();
    new.words("REPLICAOF NO ONE");
    for sentinel in &sentinels.sentinels {
        sentinel.raw().words("SENTINEL REMOVE mymaster");
        sentinel.raw().words(&format!("SENTINEL MONITOR mymaster 127.0.0.1 {} 2", sentinels.servers[1].port));
    }
    new.words("SET gcli2api:cred:elsewhere {}");
    watched.resync().await;
    // Reads after the Resync reach the new master, over all connections.
    storage.get_credential("elsewhere").await?;
    assert_eq!(storage.list_credentials().await?.len(), 1);
    recovers_now(&mut watched, new).await;
    drop(watched);
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tells_the_changes_of_all_masters() -> Result {
    let mut cluster = Cluster::start(3, 1);
    let storage = Storage::<Redis>::open(cluster.url().as_str()).await?;
    let other = Storage::<Redis>::open(cluster.url().as_str()).await?;
    let mut watched = Watched::begin(&storage).await;
    let all = async |watched: &mut Watched<'_>| -> Result {
        for n in 0..30 {
            other.set_credential(format!("id-{n}"), json!({})).await?;
            watched.told(OfCredentials, Some(&format!("id-{n}"))).await;
        }
        other.set_config("c", json!(1)).await?;
        watched.told(Config, None).await;
        Ok(())
    };
    all(&mut watched).await?;
    for node in &cluster.nodes {
        let is_master = node.raw().words("ROLE").starts_with("master");
        assert_eq!(tracking(&mut node.raw()), u64::from(is_master));
    }
    // One master is flushed.
    cluster.nodes[1].raw().words("FLUSHALL");
    watched.resync().await;
    cluster.nodes[0].kill();
    watched.resync().await;
    soon("the new master accepts writes", async { while other.health().await.is_err() {} }).await;
    all(&mut watched).await?;
    drop(watched);
    other.close().await?;
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_master_of_a_cluster_is_noticed() -> Result {
    let mut cluster = Cluster::start(3, 0);
    let storage = Storage::<Redis>::open(cluster.url().as_str()).await?;
    let mut watched = Watched::begin(&storage).await;
    let bus = servers::free_port().to_string();
    cluster.nodes.push(Server::start(&["--cluster-enabled", "yes", "--cluster-port", &bus]));
    let cluster = tokio::task::spawn_blocking(move || {
        let [new, old] = [&cluster.nodes[3], &cluster.nodes[0]].map(Server::addr);
        let added = Command::new("redis-cli").args(["--cluster", "add-node", &new, &old]).output().unwrap();
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stdout));
        cluster.settle();
        cluster
    });
    let cluster = cluster.await.unwrap();
    // The slot moves to the new server, and only that one has changes in it.
    let mut new = cluster.nodes[3].raw();
    let (id, slot) = (new.words("CLUSTER MYID"), new.words("CLUSTER KEYSLOT gcli2api:cred:moved"));
    for node in cluster.nodes.iter().rev() {
        node.raw().words(&format!("CLUSTER SETSLOT {slot} NODE {id}"));
    }
    new.words("SET gcli2api:cred:moved {}");
    watched.resync().await;
    storage.get_credential("moved").await?;
    assert_eq!(storage.list_credentials().await?.len(), 1);
    new.words("DEL gcli2api:cred:moved");
    watched.told(OfCredentials, Some("moved")).await;
    drop(watched);
    storage.close().await
}

#[tokio::test]
async fn a_server_that_can_not_is_unsupported_and_a_user_who_may_not_is_denied() -> Result {
    let server = Server::start(&[]);
    let proxy = Proxy::start(server.addr()).await;
    let storage = Storage::<Redis>::open(format!("redis://{}", proxy.addr).as_str()).await?;
    let refusal = async || Watched(Box::pin(storage.watch(WatchOptions::default()))).error().await;
    for (command, text) in
        [("CLIENT", "does not support CLIENT TRACKING"), ("HELLO", "does not support HELLO")]
    {
        let other = Server::start(&["--rename-command", command, ""]);
        proxy.lead_to(other.addr());
        let error = refusal().await;
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        assert!(error.to_string().contains(text), "{error}");
    }
    proxy.lead_to(server.addr());
    server.raw().words("ACL SETUSER default -client|tracking");
    let error = refusal().await;
    assert_eq!((error.kind(), error.code()), (ErrorKind::Denied, Some("NOPERM")), "{error:?}");
    assert!(error.to_string().contains("`+client|tracking`"), "{error}");
    // A later watch tries again.
    server.raw().words("ACL SETUSER default +client|tracking");
    drop(Watched::begin(&storage).await);
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_watch_sends_one_command_in_two_seconds() -> Result {
    let server = Server::start(&[]);
    let (mut raw, storage) = (server.raw(), Storage::<Redis>::open(server.url().as_str()).await?);
    assert_eq!(tracking(&mut raw), 0);
    let (mut first, mut second) = (Watched::begin(&storage).await, Watched::begin(&storage).await);
    assert_eq!(tracking(&mut raw), 1, "all watches of a store share a connection");
    let calls = |raw: &mut Raw| {
        let stats = raw.words("INFO commandstats");
        let calls = stats.lines().filter(|line| !line.starts_with("cmdstat_info"));
        calls.map(|line| number_of(line, &format!("{}:calls=", line.split(':').next().unwrap()))).sum::<u64>()
    };
    first.changes().await;
    let (before, begun) = (calls(&mut raw), Instant::now());
    for _ in 0..3 {
        first.idle().await;
    }
    let (sent, most) = (calls(&mut raw) - before, begun.elapsed().as_secs() / 2 + 1);
    assert!(sent >= 2 && sent <= most, "{sent} commands, and at most {most} are allowed");
    second.changes().await;
    drop((first, second));
    servers::until("the connection is closed", || tracking(&mut raw) == 0);
    // With a key of its own the record wakes a caller that waits.
    assert!(storage.backend().next_change(OfCredentials, &key("a")).is_none());
    let mut watched = Watched::begin(&storage).await;
    let wake = storage.backend().next_change(OfCredentials, &key("a")).unwrap();
    raw.words("SET gcli2api:cred:a {}");
    soon("the waiting caller wakes", wake).await;
    watched.told(OfCredentials, Some("a")).await;
    drop(watched);
    storage.close().await
}

/// What a watcher knows of the store.
#[derive(Default, Debug, PartialEq)]
struct Mirror {
    credentials: BTreeMap<Key, Credential>,
    configs: BTreeMap<Key, gateway_storage::ConfigValue>,
}

async fn at_last<T>(call: impl AsyncFn() -> Result<T>) -> T {
    loop {
        match call().await {
            Ok(value) => return value,
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
        }
    }
}

impl Mirror {
    async fn read(storage: &Storage<Redis>) -> Self {
        Self {
            credentials: at_last(async || {
                storage.stream_credentials(ListOptions::default()).try_collect().await
            })
            .await,
            configs: at_last(async || storage.list_configs().await).await,
        }
    }

    async fn follow(&mut self, event: &Event, storage: &Storage<Redis>) {
        match event {
            Event::Resync { .. } => *self = Self::read(storage).await,
            Event::Changed { kind: OfCredentials, key: Some(id), .. } => {
                match at_last(async || storage.get_credential(id.clone()).await.optional()).await {
                    Some(value) => drop(self.credentials.insert(id.clone(), value)),
                    None => drop(self.credentials.remove(id)),
                }
            }
            Event::Changed { .. } => {
                self.configs = at_last(async || storage.list_configs().await).await;
            }
            Event::Idle { .. } => {}
        }
    }
}

/// One of several tasks that change the store at random.
async fn change(storage: Storage<Redis>, mut random: fastrand::Rng, changes: usize) {
    for n in 0..changes {
        let (id, value) = (format!("id-{}", random.u32(..40)), random.u32(..));
        match random.u32(..100) {
            0 => drop(storage.set_config(id, json!("ends with a burst")).await),
            1..40 => storage.set_credential(id, json!({ "n": value })).await.unwrap(),
            40..60 => drop(storage.delete_credential(id).await.optional().unwrap()),
            60..90 => storage.set_config(id, json!(value)).await.unwrap(),
            _ => drop(storage.delete_config(id).await.optional().unwrap()),
        }
        if n % 8 == 0 {
            tokio::time::sleep(Duration::from_millis(random.u64(..20))).await;
        }
    }
}

/// With `WATCH_CHANGES` and `WATCH_SEED`: how many changes, and which.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_changes_and_cuts_misses_nothing() -> Result {
    let number = |name: &str, usual| std::env::var(name).map_or(usual, |text| text.parse().unwrap());
    let (changes, seed) = (number("WATCH_CHANGES", 3000) as usize, number("WATCH_SEED", fastrand::u64(..)));
    println!("WATCH_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let server = Server::start(&[]);
    let direct = Storage::<Redis>::open(server.url().as_str()).await?;
    let proxy = Proxy::start(server.addr()).await;
    let storage = Storage::<Redis>::open(format!("redis://{}", proxy.addr).as_str()).await?;
    let tasks: Vec<_> =
        (0..4).map(|_| tokio::spawn(change(direct.clone(), random.fork(), changes / 4))).collect();
    let done = Arc::new(AtomicBool::new(false));
    let cuts = tokio::spawn({
        let (done, proxy, mut random) = (done.clone(), proxy.clone(), random.fork());
        async move {
            let mut cuts = 0;
            while !done.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(random.u64(..800))).await;
                match random.u32(..4) {
                    0 => proxy.fall_silent(),
                    1 => cuts += proxy.cut_one(),
                    2 => drop(server.raw().words("FLUSHALL")),
                    _ => cuts += std::iter::from_fn(|| Some(proxy.cut_one()).filter(|cut| *cut > 0)).count(),
                }
            }
            (cuts, server)
        }
    });
    let ended = tokio::spawn({
        let done = done.clone();
        async move {
            for task in tasks {
                task.await.unwrap();
            }
            done.store(true, Ordering::SeqCst);
        }
    });
    let mut watched = Watched(Box::pin(storage.watch(WatchOptions::default())));
    let (mut mirror, mut told, mut resyncs, mut idles) = (Mirror::default(), 0, 0, 0);
    // An Idle that was on its way when the last change was made does not count.
    while idles < 3 {
        let is_done = done.load(Ordering::SeqCst) && cuts.is_finished();
        let event = watched.next().await;
        mirror.follow(&event, &storage).await;
        told += usize::from(matches!(event, Event::Changed { .. }));
        resyncs += usize::from(matches!(event, Event::Resync { .. }));
        idles += usize::from(is_done && matches!(event, Event::Idle { .. }));
    }
    ended.await.unwrap();
    let (cuts, server) = cuts.await.unwrap();
    println!("{changes} changes, {told} told, {cuts} cuts, {resyncs} Resyncs");
    assert_eq!(mirror, Mirror::read(&direct).await, "changes were missed");
    drop((watched, server));
    storage.close().await?;
    direct.close().await
}
