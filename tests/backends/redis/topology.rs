//! Failovers of sentinels and clusters, and resharding.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follows_a_failover_of_sentinels() -> Result {
    let mut sentinels = Sentinels::start();
    // With WAIT every acknowledged write is also on a replica when the master dies.
    let storage =
        Storage::<Redis>::open(format!("{}?wait_replicas=1&dial_timeout=1s", sentinels.url()).as_str())
            .await?;
    storage.set_config("before", json!(1)).await?;
    let running = Arc::new(AtomicBool::new(true));
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (storage, running) = (storage.clone(), running.clone());
            tokio::spawn(async move { Tally::of(&storage, "total", i64::MAX, &running).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let _sentinels = tokio::task::spawn_blocking(move || {
        sentinels.fail_over();
        sentinels
    })
    .await
    .unwrap();
    running.store(false, Ordering::SeqCst);
    let mut tally = Tally::default();
    for task in tasks {
        tally = tally.add(task.await.unwrap());
    }
    // The new master has no replica, so that no write is confirmed. Reads succeed.
    let error = storage.set_config("after", json!(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::Unknown), "{error:?}");
    assert_eq!(storage.get_config("after").await?.value(), &json!(1));
    assert_eq!(storage.get_config("before").await?.value(), &json!(1));
    let total = storage.get_usage("total").await?.get("n").unwrap();
    println!("{} acknowledged, {} unknown, {total} counted", tally.acknowledged, tally.unknown);
    assert!(tally.acknowledged > 0);
    assert!((tally.acknowledged..=tally.acknowledged + tally.unknown).contains(&total));
    storage.close().await
}

#[tokio::test]
async fn the_sentinels_must_monitor_the_master() -> Result {
    let sentinels = Sentinels::start();
    let url = sentinels.url().replace("/mymaster", "/other");
    let error = Storage::<Redis>::open(url.as_str()).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::InvalidValue, Outcome::NotApplied), "{error:?}");
    // Sentinels that can't be reached are skipped.
    let some = sentinels.url().replace("://", "://127.0.0.1:1,");
    let storage = Storage::<Redis>::open(some.as_str()).await?;
    storage.health().await?;
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_resharded_under_load() -> Result {
    let cluster = Cluster::start(3, 0);
    let storage = Storage::<Redis>::open(cluster.url().as_str()).await?;
    let running = Arc::new(AtomicBool::new(true));
    // With keys of all servers.
    let tasks: Vec<_> = (0..32)
        .map(|n| {
            let (storage, running) = (storage.clone(), running.clone());
            tokio::spawn(async move {
                let record = format!("r{n}");
                (Tally::of(&storage, &record, i64::MAX, &running).await, record)
            })
        })
        .collect();
    let batches = tokio::spawn({
        let (storage, running) = (storage.clone(), running.clone());
        async move {
            let ids: Vec<Key> = (0..500).map(|n| key(&format!("id-{n}"))).collect();
            let mut rounds = 0;
            while running.load(Ordering::SeqCst) {
                let value: Credential = json!({ "round": rounds }).try_into().unwrap();
                let items: Vec<_> = ids.iter().map(|id| (id.clone(), value.clone())).collect();
                let set = storage.set_credentials(&items).await.unwrap();
                assert!(set.is_complete(), "{:?}", set.failures.first());
                let found = storage.get_credentials(&ids).await.unwrap();
                assert!(found.values.len() == 500 && found.values.values().all(|one| *one == value));
                rounds += 1;
            }
            rounds
        }
    });
    let cluster = tokio::task::spawn_blocking(move || {
        let id = |node: &Server| node.raw().words("CLUSTER MYID");
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            let moved = Command::new("redis-cli")
                .args([
                    "--cluster",
                    "reshard",
                    &cluster.nodes[0].addr(),
                    "--cluster-slots",
                    "2000",
                    "--cluster-yes",
                ])
                .args(["--cluster-from", &id(&cluster.nodes[from]), "--cluster-to", &id(&cluster.nodes[to])])
                .output()
                .unwrap();
            assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stdout));
        }
        cluster
    })
    .await
    .unwrap();
    running.store(false, Ordering::SeqCst);
    assert!(batches.await.unwrap() > 0);
    let mut all = Tally::default();
    for task in tasks {
        let (tally, record) = task.await.unwrap();
        assert_eq!(tally.unknown, 0, "an increment has an unknown outcome");
        assert_eq!(storage.get_usage(record.as_str()).await?.get("n"), Some(tally.acknowledged));
        all = all.add(tally);
    }
    assert!(all.acknowledged > 1000);
    let stats = storage.stats().await?;
    assert_eq!((stats.credential_count, stats.usage_record_count), (500, 32));
    assert_eq!(stats.details["warnings"], json!([]));
    assert_eq!(stats.details[&cluster.nodes[1].addr()]["role"], "master");
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_replaces_a_dead_master() -> Result {
    let mut cluster = Cluster::start(3, 1);
    let storage = Storage::<Redis>::open(cluster.url().as_str()).await?;
    let ids: Vec<Key> = (0..300).map(|n| key(&format!("id-{n}"))).collect();
    let items: Vec<_> = ids.iter().map(|id| (id.clone(), json!({}).try_into().unwrap())).collect();
    assert!(storage.set_credentials(&items).await?.is_complete());
    for node in &cluster.nodes[..3] {
        servers::until("the replica has all writes", || node.raw().words("WAIT 1 1000") == "1");
        let info = node.raw().words("INFO replication");
        assert!(info.contains("connected_slaves:1"), "{info}");
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.nodes[0].kill();
    let killed = Instant::now();
    let hurried = storage.with_deadline(Duration::from_secs(1));
    loop {
        let begun = Instant::now();
        let report = hurried.set_credentials(&items).await?;
        assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
        if report.is_complete() {
            break;
        }
        assert!(
            report.failures.iter().all(|failure| failure.error.is_retryable()),
            "{:?}",
            report.failures[0]
        );
        assert!(killed.elapsed() < Duration::from_secs(30), "{:?}", report.failures[0]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("the cluster took {:?} to replace its master", killed.elapsed());
    assert_eq!(storage.list_credentials().await?.len(), 300);
    assert!(storage.get_credentials(&ids).await?.failures.is_empty());
    storage.health().await?;
    storage.close().await
}
