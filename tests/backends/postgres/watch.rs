//! Watches: what the triggers record, what a reader is told, and what happens when something fails.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use futures_util::{Stream, StreamExt};
use gateway_storage::{
    ErrorKind, Exportable, Key, Postgres, PostgresOptions, Record, Storage,
    history::DocumentKind::{self, Config, Credential},
    plan::{ApplyOptions, Plan, RollbackOptions},
    revision::{Condition, Conditional},
    watch::{Cursor, Event, WatchOptions},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    Result, config, key, open, raw, schema,
    servers::{self, postgres::Server, proxy::Proxy},
};

/// How long an event may take on a busy machine.
const LATEST: Duration = Duration::from_secs(30);

type Events = Pin<Box<dyn Stream<Item = Result<Event>> + Send>>;

/// A watch of all kinds.
fn watch(storage: &Storage<Postgres>, from: Option<Cursor>) -> Events {
    let mut options = WatchOptions::default();
    options.from = from;
    // The stream borrows the handle.
    Box::pin(Box::leak(Box::new(storage.clone())).watch(options))
}

async fn next(events: &mut Events) -> Event {
    in_time(events.next()).await.unwrap().expect("the watch goes on")
}

/// Idle events must not keep a test waiting for ever.
async fn in_time<T>(what: impl Future<Output = T>) -> T {
    timeout(LATEST, what).await.expect("an event comes")
}

/// A watch that has begun.
async fn begun(storage: &Storage<Postgres>) -> Events {
    let mut events = watch(storage, None);
    let first = next(&mut events).await;
    assert!(matches!(first, Event::Resync { .. }), "{first:?}");
    events
}

/// Reads events until all of these changes were told. No changes were missed.
async fn tells(events: &mut Events, awaited: Vec<(DocumentKind, Option<&str>)>) -> Cursor {
    in_time(tells_at_last(events, awaited)).await
}

async fn tells_at_last(events: &mut Events, mut awaited: Vec<(DocumentKind, Option<&str>)>) -> Cursor {
    loop {
        match next(events).await {
            Event::Changed { kind, key, cursor } => {
                awaited.retain(|change| *change != (kind, key.as_ref().map(Key::as_str)));
                if awaited.is_empty() {
                    return cursor;
                }
            }
            Event::Idle { .. } => {}
            Event::Resync { .. } => panic!("changes were missed; these were not told: {awaited:?}"),
        }
    }
}

/// What is told until nothing comes any more.
async fn until_idle(events: &mut Events) -> Vec<Option<Key>> {
    let (mut told, mut idles) = (Vec::new(), 0);
    while idles < 2 {
        match next(events).await {
            Event::Changed { key, .. } => told.push(key),
            Event::Idle { .. } => idles += 1,
            Event::Resync { .. } => panic!("changes were missed"),
        }
    }
    told
}

async fn resyncs(events: &mut Events) {
    in_time(async { while !matches!(next(events).await, Event::Resync { .. }) {} }).await;
}

async fn run(url: &str, sql: &str) {
    raw(url).await.batch_execute(&sql.replace("{s}", &schema(url))).await.expect("the SQL runs");
}

async fn number(url: &str, sql: &str) -> i64 {
    raw(url).await.query_one(&sql.replace("{s}", &schema(url)), &[]).await.expect("the SQL runs").get(0)
}

#[tokio::test]
async fn the_writes_of_every_path_are_told() -> Result {
    for url in [servers::postgres(), servers::pgbouncer()] {
        let storage = open(&url).await;
        let mut events = begun(&storage).await;
        let told =
            async |events: &mut Events, kind, name| drop(tells(events, vec![(kind, Some(name))]).await);

        storage.set_credential("set", json!({ "t": 1 })).await?;
        told(&mut events, Credential, "set").await;
        storage.set_credential("set", json!({ "t": 2 })).await?;
        told(&mut events, Credential, "set").await;
        storage.delete_credential("set").await?;
        told(&mut events, Credential, "set").await;
        let batch = |n: usize| (key(&format!("b{n}")), json!({ "t": n }).try_into().unwrap());
        drop(storage.set_credentials(&(0..50).map(batch).collect::<Vec<_>>()).await?);
        let ids: Vec<String> = (0..50).map(|n| format!("b{n}")).collect();
        tells(&mut events, ids.iter().map(|id| (Credential, Some(id.as_str()))).collect()).await;
        drop(storage.delete_credentials(&["b1", "b2"]).await?);
        tells(&mut events, vec![(Credential, Some("b1")), (Credential, Some("b2"))]).await;

        storage.set_config("c", json!(1)).await?;
        told(&mut events, Config, "c").await;
        drop(storage.set_configs(&[(key("c1"), config(json!(1))), (key("c2"), config(json!(2)))]).await?);
        tells(&mut events, vec![(Config, Some("c1")), (Config, Some("c2"))]).await;
        storage.delete_config("c1").await?;
        told(&mut events, Config, "c1").await;

        let record = Record::Config { key: key("if"), value: config(json!(1)) };
        let revision = storage.backend().set_if(&record, Condition::Absent).await?;
        told(&mut events, Config, "if").await;
        let revision = storage.backend().set_if(&record, Condition::Unchanged(revision)).await?;
        told(&mut events, Config, "if").await;
        storage.backend().delete_if(Config, &key("if"), revision).await?;
        told(&mut events, Config, "if").await;

        let plan = Plan::from_json(r#"[{"set":"planned","value":2},{"delete":"c2"}]"#)?;
        storage.apply_plan("plan", &plan, &ApplyOptions::default()).await?;
        tells(&mut events, vec![(Config, Some("planned")), (Config, Some("c2"))]).await;
        drop(storage.rollback_plan("plan", &RollbackOptions::default()).await?);
        tells(&mut events, vec![(Config, Some("planned")), (Config, Some("c2"))]).await;

        let mut tx = storage.begin().await?;
        tx.set_config(&key("in-tx"), &config(json!(1))).await?;
        tx.set_credential(&key("in-tx"), &json!({}).try_into()?).await?;
        tx.commit().await?;
        tells(&mut events, vec![(Config, Some("in-tx")), (Credential, Some("in-tx"))]).await;

        let imported = Record::Credential { id: key("imported"), credential: json!({}).try_into()? };
        drop(storage.backend().import(&[imported]).await?);
        told(&mut events, Credential, "imported").await;

        // What is rolled back, refused or counted is not told.
        let mut tx = storage.begin().await?;
        tx.set_config(&key("rolled-back"), &config(json!(1))).await?;
        tx.rollback().await?;
        storage.backend().set_if(&record, Condition::Absent).await?;
        assert_eq!(
            storage.backend().set_if(&record, Condition::Absent).await.unwrap_err().kind(),
            ErrorKind::Conflict
        );
        storage.increment_usage("u", "n", 1).await?;
        let told = until_idle(&mut events).await;
        assert_eq!(told, [Some(key("if"))], "{url}");
        storage.close().await?;
        let end = events.next().await.unwrap();
        assert_eq!(end.unwrap_err().kind(), ErrorKind::Closed);
    }
    Ok(())
}

/// Other programs write with SQL.
#[tokio::test]
async fn the_writes_of_others_are_told() -> Result {
    let url = servers::postgres();
    let storage = open(&url).await;
    storage.set_config("old", json!(1)).await?;
    let mut events = begun(&storage).await;
    run(&url, "INSERT INTO {s}.configs VALUES ('a', '1'), ('b', '2')").await;
    tells(&mut events, vec![(Config, Some("a")), (Config, Some("b"))]).await;
    run(&url, "UPDATE {s}.configs SET value = '3' WHERE key < 'b'").await;
    tells(&mut events, vec![(Config, Some("a"))]).await;
    run(&url, "DELETE FROM {s}.configs WHERE key = 'a'").await;
    tells(&mut events, vec![(Config, Some("a"))]).await;
    // The new key is told as well, but not which key it had.
    run(&url, "UPDATE {s}.configs SET key = 'new' WHERE key = 'old'").await;
    tells(&mut events, vec![(Config, None), (Config, Some("new"))]).await;
    run(&url, "TRUNCATE {s}.credentials").await;
    tells(&mut events, vec![(Credential, None)]).await;
    run(&url, "BEGIN; TRUNCATE {s}.configs; ROLLBACK").await;
    assert_eq!(until_idle(&mut events).await, []);
    storage.close().await
}

/// A role that may only write to the two tables, and sets the search path.
#[tokio::test]
async fn a_writer_needs_no_further_rights() -> Result {
    let server = Server::start(&[]);
    let url = server.url();
    let storage = open(&url).await;
    let mut events = begun(&storage).await;
    run(
        &url,
        "CREATE ROLE writer LOGIN; GRANT USAGE ON SCHEMA {s} TO writer; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON {s}.credentials, {s}.configs TO writer; \
         CREATE SCHEMA evil AUTHORIZATION writer",
    )
    .await;
    let writer = url.replace("tester@", "writer@");
    run(
        &writer,
        "CREATE FUNCTION evil.less(bigint, float8) RETURNS boolean LANGUAGE sql AS 'SELECT false'; \
         CREATE OPERATOR evil.> (LEFTARG = bigint, RIGHTARG = float8, FUNCTION = evil.less); \
         CREATE FUNCTION evil.never(int, int) RETURNS boolean LANGUAGE sql AS 'SELECT false'; \
         CREATE OPERATOR evil.= (LEFTARG = int, RIGHTARG = int, FUNCTION = evil.never); \
         SET search_path = evil, pg_catalog; INSERT INTO {s}.configs VALUES ('a', '1')",
    )
    .await;
    tells(&mut events, vec![(Config, Some("a"))]).await;
    storage.close().await
}

/// The trigger of a transaction with an old snapshot sees that the store is watched.
#[tokio::test]
async fn a_transaction_that_began_before_the_watch_is_told() -> Result {
    let url = servers::postgres();
    let storage = open(&url).await;
    storage.set_config("a", json!(1)).await?;
    drop(begun(&storage).await);
    for isolation in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        // Nothing watches any more.
        run(&url, "SELECT setval('{s}.watch_until', 1)").await;
        let early = raw(&url).await;
        let text = format!("BEGIN ISOLATION LEVEL {isolation}; SELECT * FROM {}.configs", schema(&url));
        early.batch_execute(&text).await.unwrap();
        let mut events = begun(&storage).await;
        let text = format!("UPDATE {}.configs SET value = '2'", schema(&url));
        early.batch_execute(&text).await.unwrap();
        early.batch_execute("COMMIT").await.unwrap();
        tells(&mut events, vec![(Config, Some("a"))]).await;
    }
    storage.close().await
}

/// A write is in flight whose trigger has added no row, since nothing watched. The watch begins after it.
#[tokio::test]
async fn a_watch_begins_after_the_writes_that_left_no_row() -> Result {
    let url = servers::postgres();
    let storage = open(&url).await;
    storage.set_config("a", json!(1)).await?;
    drop(begun(&storage).await);
    run(&url, "SELECT setval('{s}.watch_until', 1)").await;
    let writer = raw(&url).await;
    writer.batch_execute(&format!("BEGIN; UPDATE {}.configs SET value = '2'", schema(&url))).await.unwrap();
    assert_eq!(number(&url, "SELECT count(*) FROM {s}.changes WHERE kind = 2").await, 0);
    let other = open(&url).await;
    let mut watches = [watch(&storage, None), watch(&other, None)];
    for events in &mut watches {
        assert!(timeout(Duration::from_secs(1), events.next()).await.is_err(), "the change could be missed");
    }
    // Others can write meanwhile.
    storage.set_config("b", json!(1)).await?;
    writer.batch_execute("COMMIT").await.unwrap();
    for events in &mut watches {
        assert!(matches!(next(events).await, Event::Resync { .. }));
    }
    assert_eq!(storage.get_config("a").await?.value(), &json!(2));
    other.close().await?;
    storage.close().await
}

/// A transaction commits long after others that began later.
#[tokio::test]
async fn a_late_commit_is_told() -> Result {
    let url = servers::postgres();
    let storage = open(&url).await;
    let mut events = begun(&storage).await;
    let late = raw(&url).await;
    let text = format!("BEGIN; INSERT INTO {}.configs VALUES ('late', '1')", schema(&url));
    late.batch_execute(&text).await.unwrap();
    let mut cursor = None;
    for n in 0..20 {
        let name = format!("early-{n}");
        storage.set_config(&*name, json!(1)).await?;
        cursor = Some(tells(&mut events, vec![(Config, Some(&name))]).await);
    }
    // Each change is told once, although the open transaction is before them.
    assert_eq!(until_idle(&mut events).await, []);
    late.batch_execute("COMMIT").await.unwrap();
    tells(&mut events, vec![(Config, Some("late"))]).await;
    let mut again = watch(&storage, cursor);
    tells(&mut again, vec![(Config, Some("late"))]).await;
    storage.close().await
}

#[tokio::test]
async fn a_watch_goes_on_from_a_cursor() -> Result {
    let url = servers::postgres();
    let storage = open(&url).await;
    let mut events = begun(&storage).await;
    storage.set_config("a", json!(1)).await?;
    let cursor = tells(&mut events, vec![(Config, Some("a"))]).await;
    drop(events);
    storage.set_config("b", json!(1)).await?;
    let other = open(&url).await;
    tells(&mut watch(&other, Some(cursor.clone())), vec![(Config, Some("b"))]).await;
    // In the next watched period it is not known what changed before.
    run(&url, "SELECT setval('{s}.watch_until', 1)").await;
    resyncs(&mut watch(&other, Some(cursor.clone()))).await;
    // The same place in another store, and what the server can't read.
    let text = cursor.as_str().to_owned();
    let (life, snapshot) = text.split_at(text.find(":").unwrap() + 1);
    let life_of_place = snapshot.split(':').next().unwrap();
    for wrong in [
        format!("{life}{life_of_place}0:1:1:"),
        format!("{life}{life_of_place}:9:1:"),
        format!("{life}{life_of_place}:1:9:8,7"),
        format!("{life}{life_of_place}:99999999999999999999:99999999999999999999:"),
        format!("{life}x"),
    ] {
        let first = next(&mut watch(&other, Some(wrong.parse()?))).await;
        assert!(matches!(first, Event::Resync { .. }), "{wrong}");
    }
    other.close().await?;
    storage.close().await
}

#[tokio::test]
async fn a_cut_watch_goes_on_where_it_was() -> Result {
    let server = Server::start(&[]);
    let addr = format!("127.0.0.1:{}", server.port);
    let proxy = Proxy::start(addr.clone()).await;
    let storage = open(&server.url().replace(&addr, &proxy.addr)).await;
    let writer = open(&server.url()).await;
    let mut events = begun(&storage).await;
    for round in 0..3 {
        while proxy.cut_one() > 0 {}
        let name = format!("k{round}");
        writer.set_config(&*name, json!(1)).await?;
        tells(&mut events, vec![(Config, Some(&name))]).await;
    }
    // Of a server that has restarted it is not known whether it lost the last commits.
    drop(writer);
    let mut server = server;
    server.kill();
    server.restart();
    resyncs(&mut events).await;
    storage.set_config("after", json!(1)).await?;
    tells(&mut events, vec![(Config, Some("after"))]).await;
    storage.close().await
}

#[tokio::test]
async fn the_next_watched_period_begins_with_a_resync() -> Result {
    let url = servers::postgres();
    let storage = open(&url).await;
    let mut events = begun(&storage).await;
    run(&url, "SELECT setval('{s}.watch_until', 1)").await;
    run(&url, "INSERT INTO {s}.configs VALUES ('unseen', '1')").await;
    resyncs(&mut events).await;
    storage.set_config("a", json!(1)).await?;
    tells(&mut events, vec![(Config, Some("a"))]).await;
    // A look puts the end off.
    run(&url, "SELECT setval('{s}.watch_until', extract(epoch FROM now())::bigint + 300)").await;
    assert_eq!(until_idle(&mut events).await, []);
    let left =
        number(&url, "SELECT last_value - extract(epoch FROM now())::bigint FROM {s}.watch_until").await;
    assert!(left > 500, "{left}");
    // Another process began a period of which this one knows nothing.
    run(&url, "SELECT nextval('{s}.watch_epoch')").await;
    resyncs(&mut events).await;
    storage.close().await
}

/// Old rows are deleted, and who has not read them is told.
#[tokio::test]
async fn old_rows_are_deleted() -> Result {
    let url = servers::postgres();
    let storage = open(&url).await;
    let mut events = begun(&storage).await;
    storage.set_config("a", json!(1)).await?;
    let before = tells(&mut events, vec![(Config, Some("a"))]).await;
    drop(events);
    let fill = "INSERT INTO {s}.changes (kind, key) SELECT 2, 'b' FROM generate_series(1, {n})";
    // A transaction's rows are deleted together.
    for _ in 0..30 {
        run(&url, &fill.replace("{n}", "1000")).await;
    }
    let between = watch(&storage, Some(before.clone())).next().await.unwrap()?;
    assert!(matches!(between, Event::Changed { .. }), "{between:?}");
    let mut events = begun(&storage).await;
    let cursor = next(&mut events).await.cursor().clone();
    drop(events);
    run(&url, &fill.replace("{n}", "99990")).await;
    // The first snapshot that is old enough shows all rows.
    let aged = "UPDATE {s}.watch SET mark = pg_snapshot_xmin(pg_current_snapshot()), marked = now() - interval '2 minutes'";
    run(&url, aged).await;
    let mut events = begun(&storage).await;
    while number(&url, "SELECT count(*) FROM {s}.changes").await > 101_000 {
        next(&mut events).await;
    }
    let left = number(&url, "SELECT count(*) FROM {s}.changes").await;
    assert!(left > 100_000, "{left}");
    assert!(matches!(next(&mut watch(&storage, Some(before))).await, Event::Resync { .. }));
    let known = next(&mut watch(&storage, Some(cursor))).await;
    assert!(matches!(known, Event::Changed { .. }), "{known:?}");
    // The watch that goes on was never behind.
    storage.set_config("c", json!(1)).await?;
    tells(&mut events, vec![(Config, Some("c"))]).await;
    storage.close().await
}

/// The rows of a dump have the numbers of another server's transactions.
#[tokio::test]
async fn rows_of_another_server_are_forgotten() -> Result {
    let url = servers::postgres();
    let storage = open(&url).await;
    drop(begun(&storage).await);
    run(&url, "INSERT INTO {s}.changes VALUES ('9000000000', 2, 'foreign')").await;
    run(&url, "UPDATE {s}.watch SET pruned = '8000000000', mark = '9000000000'").await;
    let mut events = begun(&storage).await;
    storage.set_config("a", json!(1)).await?;
    tells(&mut events, vec![(Config, Some("a"))]).await;
    assert_eq!(until_idle(&mut events).await, []);
    storage.close().await
}

#[tokio::test]
async fn a_store_that_is_not_watched_has_no_tables_of_watches() -> Result {
    let url = servers::postgres();
    let storage = open(&url).await;
    storage.set_config("a", json!(1)).await?;
    let objects = "SELECT count(*) FROM pg_class WHERE relnamespace = '{s}'::regnamespace \
        AND (relname LIKE 'watch%' OR relname LIKE 'changes%' OR relhastriggers)";
    assert_eq!(number(&url, objects).await, 0);
    drop(begun(&storage).await);
    assert!(number(&url, objects).await > 0);
    storage.close().await
}

#[tokio::test]
async fn a_role_without_rights_is_told_what_it_needs() -> Result {
    let server = Server::start(&[]);
    let url = server.url();
    open(&url).await.close().await?;
    run(
        &url,
        "CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA {s} TO app; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {s} TO app",
    )
    .await;
    let app = url.replace("tester@", "app@");
    let storage = open(&app).await;
    let refused = async |storage: &Storage<Postgres>| {
        let error = timeout(LATEST, watch(storage, None).next()).await.expect("an end").unwrap().unwrap_err();
        (error.kind(), error.to_string())
    };
    let (kind, text) = refused(&storage).await;
    assert!(kind == ErrorKind::Denied && text.contains("storage schema up --watch"), "{text}");
    let careful = open(&format!("{url}&create=false")).await;
    let (kind, text) = refused(&careful).await;
    assert!(kind == ErrorKind::Unsupported && text.contains("storage schema up --watch"), "{text}");

    let options = PostgresOptions::try_from(&*url)?;
    Postgres::prepare_watch(options.clone()).await?;
    Postgres::prepare_watch(options).await?;
    drop(begun(&careful).await);
    let (kind, text) = refused(&storage).await;
    assert!(kind == ErrorKind::Denied && text.contains("GRANT SELECT"), "{text}");
    for grant in text.split(": ").nth(1).unwrap().split(" and ") {
        run(&url, &format!("{grant} TO app")).await;
    }
    let mut events = begun(&storage).await;
    storage.set_config("a", json!(1)).await?;
    tells(&mut events, vec![(Config, Some("a"))]).await;
    // The tables of a later version.
    run(&url, "UPDATE {s}.watch SET version = 2").await;
    let (kind, _) = refused(&open(&app).await).await;
    assert_eq!(kind, ErrorKind::Unsupported);
    // A disabled trigger would miss changes.
    run(&url, "UPDATE {s}.watch SET version = 1; ALTER TABLE {s}.configs DISABLE TRIGGER watch_update").await;
    let (kind, text) = refused(&open(&app).await).await;
    assert!(kind == ErrorKind::Unsupported && text.contains("disabled"), "{text}");
    storage.close().await
}

/// An idle watch sends at most one statement in two seconds, and a store that does not write sends none.
#[tokio::test]
async fn an_idle_watch_sends_a_statement_in_two_seconds() -> Result {
    let server = Server::start(&["shared_preload_libraries=pg_stat_statements"]);
    run(&server.url(), "CREATE EXTENSION pg_stat_statements").await;
    for url in [server.url(), format!("{}&pgbouncer=true&schema=other", server.url())] {
        let (storage, silent) = (open(&url).await, open(&url).await);
        silent.set_config("a", json!(1)).await?;
        let mut events = begun(&storage).await;
        until_idle(&mut events).await;
        let observer = raw(&url).await;
        observer.batch_execute("SELECT pg_stat_statements_reset()").await.unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
        let calls = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements \
            WHERE query NOT LIKE '%pg_stat_statements%'";
        let calls: i64 = observer.query_one(calls, &[]).await.unwrap().get(0);
        // And the question of the process that wrote.
        assert!((3..=6).contains(&calls), "{calls}");
        storage.close().await?;
        silent.close().await?;
    }
    Ok(())
}

/// Replicas whose trigger, look or reconnect loses a change would differ at the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_equals_the_store_after_a_storm() -> Result {
    let variable = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let changes = variable("WATCH_CHANGES").unwrap_or(3000);
    let seed = variable("WATCH_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("WATCH_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let server = Server::start(&[]);
    let url = server.url();
    let addr = format!("127.0.0.1:{}", server.port);
    let proxy = Proxy::start(addr.clone()).await;
    let reader = open(&url.replace(&addr, &proxy.addr)).await;
    let storage = open(&url).await;
    let mut events = begun(&reader).await;

    let done = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..8).map(|_| tokio::spawn(write_at_random(storage.clone(), changes / 8, random.fork()))).collect();
    let chaos = tokio::spawn({
        let (done, url, mut random) = (done.clone(), url.clone(), random.fork());
        async move {
            let mut cuts = 0;
            while !done.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(random.u64(50..3000))).await;
                while proxy.cut_one() > 0 {}
                cuts += 1;
                match random.u8(..12) {
                    0 => run(&url, "SELECT setval('{s}.watch_until', 1)").await,
                    1 => run(&url, "TRUNCATE {s}.credentials").await,
                    _ => {}
                }
            }
            cuts
        }
    });
    let all_written = tokio::spawn(async move {
        for writer in writers {
            writer.await.unwrap();
        }
        done.store(true, Ordering::SeqCst);
        chaos.await.unwrap()
    });

    let mut mirror = list(&storage).await?;
    let (mut resyncs, mut told, mut idles) = (0, 0, 0);
    // The second Idle after the last write says that nothing was missed.
    while idles < 2 {
        let event = next(&mut events).await;
        if !matches!(event, Event::Idle { .. }) {
            idles = 0;
        }
        match event {
            Event::Resync { .. } => {
                resyncs += 1;
                mirror = list(&storage).await?;
            }
            Event::Changed { key: Some(key), kind, .. } => {
                told += 1;
                let value = if kind == Config {
                    storage.get_config(&key).await.map(|value| value.value().clone())
                } else {
                    storage.get_credential(&key).await.map(|value| json!(value.fields()))
                };
                let name = (kind, key);
                match value {
                    Ok(value) => drop(mirror.insert(name, value)),
                    Err(error) if error.kind() == ErrorKind::NotFound => drop(mirror.remove(&name)),
                    Err(error) => return Err(error),
                }
            }
            Event::Changed { key: None, .. } => mirror = list(&storage).await?,
            Event::Idle { .. } if all_written.is_finished() => idles += 1,
            Event::Idle { .. } => {}
        }
    }
    let cuts = all_written.await.unwrap();
    println!("{changes} changes, {told} told, {cuts} cuts, {resyncs} resyncs");
    assert_eq!(mirror, list(&storage).await?, "a change was missed: WATCH_SEED={seed}");
    assert!(told > 0);
    reader.close().await?;
    storage.close().await
}

async fn list(storage: &Storage<Postgres>) -> Result<BTreeMap<(DocumentKind, Key), Value>> {
    let configs = storage.list_configs().await?.into_iter();
    let mut all: BTreeMap<_, _> =
        configs.map(|(key, value)| ((Config, key), value.value().clone())).collect();
    let ids = storage.list_credentials().await?;
    for (key, value) in storage.get_credentials(&ids).await?.values {
        all.insert((Credential, key), json!(value.fields()));
    }
    Ok(all)
}

/// Sets, deletes and transactions, of which some wait before they commit.
async fn write_at_random(storage: Storage<Postgres>, changes: u64, mut random: Rng) {
    for n in 0..changes {
        // Many keys: a later change of the same record would hide one that is not told.
        let name = key(&format!("k{}", random.u64(..4 * changes)));
        let written = match random.u8(..8) {
            0 | 1 => storage.set_config(&name, json!(n)).await,
            2 | 3 => storage.set_credential(&name, json!({ "n": n })).await,
            4 => storage.delete_config(&name).await,
            5 => storage.delete_credential(&name).await,
            _ => {
                let pause = Duration::from_millis(if random.u8(..200) == 0 { 2500 } else { random.u64(..3) });
                let commits = random.bool();
                async {
                    let mut tx = storage.begin().await?;
                    tx.set_config(&name, &config(json!(n))).await?;
                    tokio::time::sleep(pause).await;
                    if commits { tx.commit().await } else { tx.rollback().await }
                }
                .await
            }
        };
        if let Err(error) = written {
            let is_usual = matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::Conflict | ErrorKind::Busy | ErrorKind::Timeout
            );
            assert!(is_usual, "{error:?}");
        }
    }
}

/// Also without a watch in this process, and without waiting for the next look of the other.
#[tokio::test]
async fn a_writer_rings_once_the_store_is_watched() -> Result {
    let url = servers::postgres();
    let (reader, writer) = (open(&url).await, open(&url).await);
    let mut events = begun(&reader).await;
    writer.set_config("a", json!(1)).await?;
    tells(&mut events, vec![(Config, Some("a"))]).await;
    let listener = PostgresOptions::try_from(&*url)?;
    let mut driver = tokio_postgres::Config::new();
    let (host, port) = listener.addr.rsplit_once(':').unwrap();
    driver.host(host).port(port.parse().unwrap()).user("tester").dbname("postgres");
    let (client, mut connection) = driver.connect(tokio_postgres::NoTls).await.unwrap();
    let (heard, mut rings) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            if let tokio_postgres::AsyncMessage::Notification(ring) = message {
                drop(heard.send(ring.payload().to_owned()));
            }
        }
    });
    let channel = format!("gateway_storage_{:016x}", {
        use sha2::{Digest, Sha256};
        let digest = Sha256::digest(format!("gateway-storage schema {}", schema(&url)));
        u64::from_be_bytes(digest[..8].try_into().unwrap())
    });
    client.batch_execute(&format!("LISTEN {channel}")).await.unwrap();
    let ring = async {
        loop {
            writer.set_config("a", json!(2)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            if let Ok(payload) = rings.try_recv() {
                return payload;
            }
        }
    };
    assert_eq!(timeout(LATEST, ring).await.expect("the writer rings"), "");
    writer.close().await?;
    reader.close().await
}

#[tokio::test]
async fn next_change_ends_at_a_change_while_something_watches() -> Result {
    let url = servers::postgres();
    let (storage, other) = (open(&url).await, open(&url).await);
    let backend = storage.backend();
    assert!(Conditional::next_change(backend, Config, &key("a")).is_none());
    let events = begun(&storage).await;
    let mut wake = Conditional::next_change(backend, Config, &key("a")).unwrap();
    other.set_config("b", json!(1)).await?;
    assert!(timeout(Duration::from_secs(5), wake.as_mut()).await.is_err(), "another record changed");
    other.set_config("a", json!(1)).await?;
    timeout(LATEST, wake).await.expect("it ends");
    drop(events);
    assert!(Conditional::next_change(backend, Config, &key("a")).is_none());
    other.close().await?;
    storage.close().await
}
