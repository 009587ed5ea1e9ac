//! Servers that are killed, stopped and elected.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use gateway_storage::{Credential, ErrorKind, Key, MongoDb, Outcome, Storage};
use serde_json::json;

use super::{
    Result, config, key, open,
    servers::{
        load::Load,
        mongodb::{ReplicaSet, Server},
        proxy::Proxy,
    },
    until_healthy,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_primary_loses_no_acknowledged_write() -> Result {
    let mut set = ReplicaSet::start(3);
    let storage = open(&set.url("failover")).await;
    let counting = Load::start(&storage);
    let running = Arc::new(AtomicBool::new(true));
    // Beside the counters: batches, which the driver does not send again, single writes, and transactions.
    let writers: Vec<_> = (0..4)
        .map(|task| {
            let (storage, running) = (storage.clone(), running.clone());
            tokio::spawn(async move {
                let (mut acknowledged, mut not_applied, mut slowest, mut n) =
                    (Vec::new(), Vec::new(), Duration::ZERO, 0);
                while running.load(Ordering::SeqCst) {
                    n += 1;
                    let id = key(&format!("{task}-{n}"));
                    let begun = Instant::now();
                    let item: (Key, Credential) = (id.clone(), json!({ "n": n }).try_into().unwrap());
                    let result = match n % 3 {
                        0 => storage
                            .set_credentials(&[item])
                            .await
                            .and_then(|report| report.complete())
                            .map(drop),
                        1 => storage.set_credential(&id, item.1).await,
                        _ => match storage.begin().await {
                            Ok(mut tx) => match tx.set_credential(&id, &item.1).await {
                                Ok(()) => tx.commit().await,
                                Err(error) => Err(error),
                            },
                            Err(error) => Err(error),
                        },
                    };
                    slowest = slowest.max(begun.elapsed());
                    match result {
                        Ok(()) => acknowledged.push(id),
                        Err(error) => {
                            assert!(error.is_retryable(), "{error:?}");
                            if error.outcome() == Outcome::NotApplied {
                                not_applied.push(id);
                            }
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                    }
                }
                (acknowledged, not_applied, slowest)
            })
        })
        .collect();
    let mut returned = Instant::now();
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let primary = set.primary();
        set.members[primary].kill();
        // This blocks its thread; the calls go on, on the runtime's other one.
        set.primary();
        let elected = Instant::now();
        returned = until_healthy(&storage).await;
        println!("recovered {:?} after the election", returned - elected);
        assert!(returned - elected < Duration::from_secs(5));
        set.members[primary].restart();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    running.store(false, Ordering::SeqCst);
    let (mut acknowledged, mut not_applied) = (Vec::new(), Vec::new());
    for task in writers {
        let (of_task, refused, slowest) = task.await.unwrap();
        assert!(slowest < Duration::from_secs(11), "past its deadline: {slowest:?}");
        acknowledged.extend(of_task);
        not_applied.extend(refused);
    }
    counting.check(&storage, returned).await?;
    let stored: BTreeSet<_> = storage.list_credentials().await?.into_iter().collect();
    let (ok, refused) = (acknowledged.len(), not_applied.len());
    println!("{ok} documents acknowledged, {refused} not applied, {} stored", stored.len());
    assert!(acknowledged.iter().all(|id| stored.contains(id)), "a write that was Ok is not stored");
    assert!(not_applied.iter().all(|id| !stored.contains(id)), "a write that was NotApplied is stored");
    assert!(ok > 10);
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_recovers_with_its_server_and_loses_no_count() -> Result {
    let mut server = Server::start(&[]);
    let storage = open(&server.url("counted")).await;
    let load = Load::start(&storage);
    let mut returned = Instant::now();
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        server.kill();
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.restart();
        returned = until_healthy(&storage).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    load.check(&storage, returned).await?;
    storage.close().await
}

#[tokio::test]
async fn timeouts_of_a_stopped_server_have_the_right_outcome() -> Result {
    let set = ReplicaSet::start(1);
    let storage = open(&set.url("stopped")).await;
    storage.set_config("a", json!(0)).await?;
    let hurried = storage.with_deadline(Duration::from_millis(300));
    let mut tx = hurried.begin().await?;
    tx.set_config(&key("b"), &config(json!(1))).await?;
    set.members[0].signal("-STOP");
    let begun = Instant::now();
    let (set_config, increment, get, list, commit) = tokio::join!(
        hurried.set_config("a", json!(1)),
        hurried.increment_usage("a", "n", 1),
        hurried.get_config("a"),
        hurried.list_credentials(),
        tx.commit(),
    );
    assert!(begun.elapsed() < Duration::from_millis(600), "{:?}", begun.elapsed());
    for (error, outcome) in [
        (set_config.unwrap_err(), Outcome::Unknown),
        (increment.unwrap_err(), Outcome::Unknown),
        (get.unwrap_err(), Outcome::NotApplied),
        (list.unwrap_err(), Outcome::NotApplied),
        (commit.unwrap_err(), Outcome::Unknown),
    ] {
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, outcome), "{error:?}");
    }
    set.members[0].signal("-CONT");
    until_healthy(&storage).await;
    let total = storage.increment_usage("a", "n", 1).await?;
    assert!((1..=2).contains(&total), "{total}");
    storage.close().await
}

#[tokio::test]
async fn calls_without_a_server_fail_soon_and_are_not_applied() -> Result {
    let mut server = Server::start(&[]);
    let url = format!("{}&serverSelectionTimeoutMS=500", server.url("gone"));
    let storage = open(&url).await;
    storage.set_config("a", json!(1)).await?;
    server.kill();
    // The first calls may be those that detect the loss.
    for _ in 0..3 {
        drop(storage.get_config("a").await.unwrap_err());
    }
    let begun = Instant::now();
    let error = storage.increment_usage("a", "n", 1).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied), "{error:?}");
    assert!(error.is_retryable() && begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let error = Storage::<MongoDb>::open(url.as_str()).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
    server.restart();
    until_healthy(&storage).await;
    assert_eq!(storage.increment_usage("a", "n", 1).await?, 1);
    storage.close().await
}

#[tokio::test]
async fn closing_ends_at_its_deadline_if_the_server_is_stopped() -> Result {
    let server = Server::start(&[]);
    let storage = open(&server.url("stopped")).await.with_deadline(Duration::from_millis(500));
    storage.set_config("a", json!(0)).await?;
    server.signal("-STOP");
    let begun = Instant::now();
    storage.close().await?;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    server.signal("-CONT");
    Ok(())
}

#[tokio::test]
async fn a_standalone_server_deletes_a_batch_right_after_a_resize() -> Result {
    let server = Server::start(&[]);
    let storage = open(&server.url("resized")).await;
    for size in 2..6 {
        storage.set_credential("a", json!({})).await?;
        storage.resize_pool(size).await?;
        storage.delete_credentials(&[key("a")]).await?.complete()?;
    }
    storage.close().await
}

#[tokio::test]
async fn hung_writes_release_their_permits() -> Result {
    let server = Server::start(&[]);
    let proxy = Proxy::start(server.addr()).await;
    // With this `connectTimeoutMS` the driver takes half a minute to detect a silent server.
    let url = format!(
        "mongodb://{}/hung?maxPoolSize=2&connectTimeoutMS=20000&serverSelectionTimeoutMS=200",
        proxy.addr
    );
    let storage = open(&url).await.with_deadline(Duration::from_millis(300));
    storage.set_config("a", json!(0)).await?;
    let hanging = || async {
        let error = storage.set_config("a", json!(1)).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown), "{error:?}");
    };
    drop(tokio::join!(storage.get_config("a"), storage.get_config("a")));
    proxy.fall_silent();
    let begun = Instant::now();
    tokio::join!(hanging(), hanging());
    let error = storage.get_config("a").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Timeout, Outcome::NotApplied),
        "no permit: {error:?}"
    );
    // The proxy passes everything on new connections.
    while let Err(error) = storage.get_config("a").await {
        assert!(begun.elapsed() < Duration::from_secs(15), "the permits are not released: {error:?}");
    }
    assert!(begun.elapsed() > Duration::from_secs(4), "the call was not waiting for a permit");
    storage.close().await
}

#[tokio::test]
async fn errors_name_the_member_that_can_not_be_reached() {
    // Either the driver's timeout for selecting a server ends first, or the deadline for opening the store.
    for limit in ["serverSelectionTimeoutMS=1000", "deadline=1s", "deadline=1s&tls=true"] {
        for member in ["127.0.0.1:1", "nowhere.invalid:27017"] {
            let url = format!("mongodb://{member}/x?{limit}");
            let error = Storage::<MongoDb>::open(url.as_str()).await.unwrap_err();
            let found = (error.kind(), error.outcome());
            assert_eq!(found, (ErrorKind::Unavailable, Outcome::NotApplied), "{limit}: {error:?}");
            assert!(error.to_string().contains(&format!("server at {member}")), "{limit}: {error:?}");
        }
    }
}
