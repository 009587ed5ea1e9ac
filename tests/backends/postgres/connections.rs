//! How many connections are opened, and to which server.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use gateway_storage::{ErrorKind, Outcome, Postgres, Storage};
use serde_json::json;

use super::{
    Result, config, key, open, raw,
    servers::{postgres::Server, proxy::Proxy},
};

/// A proxy that counts connections, and the URL through it.
async fn counting_proxy(server: &Server) -> (Proxy, String) {
    let addr = format!("127.0.0.1:{}", server.port);
    let proxy = Proxy::start(addr.clone()).await;
    let url = server.url().replace(&addr, &proxy.addr);
    (proxy, url)
}

async fn run(server: &Server, statements: &[&str]) {
    let administrator = raw(&server.url()).await;
    for statement in statements {
        administrator.batch_execute(statement).await.unwrap();
    }
}

const NO_WRITES: [&str; 2] =
    ["ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"];

/// Opens all connections of a pool.
async fn fill(storage: &Storage<Postgres>) -> Result {
    let mut held = Vec::new();
    for _ in 0..storage.pool_stats().await?.max {
        held.push(storage.begin().await?);
    }
    for tx in held {
        tx.rollback().await?;
    }
    Ok(())
}

#[tokio::test]
async fn refused_writes_open_few_connections() -> Result {
    const POOL: u64 = 4;
    let server = Server::start(&[]);
    let (proxy, url) = counting_proxy(&server).await;
    let storage = open(&format!("{url}&pool_size={POOL}")).await;
    fill(&storage).await?;
    run(&server, &NO_WRITES).await;
    let started = Instant::now();
    while storage.set_config("a", json!(0)).await.is_ok() {
        assert!(started.elapsed() < Duration::from_secs(20), "the server still takes writes");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (before, started) = (proxy.accepted(), Instant::now());
    let refused = stream::iter(0..1000).map(|_| storage.set_config("a", json!(1))).buffer_unordered(10);
    let errors: Vec<_> = refused.map(Result::unwrap_err).collect().await;
    let (connections, seconds) = (proxy.accepted() - before, started.elapsed().as_secs());
    for error in errors {
        assert_eq!((error.code(), error.outcome()), (Some("25006"), Outcome::NotApplied));
    }
    // One for each slot of the pool at once, then one per second.
    assert!(connections <= POOL * (seconds + 2), "{connections} connections in {seconds} s");
    Ok(())
}

/// A primary that becomes a standby keeps its connections and serves reads on them.
#[tokio::test]
async fn health_finds_the_new_primary() -> Result {
    const POOL: usize = 4;
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    let (proxy, url) = counting_proxy(&old).await;
    open(&new.url()).await.set_config("a", json!("new")).await?;
    let storage = open(&format!("{url}&pool_size={POOL}")).await;
    storage.set_config("a", json!("old")).await?;
    fill(&storage).await?;
    proxy.lead_to(format!("127.0.0.1:{}", new.port));
    run(&old, &NO_WRITES).await;
    // Younger connections are not retired.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let (mut failures, started) = (0, Instant::now());
    loop {
        let health = storage.health().await;
        match &health {
            Ok(()) if storage.get_config("a").await?.value() == "new" => break,
            // The old server has not reloaded its settings yet.
            Ok(()) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => {
                assert_eq!(error.code(), Some("25006"));
                failures += 1;
            }
        }
        assert!(failures <= POOL, "a failure for each connection, and still no new primary");
        assert!(started.elapsed() < Duration::from_secs(20), "the old server still takes writes");
    }
    storage.set_config("a", json!("newer")).await?;
    storage.close().await
}

/// Polls a call once, yields twice, and drops it. Returns whether it was pending.
async fn drop_while_pending(call: impl Future) -> bool {
    let mut call = pin!(call);
    let is_pending = poll_fn(|context| Poll::Ready(call.as_mut().poll(context).is_pending())).await;
    if is_pending {
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
    }
    is_pending
}

#[tokio::test]
async fn dropped_calls_open_few_connections() -> Result {
    const POOL: u64 = 4;
    let server = Server::start(&[]);
    let (proxy, url) = counting_proxy(&server).await;
    let storage = open(&format!("{url}&pool_size={POOL}")).await;
    storage.set_config("a", json!(1)).await?;
    let opened = proxy.accepted();
    // Calls are also dropped while they prepare the statement.
    let calls = stream::iter(0..1000).map(async |_| {
        // Opens a connection, so that the dropped call sends its request.
        storage.health().await.unwrap();
        drop_while_pending(storage.get_config("a")).await
    });
    let dropped = calls.buffer_unordered(POOL as usize).filter(|dropped| std::future::ready(*dropped));
    let dropped = dropped.count().await;
    assert!(dropped > 500, "only {dropped} calls were dropped");
    assert_eq!(storage.get_config("a").await?.value(), &json!(1));
    let connections = proxy.accepted() - opened;
    assert!(connections <= 3 * POOL, "{connections} connections for {dropped} dropped calls");

    // All calls on one connection.
    let storage = open(&format!("{url}&pool_size=1")).await;
    for _ in 0..100 {
        drop_while_pending(storage.get_config("a")).await;
        // The next call gets the cleaned-up connection.
        storage.health().await?;
    }
    storage.get_config("a").await?;
    let mut tx = storage.begin().await?;
    tx.get_config(&key("a")).await?;
    drop(tx);
    storage.health().await?;
    storage.close().await
}

#[tokio::test]
async fn dropped_calls_that_wait_for_a_lock_open_connections_at_a_limited_rate() -> Result {
    const POOL: u64 = 4;
    let server = Server::start(&[]);
    let (proxy, url) = counting_proxy(&server).await;
    let holder = open(&server.url()).await;
    holder.set_config("a", json!(0)).await?;
    let storage = open(&format!("{url}&pool_size={POOL}")).await;
    fill(&storage).await?;
    let mut tx = holder.begin().await?;
    tx.set_config(&key("a"), &config(json!(1))).await?;
    let (before, started) = (proxy.accepted(), Instant::now());
    let late = stream::iter(0..400)
        .map(|_| tokio::time::timeout(Duration::from_millis(20), storage.set_config("a", json!(2))));
    let results: Vec<_> = late.buffer_unordered(8).collect().await;
    assert!(results.iter().all(std::result::Result::is_err), "the row is locked");
    let (connections, elapsed) = (proxy.accepted() - before, started.elapsed());
    // For each slot of the pool and each cleanup timeout: one to cancel and a new one.
    let most = 2 * POOL * (elapsed.as_millis() as u64 / 250 + 2);
    assert!(connections <= most, "{connections} connections in {elapsed:?}");
    tx.rollback().await?;
    // A dropped write may still be applied until its connection is cleaned up.
    let client = raw(&server.url()).await;
    let active = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend' \
                  AND pid <> pg_backend_pid()";
    while !client.query(active, &[]).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    storage.set_config("a", json!(3)).await?;
    assert_eq!(storage.get_config("a").await?.value(), &json!(3));
    assert!(storage.pool_stats().await?.open <= POOL as u32);
    storage.close().await
}

#[tokio::test]
async fn a_store_with_the_latest_schema_is_opened_over_one_connection() -> Result {
    let server = Server::start(&[]);
    let (proxy, url) = counting_proxy(&server).await;
    // One that finds no schema, one that creates it, and one for calls.
    for expected in [3, 4, 5] {
        let storage = open(&url).await;
        storage.set_config("a", json!(1)).await?;
        storage.close().await?;
        assert_eq!(proxy.accepted(), expected);
    }
    Ok(())
}

/// A call that ends while another process creates the schema.
#[tokio::test]
async fn a_migration_that_waits_too_long_leaves_no_session() -> Result {
    let server = Server::start(&[]);
    let administrator = raw(&server.url()).await;
    administrator.batch_execute("BEGIN; CREATE SCHEMA gateway_storage").await.unwrap();
    let late = format!("{}&deadline=500ms", server.url());
    let error = Storage::<Postgres>::open(late.as_str()).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied), "{error:?}");
    let sessions = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'gateway-storage'";
    let started = Instant::now();
    while !raw(&server.url()).await.query(sessions, &[]).await.unwrap().is_empty() {
        assert!(started.elapsed() < Duration::from_secs(30), "the session stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    administrator.batch_execute("ROLLBACK").await.unwrap();
    open(&server.url()).await.close().await
}

/// The first calls of a store dial together, and some are refused before any is accepted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_calls_share_the_few_connections_of_a_server() -> Result {
    let server = Server::start(&[]);
    run(
        &server,
        &["CREATE ROLE limited LOGIN CONNECTION LIMIT 1", "GRANT CREATE ON DATABASE postgres TO limited"],
    )
    .await;
    let url = format!("{}&pool_size=10", server.url().replace("tester@", "limited@"));
    for round in 0..20 {
        let storage = open(&url).await;
        let calls = stream::iter(0..50).map(|_| storage.increment_usage("all", "n", 1));
        let totals: Vec<_> = calls.buffer_unordered(50).collect().await;
        for total in totals {
            total.unwrap_or_else(|error| panic!("round {round}: {error:?}"));
        }
        storage.close().await?;
        // The server counts a session until it has ended it.
        let sessions = "SELECT 1 FROM pg_stat_activity WHERE usename = 'limited'";
        while !raw(&server.url()).await.query(sessions, &[]).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    Ok(())
}

/// The server accepts fewer connections than the pool may open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_accepts_few_connections_gets_few_attempts() -> Result {
    const FEW: u32 = 3;
    let server = Server::start(&[]);
    let limit = format!("CREATE ROLE limited LOGIN CONNECTION LIMIT {FEW}");
    run(&server, &[&limit, "GRANT CREATE ON DATABASE postgres TO limited"]).await;
    let (proxy, url) = counting_proxy(&server).await;
    let storage = open(&format!("{}&pool_size=10", url.replace("tester@", "limited@"))).await;
    let started = Instant::now();
    let tasks: Vec<_> = (0..50)
        .map(|task| {
            let storage = storage.clone();
            tokio::spawn(async move {
                let (own, mut count) = (key(&format!("{task}")), 0);
                while started.elapsed() < Duration::from_secs(4) {
                    count += 1;
                    assert_eq!(storage.increment_usage(&own, "n", 1).await.unwrap(), count);
                }
                count
            })
        })
        .collect();
    let mut counts = Vec::new();
    for task in tasks {
        counts.push(task.await.unwrap());
    }
    let (fewest, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    let connections = proxy.accepted();
    println!("each task counted to {fewest} to {most}, over {connections} connections");
    assert!(fewest * 3 > *most, "a task starves: {fewest} to {most}");
    assert!(connections < 50, "{connections} attempts to connect");
    assert!(storage.pool_stats().await?.open <= FEW);

    // Once the server accepts more, the pool grows.
    run(&server, &["ALTER ROLE limited CONNECTION LIMIT 20"]).await;
    let started = Instant::now();
    while storage.pool_stats().await?.open <= FEW {
        assert!(started.elapsed() < Duration::from_secs(60), "no more connections than before");
        let calls = stream::iter(0..200).map(|_| storage.increment_usage("more", "n", 1));
        calls.buffer_unordered(50).map(Result::unwrap).collect::<Vec<_>>().await;
    }
    storage.close().await
}
