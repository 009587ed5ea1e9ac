//! Crashes and stops of the server, and lost connections.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use gateway_storage::{ErrorKind, Outcome, Postgres, Storage};
use serde_json::json;

use super::{
    Result, config, key, open, raw,
    servers::{load::Load, postgres::Server},
};

/// Checks that no connection is leaked: all can be used at once.
async fn check_pool(storage: &Storage<Postgres>) -> Result {
    let pool = storage.pool_stats().await?;
    assert!((1..=pool.max).contains(&pool.open) && pool.waiting == 0, "{pool:?}");
    // One transaction per connection.
    let mut held = Vec::new();
    for _ in 0..pool.max {
        held.push(storage.begin().await?);
    }
    let short = storage.with_deadline(Duration::from_millis(50));
    assert_eq!(short.begin().await.unwrap_err().kind(), ErrorKind::Timeout);
    Ok(())
}

async fn recovers(storage: &Storage<Postgres>) -> Instant {
    let returned = Instant::now();
    while storage.health().await.is_err() {
        assert!(returned.elapsed() < Duration::from_secs(2), "no recovery");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    returned
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovers_from_crashes_of_the_server_and_loses_no_count() -> Result {
    let mut server = Server::start(&[]);
    let storage = open(&server.url()).await;
    let load = Load::start(&storage);
    let mut returned = Instant::now();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        server.kill();
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.restart();
        returned = recovers(&storage).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    load.check(&storage, returned).await?;
    check_pool(&storage).await?;
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminated_connections_are_replaced_and_lose_no_count() -> Result {
    let server = Server::start(&[]);
    let storage = open(&server.url()).await;
    let administrator = raw(&server.url()).await;
    let load = Load::start(&storage);
    let mut terminated = 0;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'gateway-storage'";
        terminated += administrator.query(all, &[]).await.unwrap().len();
    }
    assert!(terminated > 20, "{terminated}");
    let returned = recovers(&storage).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    load.check(&storage, returned).await?;
    check_pool(&storage).await?;
    storage.close().await
}

#[tokio::test]
async fn timeouts_on_a_stopped_server_have_true_outcomes() -> Result {
    let server = Server::start(&[]);
    let storage = open(&server.url()).await;
    storage.set_config("a", json!(0)).await?;
    let short = storage.with_deadline(Duration::from_millis(300));
    let mut tx = short.begin().await?;
    tx.set_config(&key("b"), &config(json!(1))).await?;
    // Opens the connections that are needed below: a stopped server accepts none.
    let held =
        [storage.begin().await?, storage.begin().await?, storage.begin().await?, storage.begin().await?];
    for tx in held {
        tx.rollback().await?;
    }
    server.signal_all("-STOP");
    let begun = Instant::now();
    let (set, increment, get, list, commit) = tokio::join!(
        short.set_config("a", json!(1)),
        short.increment_usage("a", "n", 1),
        short.get_config("a"),
        short.list_credentials(),
        tx.commit(),
    );
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    for (error, outcomes) in [
        (set.unwrap_err(), &[Outcome::Unknown, Outcome::NotApplied][..]),
        (increment.unwrap_err(), &[Outcome::Unknown, Outcome::NotApplied]),
        (get.unwrap_err(), &[Outcome::NotApplied]),
        (list.unwrap_err(), &[Outcome::NotApplied]),
        (commit.unwrap_err(), &[Outcome::Unknown]),
    ] {
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(outcomes.contains(&error.outcome()), "{error:?}");
    }

    // A store that is opened now gets no connection, so nothing is applied.
    let begun = Instant::now();
    let error =
        Storage::<Postgres>::open(format!("{}&deadline=300ms", server.url()).as_str()).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied));
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());

    server.signal_all("-CONT");
    recovers(&storage).await;
    let total = storage.increment_usage("a", "n", 1).await?;
    assert!((1..=2).contains(&total), "{total}");
    storage.close().await
}

#[tokio::test]
async fn after_timeouts_of_the_server_nothing_was_applied() -> Result {
    let server = Server::start(&[]);
    let holder = open(&server.url()).await;
    holder.set_config("a", json!(0)).await?;
    for (option, kind, code) in [
        ("lock_timeout=100ms", ErrorKind::Busy, "55P03"),
        ("statement_timeout=100ms", ErrorKind::Timeout, "57014"),
    ] {
        let mut tx = holder.begin().await?;
        tx.set_config(&key("a"), &config(json!(1))).await?;
        let storage = open(&format!("{}&{option}", server.url())).await;
        let error = storage.set_config("a", json!(2)).await.unwrap_err();
        assert_eq!((error.kind(), error.code()), (kind, Some(code)));
        assert_eq!((error.outcome(), error.is_retryable()), (Outcome::NotApplied, true));
        tx.rollback().await?;
        storage.set_config("a", json!(2)).await?;
        storage.close().await?;
    }
    holder.close().await
}

/// The error of a write that waits for a lock until its deadline. Checks its outcome once the lock is
/// released.
async fn late_write(url: &str) -> Result<gateway_storage::Error> {
    let holder = open(url).await;
    holder.set_config("a", json!(0)).await?;
    let mut tx = holder.begin().await?;
    tx.set_config(&key("a"), &config(json!(1))).await?;
    let storage = open(url).await;
    let error = storage.with_deadline(Duration::from_secs(1)).set_config("a", json!(2)).await.unwrap_err();
    tx.rollback().await?;
    if error.outcome() == Outcome::NotApplied {
        // The server runs this after the write, if it is still running.
        holder.with_deadline(Duration::from_secs(10)).increment_usage("a", "n", 1).await?;
        assert_eq!(holder.get_config("a").await?.value(), &json!(0), "the write was applied");
    }
    storage.set_config("a", json!(3)).await?;
    storage.close().await?;
    holder.close().await?;
    Ok(error)
}

#[tokio::test]
async fn a_write_is_cancelled_before_its_deadline() -> Result {
    let server = Server::start(&[]);
    let error = late_write(&server.url()).await?;
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied), "{error:?}");
    assert_eq!(error.code(), Some("57014"));
    // Behind PgBouncer no request is cancelled.
    let error = late_write(&super::servers::pgbouncer()).await?;
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown), "{error:?}");
    Ok(())
}

/// A cancelled commit that waits for a replica is applied on the primary only, and the server reports a
/// success.
#[tokio::test]
async fn a_cancelled_wait_for_a_replica_is_not_ok() -> Result {
    let server = Server::start(&[]);
    let storage = open(&server.url()).await;
    let administrator = raw(&server.url()).await;
    for statement in ["ALTER SYSTEM SET synchronous_standby_names = 'missing'", "SELECT pg_reload_conf()"] {
        administrator.batch_execute(statement).await.unwrap();
    }
    let (short, started) = (storage.with_deadline(Duration::from_secs(1)), Instant::now());
    let error = loop {
        match short.set_config("a", json!(1)).await {
            Err(error) => break error,
            // The server has not reloaded its settings yet.
            Ok(()) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
        assert!(started.elapsed() < Duration::from_secs(20), "writes are Ok without a replica");
    };
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown), "{error:?}");
    Ok(())
}

/// After a crash the server reuses the numbers of lost transactions, whose status is then that of later ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_a_crash_lost_is_never_ok() -> Result {
    let mut server = Server::start(&[]);
    let storage = open(&server.url()).await;
    let running = Arc::new(AtomicBool::new(true));
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let (storage, running) = (storage.clone(), running.clone());
            tokio::spawn(async move {
                let (mut committed, mut not_applied, mut unknown) = (Vec::new(), Vec::new(), 0);
                let mut n = 0;
                while running.load(Ordering::SeqCst) {
                    n += 1;
                    let id = key(&format!("transfer-{task}-{n}"));
                    let transfer = async {
                        let mut tx = storage.begin().await?;
                        tx.set_config(&id, &config(json!(n))).await?;
                        tx.commit().await
                    };
                    match transfer.await {
                        Ok(()) => committed.push(id),
                        Err(error) if error.outcome() == Outcome::Unknown => unknown += 1,
                        Err(_) => {
                            not_applied.push(id);
                            tokio::time::sleep(Duration::from_millis(2)).await;
                        }
                    }
                }
                (committed, not_applied, unknown)
            })
        })
        .collect();
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        server.kill();
        server.restart();
        recovers(&storage).await;
    }
    running.store(false, Ordering::SeqCst);
    let (mut all_committed, mut all_not_applied, mut unknown) = (0, 0, 0);
    let mut stored = std::collections::BTreeSet::new();
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.unwrap());
    }
    stored.extend(storage.list_configs().await?.into_keys());
    for (committed, not_applied, in_doubt) in results {
        assert!(committed.iter().all(|id| stored.contains(id)), "a commit that was Ok is missing");
        assert!(not_applied.iter().all(|id| !stored.contains(id)), "a commit that was NotApplied is stored");
        all_committed += committed.len();
        all_not_applied += not_applied.len();
        unknown += in_doubt;
    }
    println!("{all_committed} committed, {all_not_applied} not, {unknown} unknown");
    assert!(all_committed > 0);
    storage.close().await
}

#[tokio::test]
async fn a_host_that_does_not_respond_is_skipped() -> Result {
    let server = Server::start(&[]);
    // Accepts connections and sends nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = server.url().replace("@127.0.0.1", &format!("@{},127.0.0.1", silent.local_addr().unwrap()));
    assert!(url.contains(','), "{url}");
    let storage = Storage::<Postgres>::open(format!("{url}&connect_timeout=300ms").as_str()).await?;
    storage.set_config("a", json!(1)).await?;
    storage.close().await
}

#[tokio::test]
async fn a_write_after_the_deadline_is_not_sent() -> Result {
    let server = Server::start(&[]);
    let storage = open(&server.url()).await;
    let late = storage.with_deadline(Duration::ZERO);
    let error = late.set_config("a", json!(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied), "{error:?}");
    assert_eq!(storage.get_config("a").await.unwrap_err().kind(), ErrorKind::NotFound);
    storage.close().await
}
