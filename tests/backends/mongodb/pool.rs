//! The pool is fair, and can be resized.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use gateway_storage::{ErrorKind, Outcome};
use serde_json::json;

use super::{Result, key, open, servers};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_while_the_pool_is_resized() -> Result {
    let storage = open(&format!("{}&maxPoolSize=5", servers::mongodb())).await;
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
    for max in [20, 2, 20, 5] {
        storage.resize_pool(max).await?;
        tokio::time::sleep(Duration::from_millis(700)).await;
        let pool = storage.pool_stats().await?;
        assert_eq!(pool.max, max);
        assert!((1..=max).contains(&pool.open) && pool.waiting > 0, "64 tasks wait for {max}: {pool:?}");
    }
    running.store(false, Ordering::Relaxed);
    let mut counts = Vec::new();
    for call in calls {
        counts.push(call.await.unwrap());
    }
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(most - least <= 2 + most / 2, "the queue is unfair: {least} to {most} calls per task");
    let begun = Instant::now();
    while storage.pool_stats().await?.idle == 0 {
        assert!(begun.elapsed() < Duration::from_secs(5), "no connection is idle");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let error = storage.resize_pool(0).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::InvalidValue, Outcome::NotApplied));
    storage.set_config("a", json!(1)).await?;
    storage.close().await
}
