//! Servers die, stop, and are elected.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use gateway_storage::{ErrorKind, MongoDb, Outcome, Storage, Transaction};
use serde_json::json;

use super::{
    Result, config, key, open, recovers,
    servers::{
        load::Load,
        mongodb::{ReplicaSet, Server},
        proxy::Proxy,
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_killed_loses_nothing_that_was_acknowledged() -> Result {
    let mut set = ReplicaSet::start(3);
    let storage = open(&set.url("failover")).await;
    let counting = Load::start(&storage);
    let running = Arc::new(AtomicBool::new(true));
    // Batches are not sent again by the driver, and documents are not counted: both, beside the counters.
    let setting: Vec<_> = (0..4)
        .map(|task| {
            let (storage, running) = (storage.clone(), running.clone());
            tokio::spawn(async move {
                let (mut there, mut not_there, mut slowest, mut n) =
                    (Vec::new(), Vec::new(), Duration::ZERO, 0);
                while running.load(Ordering::SeqCst) {
                    n += 1;
                    let id = key(&format!("{task}-{n}"));
                    let begun = Instant::now();
                    let item = (id.clone(), json!({ "n": n }).try_into().unwrap());
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
                        Ok(()) => there.push(id),
                        Err(error) => {
                            assert!(error.is_retryable(), "{error:?}");
                            if error.outcome() == Outcome::NotApplied {
                                not_there.push(id);
                            }
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                    }
                }
                (there, not_there, slowest)
            })
        })
        .collect();
    let mut returned = Instant::now();
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let primary = set.primary();
        set.members[primary].kill();
        // The storage's calls go on meanwhile, on the runtime's other threads.
        set.primary();
        let elected = Instant::now();
        returned = recovers(&storage).await;
        println!("recovered {:?} after the election", returned - elected);
        assert!(returned - elected < Duration::from_secs(5));
        set.members[primary].restart();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    running.store(false, Ordering::SeqCst);
    let (mut sure, mut undone) = (Vec::new(), Vec::new());
    for task in setting {
        let (there, not_there, slowest) = task.await.unwrap();
        assert!(slowest < Duration::from_secs(11), "past its deadline: {slowest:?}");
        sure.extend(there);
        undone.extend(not_there);
    }
    counting.check(&storage, returned).await?;
    let stored: BTreeSet<_> = storage.list_credentials().await?.into_iter().collect();
    println!("{} documents acknowledged, {} not applied, {} there", sure.len(), undone.len(), stored.len());
    assert!(sure.iter().all(|id| stored.contains(id)), "a write that was Ok is not there");
    assert!(undone.iter().all(|id| !stored.contains(id)), "a write that was NotApplied is there");
    assert!(sure.len() > 10);
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovers_when_its_server_does_and_loses_no_count() -> Result {
    let mut server = Server::start(&[]);
    let storage = open(&server.url("counted")).await;
    let load = Load::start(&storage);
    let mut returned = Instant::now();
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        server.kill();
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.restart();
        returned = recovers(&storage).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    load.check(&storage, returned).await?;
    storage.close().await
}

#[tokio::test]
async fn a_stopped_server_makes_true_timeouts() -> Result {
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
    recovers(&storage).await;
    let total = storage.increment_usage("a", "n", 1).await?;
    assert!((1..=2).contains(&total), "{total}");
    storage.close().await
}

#[tokio::test]
async fn without_a_server_calls_end_in_time_and_say_that_nothing_happened() -> Result {
    let mut server = Server::start(&[]);
    let url = format!("{}&serverSelectionTimeoutMS=500", server.url("gone"));
    let storage = open(&url).await;
    storage.set_config("a", json!(1)).await?;
    server.kill();
    // The first calls may be the ones that notice.
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
    recovers(&storage).await;
    assert_eq!(storage.increment_usage("a", "n", 1).await?, 1);
    storage.close().await
}

#[tokio::test]
async fn closing_ends_in_time_whatever_the_server_does() -> Result {
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
async fn a_server_that_is_alone_deletes_right_after_a_resize() -> Result {
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
async fn writes_that_hang_give_their_turns_back() -> Result {
    let server = Server::start(&[]);
    let proxy = Proxy::start(server.addr()).await;
    // With this heartbeat the driver takes half a minute to see that a server is silent.
    let url = format!(
        "mongodb://{}/hung?maxPoolSize=2&deadline=300ms&connectTimeoutMS=20000&serverSelectionTimeoutMS=200",
        proxy.addr
    );
    let storage = open(&url).await;
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
        "no turn: {error:?}"
    );
    // On new connections everything passes.
    while let Err(error) = storage.get_config("a").await {
        assert!(begun.elapsed() < Duration::from_secs(15), "the turns are not given back: {error:?}");
    }
    assert!(begun.elapsed() > Duration::from_secs(4), "it was no turn that was missing");
    storage.close().await
}

#[tokio::test]
async fn the_member_that_can_not_be_reached_is_named() {
    // The driver's time to find a server may be over first, or ours to open the store.
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
