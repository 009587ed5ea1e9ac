//! Watches by change streams: every write, foreign ones, cuts, elections and lost places.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{FutureExt, Stream, StreamExt};
use gateway_storage::{
    Credential, ErrorKind, Exportable, Key, MongoDb, OptionalExt, Record, Storage,
    history::DocumentKind,
    plan::{ApplyOptions, Plan, RollbackOptions},
    revision::{
        Condition::{Absent, Unchanged},
        Conditional,
    },
    watch::{Cursor, Event, WatchOptions},
};
use mongodb::{
    Client, Database,
    bson::{Document, doc, oid::ObjectId},
};
use serde_json::{Value, json};

use super::{
    Result, command_count, config, documents, key, open, raw,
    servers::{
        self,
        mongodb::{ReplicaSet, Server},
        proxy::Proxy,
        router::Router,
        until,
    },
};

const CREDENTIAL: DocumentKind = DocumentKind::Credential;
const CONFIG: DocumentKind = DocumentKind::Config;

/// A replica set of one member, with these options.
fn member(options: &[&str]) -> Server {
    let server = Server::start(&[&["--replSet", "rs0", "--oplogSize", "64"], options].concat());
    let members = [doc! { "_id": 0, "host": server.addr() }];
    let settings = doc! { "electionTimeoutMillis": 1000 };
    let config = doc! { "_id": "rs0", "members": &members[..], "settings": settings };
    server.ask("admin", doc! { "replSetInitiate": config });
    until("a primary is elected", || {
        server.ask("admin", doc! { "hello": 1 }).get_bool("isWritablePrimary").unwrap_or_default()
    });
    server
}

/// A watch whose first event was read.
struct Watch<'s> {
    /// The first event, if it is a change.
    first: Option<Event>,
    events: Pin<Box<dyn Stream<Item = Result<Event>> + Send + 's>>,
    /// How often all had to be read again.
    resyncs: usize,
    cursor: Cursor,
}

impl<'s> Watch<'s> {
    async fn with(storage: &'s Storage<MongoDb>, options: WatchOptions) -> Self {
        let mut events = Box::pin(storage.watch(options));
        let first = events.next().await.unwrap().unwrap();
        let (resyncs, cursor) = (usize::from(first.name() == "resync"), first.cursor().clone());
        let first = Some(first).filter(|first| first.name() == "changed");
        Self { first, events, resyncs, cursor }
    }

    async fn begin(storage: &'s Storage<MongoDb>) -> Self {
        let watch = Self::with(storage, WatchOptions::default()).await;
        assert_eq!(watch.resyncs, 1);
        watch
    }

    async fn next(&mut self) -> Event {
        if let Some(first) = self.first.take() {
            return first;
        }
        let event = tokio::time::timeout(Duration::from_secs(60), self.events.next()).await;
        let event = event.expect("an event comes").unwrap().unwrap();
        self.resyncs += usize::from(event.name() == "resync");
        self.cursor = event.cursor().clone();
        event
    }

    /// The change that comes next.
    async fn change(&mut self) -> (DocumentKind, String) {
        loop {
            match self.next().await {
                Event::Changed { kind, key, .. } => return (kind, key.unwrap().as_str().to_owned()),
                event => assert_eq!(event.name(), "idle"),
            }
        }
    }

    /// Reads until all of these were told.
    async fn told(&mut self, keys: impl IntoIterator<Item = impl AsRef<str>>) {
        let mut missing: BTreeSet<_> = keys.into_iter().map(|key| key.as_ref().to_owned()).collect();
        let mut idles = 0;
        while !missing.is_empty() {
            match self.next().await {
                Event::Changed { key: Some(key), .. } => drop(missing.remove(key.as_str())),
                Event::Idle { .. } => idles += 1,
                _ => {}
            }
            assert!(idles < 10, "not told: {missing:?}");
        }
    }

    async fn idle(&mut self) {
        while self.next().await.name() != "idle" {}
    }

    async fn resync(&mut self) {
        let mut idles = 0;
        while idles < 10 {
            match self.next().await.name() {
                "resync" => return,
                name => idles += usize::from(name == "idle"),
            }
        }
        panic!("no Resync comes");
    }

    /// The error that ends it.
    async fn end(mut self) -> gateway_storage::Error {
        loop {
            let event = tokio::time::timeout(Duration::from_secs(60), self.events.next()).await;
            if let Err(error) = event.expect("it ends").expect("it ends with an error") {
                assert!(self.events.next().await.is_none());
                return error;
            }
        }
    }
}

async fn refused(storage: &Storage<MongoDb>) -> gateway_storage::Error {
    let mut events = pin!(storage.watch(WatchOptions::default()));
    let first = tokio::time::timeout(Duration::from_secs(60), events.next()).await;
    first.expect("it ends").unwrap().unwrap_err()
}

fn from(cursor: &Cursor) -> WatchOptions {
    WatchOptions::default().with_from(cursor.clone())
}

fn of(n: u64) -> Credential {
    json!({ "n": n }).try_into().unwrap()
}

#[tokio::test]
async fn every_write_is_told() -> Result {
    let storage = open(&servers::mongodb()).await;
    let mut watch = Watch::begin(&storage).await;
    let told = async |watch: &mut Watch<'_>, kind, keys: &[&str]| {
        let mut told = BTreeSet::new();
        while told.len() < keys.len() {
            let (of, key) = watch.change().await;
            assert!(of == kind && keys.contains(&&*key), "{of:?} {key}, not {kind:?} {keys:?}");
            told.insert(key);
        }
    };
    storage.set_credential("a", of(1)).await?;
    told(&mut watch, CREDENTIAL, &["a"]).await;
    storage.set_config("a", json!(1)).await?;
    told(&mut watch, CONFIG, &["a"]).await;
    storage.set_credentials(&[(key("b"), of(1)), (key("a"), of(2))]).await?.complete()?;
    told(&mut watch, CREDENTIAL, &["a", "b"]).await;
    storage.delete_credentials(&[key("a"), key("b")]).await?.complete()?;
    told(&mut watch, CREDENTIAL, &["a", "b"]).await;
    let absent = Record::Config { key: key("c"), value: config(json!(1)) };
    let revision = storage.backend().set_if(&absent, Absent).await?;
    told(&mut watch, CONFIG, &["c"]).await;
    let changed = Record::Config { key: key("c"), value: config(json!(2)) };
    let revision = storage.backend().set_if(&changed, Unchanged(revision)).await?;
    told(&mut watch, CONFIG, &["c"]).await;
    storage.backend().delete_if(CONFIG, &key("c"), revision).await?;
    told(&mut watch, CONFIG, &["c"]).await;
    let plan = Plan::from_json(r#"[{"set":"p","value":1},{"delete":"a"}]"#)?;
    storage.apply_plan("plan", &plan, &ApplyOptions::default()).await?;
    told(&mut watch, CONFIG, &["p", "a"]).await;
    drop(storage.rollback_plan("plan", &RollbackOptions::default()).await?);
    told(&mut watch, CONFIG, &["p", "a"]).await;
    let mut transaction = storage.begin().await?;
    for n in 0..3 {
        transaction.set_credential(&key(&format!("t{n}")), &of(n)).await?;
    }
    transaction.commit().await?;
    told(&mut watch, CREDENTIAL, &["t0", "t1", "t2"]).await;
    let credential = Record::Credential { id: key("i"), credential: of(1) };
    storage.backend().import(&[credential, absent]).await?.complete()?;
    watch.told(["i", "c"]).await;
    storage.delete_credential("i").await?;
    told(&mut watch, CREDENTIAL, &["i"]).await;
    storage.delete_config("a").await?;
    told(&mut watch, CONFIG, &["a"]).await;
    // Counters are not watched.
    storage.increment_usage("u", "n", 1).await?;
    storage.set_config("last", json!(1)).await?;
    told(&mut watch, CONFIG, &["last"]).await;
    assert_eq!(watch.resyncs, 1);
    drop(watch);
    storage.close().await
}

#[tokio::test]
async fn writes_of_other_programs_are_told() -> Result {
    let url = servers::mongodb();
    let storage = open(&url).await;
    let mut watch = Watch::begin(&storage).await;
    let (credentials, configs) = (documents(&url, "credentials").await, documents(&url, "configs").await);
    credentials.insert_one(doc! { "_id": "a", "value": { "n": 1 } }).await.unwrap();
    assert_eq!(watch.change().await, (CREDENTIAL, "a".into()));
    credentials.update_one(doc! { "_id": "a" }, doc! { "$set": { "value.n": 2 } }).await.unwrap();
    assert_eq!(watch.change().await, (CREDENTIAL, "a".into()));
    let many = (0..300).map(|n| doc! { "_id": format!("{n:03}"), "value": n });
    configs.insert_many(many).await.unwrap();
    watch.told((0..300).map(|n| format!("{n:03}"))).await;
    configs.delete_many(doc! {}).await.unwrap();
    watch.told((0..300).map(|n| format!("{n:03}"))).await;
    // No key of this crate: any may have changed.
    credentials.insert_one(doc! { "_id": ObjectId::new(), "value": 1 }).await.unwrap();
    assert!(matches!(watch.next().await, Event::Changed { kind: CREDENTIAL, key: None, .. }));
    assert_eq!(watch.resyncs, 1);
    Ok(())
}

/// Searches all that the server sends: the events have the keys only.
#[tokio::test]
async fn values_do_not_travel() -> Result {
    let url = servers::mongodb();
    let storage = open(&url).await;
    let watcher = open(&url).await;
    let mut watch = Watch::begin(&watcher).await;
    let database = raw(&url).await;
    database.run_command(doc! { "profile": 2 }).await.unwrap();
    let large = "x".repeat(100_000);
    for n in 0..3 {
        storage.set_config("a", json!({ "n": n, "large": large })).await?;
        assert_eq!(watch.change().await, (CONFIG, "a".into()));
    }
    storage.set_config("b", json!(1)).await?;
    watch.told(["b"]).await;
    database.run_command(doc! { "profile": 0 }).await.unwrap();
    let replies = doc! { "op": "getmore", "ns": format!("{}.configs", database.name()) };
    let mut replies = database.collection::<Document>("system.profile").find(replies).await.unwrap();
    let mut count = 0;
    while replies.advance().await.unwrap() {
        let reply = replies.deserialize_current().unwrap();
        let length = reply.get_i32("responseLength").unwrap();
        assert!(length < 2_000, "{length} bytes");
        count += 1;
    }
    assert!(count >= 3, "{count} answers");
    Ok(())
}

#[tokio::test]
async fn a_collection_that_is_dropped_or_made_is_a_resync() -> Result {
    let url = servers::mongodb();
    let storage = open(&url).await;
    let database = raw(&url).await;
    let configs = documents(&url, "configs").await;
    storage.set_config("a", json!(1)).await?;
    configs.drop().await.unwrap();
    // It does not exist.
    let mut watch = Watch::begin(&storage).await;
    storage.set_config("a", json!(1)).await?;
    assert_eq!(watch.change().await, (CONFIG, "a".into()));
    let before = watch.cursor.clone();
    for (round, drops) in ["collection", "name", "database"].into_iter().enumerate() {
        match drops {
            "collection" => configs.drop().await.unwrap(),
            "database" => database.drop().await.unwrap(),
            _ => {
                let name = |name: &str| format!("{}.{name}", database.name());
                let rename = doc! { "renameCollection": name("configs"), "to": name("old") };
                database.client().database("admin").run_command(rename).await.unwrap();
            }
        }
        watch.resync().await;
        storage.set_config("a", json!(2)).await?;
        assert_eq!(watch.change().await, (CONFIG, "a".into()), "after a dropped {drops}");
        storage.set_credential("a", of(2)).await?;
        assert_eq!(watch.change().await, (CREDENTIAL, "a".into()), "after a dropped {drops}");
        watch.idle().await;
        assert_eq!(watch.resyncs, round + 2);
    }
    // The cursor is of the collection before.
    assert_eq!(Watch::with(&storage, from(&before)).await.resyncs, 1);
    Ok(())
}

/// Kills the cursors, cuts the connections, and restarts the server: the streams go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_watch_goes_on_without_a_gap() -> Result {
    let mut server = member(&[]);
    let proxy = Proxy::start(server.addr()).await;
    let writer = open(&format!("mongodb://{}/cut?directConnection=true&deadline=30s", server.addr())).await;
    let watcher = open(&format!("mongodb://{}/cut?directConnection=true", proxy.addr)).await;
    let mut watch = Watch::begin(&watcher).await;
    let database = raw(&format!("mongodb://{}/cut?directConnection=true", server.addr())).await;
    for round in 0..6 {
        writer.set_config(format!("before {round}"), json!(1)).await?;
        match round % 3 {
            0 => kill_cursors(&database).await,
            1 => while proxy.cut_one() > 0 {},
            _ => {
                server.kill();
                server.restart();
                super::until_healthy(&writer).await;
            }
        }
        writer.set_config(format!("after {round}"), json!(1)).await?;
        writer.set_credential(format!("also {round}"), of(1)).await?;
        let keys = ["before", "after", "also"].map(|name| format!("{name} {round}"));
        watch.told(keys).await;
    }
    watch.idle().await;
    assert_eq!(watch.resyncs, 1, "it did not go on");
    Ok(())
}

/// The numbers of the open cursors of change streams.
async fn stream_cursors(database: &Database) -> Vec<(i64, String)> {
    let admin = database.client().database("admin");
    let all = [
        doc! { "$currentOp": { "idleCursors": true, "allUsers": true } },
        doc! { "$match": { "cursor.originatingCommand.pipeline.0.$changeStream": { "$exists": true } } },
    ];
    let found = admin.run_command(doc! { "aggregate": 1, "pipeline": &all[..], "cursor": {} }).await.unwrap();
    let found = found.get_document("cursor").unwrap().get_array("firstBatch").unwrap();
    let cursor = |found: &Document| {
        let id = found.get_document("cursor").unwrap().get_i64("cursorId").unwrap();
        (id, found.get_str("ns").unwrap().to_owned())
    };
    let mut found: Vec<_> = found.iter().filter_map(|found| found.as_document()).map(cursor).collect();
    found.retain(|(_, of)| of.starts_with(&format!("{}.", database.name())));
    found
}

async fn kill_cursors(database: &Database) {
    let found = stream_cursors(database).await;
    assert_eq!(found.len(), 2, "{found:?}");
    for (id, of) in found {
        let (_, collection) = of.split_once('.').unwrap();
        let kill = doc! { "killCursors": collection, "cursors": [id] };
        database.run_command(kill).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_at_the_next_primary() -> Result {
    let set = ReplicaSet::start(3);
    let storage = open(&set.url("elected")).await;
    let mut watch = Watch::begin(&storage).await;
    for round in 0..3 {
        let keys: Vec<_> = (0..20).map(|n| format!("{round} {n}")).collect();
        for (n, key) in keys.iter().enumerate() {
            if n == 10 {
                let primary = set.primary();
                let step_down = doc! { "replSetStepDown": 30, "secondaryCatchUpPeriodSecs": 5 };
                drop(servers::mongodb::ask(set.members[primary].port, "admin", step_down));
            }
            while storage.set_config(key, json!(n)).await.is_err() {}
        }
        watch.told(&keys).await;
    }
    assert_eq!(watch.resyncs, 1, "it did not go on");
    Ok(())
}

/// A place that the server does not know any more is one Resync, and is not asked for again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_place_is_one_resync() -> Result {
    let server = member(&["--setParameter", "enableTestCommands=1"]);
    let proxy = Proxy::start(server.addr()).await;
    let storage = open(&format!("mongodb://{}/lost?directConnection=true", proxy.addr)).await;
    let database = raw(&format!("mongodb://{}/lost?directConnection=true", server.addr())).await;
    let fail = |command: &str, code: i32, mode: Document| {
        let data = doc! { "failCommands": [command], "errorCode": code };
        server.ask("admin", doc! { "configureFailPoint": "failCommand", "mode": mode, "data": data });
    };
    let mut watch = Watch::begin(&storage).await;
    let mut resyncs = 1;
    for code in [286, 280, 260, 136, 10334, 4] {
        // While it follows.
        fail("getMore", code, doc! { "times": 1 });
        storage.set_config("a", json!(code)).await?;
        watch.resync().await;
        resyncs += 1;
        storage.set_config("b", json!(code)).await?;
        watch.told(["b"]).await;
        // When it goes on.
        fail("aggregate", code, doc! { "times": 1 });
        while proxy.cut_one() > 0 {}
        watch.resync().await;
        resyncs += 1;
        super::until_healthy(&storage).await;
        storage.set_config("c", json!(code)).await?;
        watch.told(["c"]).await;
        assert_eq!(watch.resyncs, resyncs, "{code}");
    }
    // Again and again: each time it begins anew, after a pause.
    let opened = command_count(&database, "aggregate").await;
    let data = doc! { "failCommands": ["getMore"], "errorCode": 286 };
    server.ask("admin", doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data });
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        watch.resync().await;
    }
    server.ask("admin", doc! { "configureFailPoint": "failCommand", "mode": "off" });
    let opened = command_count(&database, "aggregate").await - opened;
    assert!(opened < 100, "{opened} streams were opened");
    // From here on it follows.
    watch.idle().await;
    storage.set_config("d", json!(1)).await?;
    watch.told(["d"]).await;
    Ok(())
}

#[tokio::test]
async fn a_watch_from_a_cursor_tells_what_has_changed_since() -> Result {
    let (url, other) = (servers::mongodb(), servers::mongodb());
    let (storage, other) = (open(&url).await, open(&other).await);
    let mut watch = Watch::begin(&storage).await;
    storage.set_config("a", json!(1)).await?;
    watch.told(["a"]).await;
    watch.idle().await;
    let (cursor, old) = (watch.cursor.clone(), Watch::begin(&other).await.cursor);
    drop(watch);
    storage.close().await?;
    // Another process.
    let storage = open(&url).await;
    for round in 0..2 {
        let mut transaction = storage.begin().await?;
        for n in 0..200 {
            transaction.set_credential(&key(&format!("{round} {n}")), &of(n)).await?;
        }
        transaction.commit().await?;
        storage.delete_config("a").await.optional()?;
        // The second round is from the same cursor.
        let mut watch = Watch::with(&storage, from(&cursor)).await;
        assert_eq!(watch.resyncs, 0);
        let mut expected: BTreeSet<_> =
            (0..=round).flat_map(|round| (0..200).map(move |n| format!("{round} {n}"))).collect();
        expected.insert("a".into());
        watch.told(&expected).await;
        watch.idle().await;
        assert_eq!(watch.resyncs, 0);
        storage.set_config("b", json!(1)).await?;
        watch.told(["b"]).await;
    }
    // Unknown ones.
    let text = cursor.as_str();
    let mut parts: Vec<_> = text.split('.').map(str::to_owned).collect();
    parts[2] = "hAAAA".into();
    let garbage = parts.join(".");
    for unknown in [old.as_str(), "mongodb:t1.0.h.h", "mongodb:1f.7", "memory:1f.7", "x", &garbage] {
        let mut watch = Watch::with(&storage, from(&Cursor::new(unknown)?)).await;
        assert_eq!(watch.resyncs, 1, "{unknown}");
        storage.set_config("c", json!(1)).await?;
        watch.told(["c"]).await;
        assert_eq!(watch.resyncs, 1, "{unknown}");
    }
    Ok(())
}

#[tokio::test]
async fn a_watch_needs_change_streams_and_the_right_to_them() -> Result {
    let alone = open(&servers::mongodb_alone()).await;
    for _ in 0..2 {
        let error = refused(&alone).await;
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        assert!(error.to_string().contains("replica set"), "{error}");
    }
    assert!(alone.backend().next_change(CONFIG, &key("a")).is_none());

    let mut server = member(&[]);
    let (database, concern) = ("own", doc! { "w": 1, "j": true });
    let readable =
        ["find", "insert", "update", "remove", "listCollections", "createCollection", "createIndex"];
    let streams = [&readable[..], &["changeStream"]].concat();
    for (name, actions) in [("plain", &readable[..]), ("watcher", &streams)] {
        let own = doc! { "resource": { "db": database, "collection": "" }, "actions": actions };
        let role =
            doc! { "createRole": name, "privileges": [own], "roles": [], "writeConcern": concern.clone() };
        server.ask(database, role);
        let user = doc! { "createUser": name, "pwd": "x", "roles": [name], "writeConcern": concern.clone() };
        server.ask(database, user);
    }
    let root = doc! { "createUser": "root", "pwd": "x", "roles": ["root"], "writeConcern": concern.clone() };
    server.ask("admin", root);
    server.kill();
    let file = server.key_file();
    server.add_option("--keyFile");
    server.add_option(&file);
    server.restart();
    let url =
        |user: &str| format!("mongodb://{user}:x@{}/own?directConnection=true&deadline=30s", server.addr());
    let (plain, watcher) = (open(&url("plain")).await, open(&url("watcher")).await);
    let error = refused(&plain).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    assert!(error.to_string().contains("`changeStream`"), "{error}");
    let mut watch = Watch::begin(&watcher).await;
    plain.set_config("a", json!(1)).await?;
    watch.told(["a"]).await;
    // It loses the right.
    let admin = Client::with_uri_str(
        url("root").replace("own?", "own?authSource=admin&").replace("&deadline=30s", ""),
    );
    let admin = admin.await.unwrap();
    let revoke = doc! { "revokeRolesFromUser": "watcher", "roles": ["watcher"] };
    admin.database(database).run_command(revoke).await.unwrap();
    assert_eq!(watch.end().await.kind(), ErrorKind::Denied);
    Ok(())
}

/// A watch where nothing changes, in a pool of one connection: what it costs the server and calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_watch_costs_a_query_in_two_seconds_and_no_connection_of_calls() -> Result {
    let server = member(&[]);
    let url = format!("mongodb://{}/idle?directConnection=true", server.addr());
    let storage = open(&format!("{url}&maxPoolSize=1&deadline=3s")).await;
    let database = raw(&url).await;
    assert!(stream_cursors(&database).await.is_empty());
    let queries = async || {
        let mut sum = 0;
        for command in ["getMore", "find", "aggregate", "listCollections", "ping"] {
            sum += command_count(&database, command).await;
        }
        sum
    };
    let mut watch = Watch::begin(&storage).await;
    watch.idle().await;
    let (begun, before) = (Instant::now(), queries().await);
    for _ in 0..4 {
        watch.idle().await;
    }
    let (took, sent) = (begun.elapsed().as_secs_f64(), queries().await - before);
    println!("{sent} queries in {took:.1} s");
    // Two may have begun before, and two may be under way.
    assert!(sent as f64 <= took / 2.0 + 2.0, "{sent} queries in {took} s");
    // Each answer of a stream takes longer than the deadline.
    for n in 0..100 {
        storage.set_config("a", json!(n)).await?;
    }
    watch.told(["a"]).await;
    assert_eq!(stream_cursors(&database).await.len(), 2);
    drop(watch);
    let begun = Instant::now();
    while !stream_cursors(&database).await.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the server keeps the cursors");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Closing waits for it.
    let watch = Watch::begin(&storage).await;
    assert_eq!(stream_cursors(&database).await.len(), 2);
    let (ended, closed) = tokio::join!(watch.end(), storage.clone().close());
    closed?;
    assert_eq!(ended.kind(), ErrorKind::Closed);
    // The server has got the request, but it ends a query that waits only when that has waited.
    let begun = Instant::now();
    while !stream_cursors(&database).await.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the server keeps the cursors");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_watch_again_begins_anew() -> Result {
    let storage = open(&servers::mongodb()).await;
    for round in 0..5 {
        // More than the server's first answer has.
        let before: Vec<_> = (0..300).map(|n| (key(&format!("before {round} {n}")), of(n))).collect();
        storage.set_credentials(&before).await?.complete()?;
        let mut watch = Watch::begin(&storage).await;
        let after = format!("after {round}");
        storage.set_config(&after, json!(1)).await?;
        assert_eq!(watch.change().await, (CONFIG, after), "a change before the watch is told");
    }
    storage.close().await
}

#[tokio::test]
async fn next_change_ends_at_a_change() -> Result {
    let url = servers::mongodb();
    let (storage, other) = (open(&url).await, open(&url).await);
    assert!(storage.backend().next_change(CREDENTIAL, &key("a")).is_none());
    let watch = Watch::begin(&storage).await;
    let mut wake = storage.backend().next_change(CREDENTIAL, &key("a")).unwrap();
    other.set_credential("b", of(1)).await?;
    other.set_config("a", json!(1)).await?;
    assert!((&mut wake).now_or_never().is_none());
    other.set_credential("a", of(1)).await?;
    tokio::time::timeout(Duration::from_secs(30), wake).await.expect("it ends");
    let wake = storage.backend().next_change(CREDENTIAL, &key("a")).unwrap();
    drop(watch);
    // Without a watch nothing would end it.
    tokio::time::timeout(Duration::from_secs(30), wake).await.expect("it ends");
    assert!(storage.backend().next_change(CREDENTIAL, &key("a")).is_none());
    Ok(())
}

#[tokio::test]
async fn a_watch_behind_a_router() -> Result {
    let set = servers::mongodb_set();
    let router = Router::before(set.members[0].addr()).await;
    let storage = open(&format!("mongodb://{}/{}", router.addr, servers::database())).await;
    let mut watch = Watch::begin(&storage).await;
    storage.set_config("a", json!(1)).await?;
    assert_eq!(watch.change().await, (CONFIG, "a".into()));
    let cursor = watch.cursor.clone();
    storage.set_config("b", json!(1)).await?;
    let mut other = Watch::with(&storage, from(&cursor)).await;
    other.told(["b"]).await;
    assert_eq!(other.resyncs, 0);
    Ok(())
}

/// What a watcher believes is stored.
#[derive(Default)]
struct Mirror {
    credentials: BTreeMap<Key, Credential>,
    configs: BTreeMap<Key, Value>,
}

impl Mirror {
    async fn list(storage: &Storage<MongoDb>) -> Result<Self> {
        let mut credentials = pin!(storage.stream_credentials(Default::default()));
        let mut configs = pin!(storage.stream_configs(Default::default()));
        let mut mirror = Self::default();
        while let Some(found) = credentials.next().await {
            mirror.credentials.extend([found?]);
        }
        while let Some(found) = configs.next().await {
            let (key, value) = found?;
            mirror.configs.insert(key, value.value().clone());
        }
        Ok(mirror)
    }

    async fn read(&mut self, storage: &Storage<MongoDb>, kind: DocumentKind, key: Key) -> Result {
        match kind {
            CREDENTIAL => match storage.get_credential(&key).await.optional()? {
                Some(credential) => drop(self.credentials.insert(key, credential)),
                None => drop(self.credentials.remove(&key)),
            },
            _ => match storage.get_config(&key).await.optional()? {
                Some(value) => drop(self.configs.insert(key, value.value().clone())),
                None => drop(self.configs.remove(&key)),
            },
        }
        Ok(())
    }
}

/// Random changes while connections are cut and primaries step down: a mirror that follows the watch is equal
/// in the end. `WATCH_CHANGES=100000` for a long run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_is_missed_in_a_storm() -> Result {
    let number = |name: &str, usual: u64| {
        std::env::var(name).map_or(usual, |number| number.parse().expect("a number"))
    };
    let changes = number("WATCH_CHANGES", 2_000);
    let seed = number("WATCH_SEED", fastrand::u64(..));
    println!("WATCH_SEED={seed}");
    let set = ReplicaSet::start(3);
    let storage = open(&set.url("storm")).await;
    // It follows one member, through a proxy that leads to each new primary.
    let proxy = Proxy::start(set.members[set.primary()].addr()).await;
    let watcher = open(&format!("mongodb://{}/storm?directConnection=true&deadline=30s", proxy.addr)).await;
    let (writing, cutting) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
    let mirrored = async {
        let mut events = pin!(watcher.watch(WatchOptions::default()));
        let (mut mirror, mut idles, mut resyncs, mut told) = (Mirror::default(), 0, 0, 0);
        // The first one may have begun before the last change.
        while idles < 2 {
            let event = events.next().await.unwrap()?;
            let is_over = !cutting.load(Ordering::SeqCst);
            match event {
                Event::Idle { .. } => idles += usize::from(is_over),
                Event::Resync { .. } => {
                    resyncs += 1;
                    mirror = loop {
                        match Mirror::list(&storage).await {
                            Ok(mirror) => break mirror,
                            Err(error) => assert!(error.is_retryable(), "{error:?}"),
                        }
                    };
                }
                Event::Changed { kind, key, .. } => {
                    told += 1;
                    let key = key.unwrap();
                    while let Err(error) = mirror.read(&storage, kind, key.clone()).await {
                        assert!(error.is_retryable(), "{error:?}");
                    }
                }
            }
        }
        Ok::<_, gateway_storage::Error>((mirror, resyncs, told))
    };
    let writers = (0..4).map(|task| {
        let storage = storage.clone();
        tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed.wrapping_add(task));
            for n in 0..changes / 4 {
                let key = key(&format!("{}", random.u32(..200)));
                // Failed ones are changes, too, or none.
                match random.u32(..5) {
                    0 => drop(storage.delete_credential(&key).await),
                    1 => drop(storage.delete_config(&key).await),
                    2 => drop(storage.set_credential(&key, of(n)).await),
                    3 => drop(storage.set_credentials(&[(key, of(n))]).await),
                    _ => drop(storage.set_config(&key, json!(n)).await),
                }
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    let cuts = async {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut cuts = 0;
        while writing.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(random.u64(..1000))).await;
            cuts += proxy.cut_one();
            if random.u32(..20) == 0 {
                let step_down = doc! { "replSetStepDown": 5, "secondaryCatchUpPeriodSecs": 2, "force": true };
                let (primary, ports): (_, Vec<_>) =
                    (set.primary(), set.members.iter().map(|member| member.port).collect());
                drop(servers::mongodb::ask(ports[primary], "admin", step_down));
                proxy.lead_to(set.members[set.primary()].addr());
                while proxy.cut_one() > 0 {}
            }
        }
        proxy.lead_to(set.members[set.primary()].addr());
        while proxy.cut_one() > 0 {}
        cutting.store(false, Ordering::SeqCst);
        cuts
    };
    let written = async {
        for writer in writers {
            writer.await.unwrap();
        }
        writing.store(false, Ordering::SeqCst);
    };
    let (mirrored, cuts, ()) = tokio::join!(mirrored, cuts, written);
    let (mirror, resyncs, told) = mirrored?;
    let stored = Mirror::list(&storage).await?;
    println!("{changes} changes, {told} told, {cuts} cuts, {resyncs} Resyncs");
    assert_eq!(mirror.credentials, stored.credentials);
    assert_eq!(mirror.configs, stored.configs);
    assert!(!stored.credentials.is_empty() && !stored.configs.is_empty());
    Ok(())
}
