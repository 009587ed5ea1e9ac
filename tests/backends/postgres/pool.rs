//! The pool: resizing and fairness.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use gateway_storage::ErrorKind;
use serde_json::json;

use super::{Result, config, key, open, servers::postgres::Server};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_while_the_pool_is_resized() -> Result {
    let server = Server::start(&[]);
    let storage = open(&format!("{}&pool_size=5", server.url())).await;
    let mut long = storage.begin().await?;
    long.set_config(&key("long"), &config(json!(1))).await?;
    let running = Arc::new(AtomicBool::new(true));
    let calls: Vec<_> = (0..64)
        .map(|task| {
            let (storage, running) = (storage.clone(), running.clone());
            tokio::spawn(async move {
                let (key, mut count) = (key(&format!("{task}")), 0);
                while running.load(Ordering::Relaxed) {
                    count += 1;
                    assert_eq!(storage.increment_usage(&key, "n", 1).await.unwrap(), count);
                }
                count
            })
        })
        .collect();
    let mut open_before = 0;
    for max in [50, 2, 50, 5, 2] {
        tokio::time::sleep(Duration::from_millis(300)).await;
        storage.resize_pool(max).await?;
        tokio::time::sleep(Duration::from_millis(700)).await;
        let pool = storage.pool_stats().await?;
        assert_eq!(pool.max, max);
        assert!(pool.open <= max && pool.open > 0, "{pool:?}");
        assert!(max < 50 || pool.open > open_before, "{pool:?}");
        assert!(max >= 50 || pool.waiting > 0, "64 tasks wait for {max}: {pool:?}");
        open_before = pool.open;
    }
    // The server sees two connections, and that of the transaction on the first pool.
    let administrator = super::raw(&server.url()).await;
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'gateway-storage'";
    let started = Instant::now();
    loop {
        let seen: i64 = administrator.query_one(sessions, &[]).await.unwrap().get(0);
        if seen <= 3 {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(5), "{seen} sessions");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    running.store(false, Ordering::Relaxed);
    for call in calls {
        assert!(call.await.unwrap() > 0);
    }
    long.commit().await?;
    assert_eq!(storage.get_config("long").await?.value(), &json!(1));
    assert_eq!(storage.pool_stats().await?.waiting, 0);
    assert_eq!(storage.resize_pool(0).await.unwrap_err().kind(), ErrorKind::InvalidValue);
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_served_in_order() -> Result {
    let server = Server::start(&[]);
    let storage = open(&format!("{}&pool_size=4", server.url())).await;
    storage.set_config("k", json!(1)).await?;
    let stop = Instant::now() + Duration::from_secs(2);
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let storage = storage.clone();
            tokio::spawn(async move {
                let (mut calls, mut slowest) = (0, Duration::ZERO);
                while Instant::now() < stop {
                    let started = Instant::now();
                    storage.get_config("k").await.unwrap();
                    (calls, slowest) = (calls + 1, slowest.max(started.elapsed()));
                }
                (calls, slowest)
            })
        })
        .collect();
    let (mut counts, mut slowest) = (Vec::new(), Duration::ZERO);
    for task in tasks {
        let (calls, slow) = task.await.unwrap();
        counts.push(calls);
        slowest = slowest.max(slow);
    }
    let (fewest, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    println!("each task got {fewest} to {most} calls, the slowest took {slowest:?}");
    assert!(fewest * 3 > *most, "a task starves: {fewest} to {most}");
    storage.close().await
}
