//! Health fails where writes fail, and reads leave a server that became a replica.

use super::*;

#[tokio::test]
async fn health_fails_where_writes_are_refused() -> Result {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    storage.health().await?;
    for (change, back, code, opens) in [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "OOM", true),
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0", "NOREPLICAS", true),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "READONLY", false),
        ("ACL SETUSER default -setrange", "ACL SETUSER default +setrange", "NOPERM", true),
    ] {
        raw.words(change);
        let error = storage.health().await.unwrap_err();
        assert_eq!((error.code(), error.outcome()), (Some(code), Outcome::NotApplied), "{error:?}");
        match Storage::<Redis>::open(server.url().as_str()).await {
            Ok(opened) => {
                assert!(opens, "{code}");
                assert_eq!(opened.health().await.unwrap_err().code(), Some(code));
                opened.close().await?;
            }
            Err(error) => {
                assert!(!opens && error.code() == Some(code), "{error:?}");
                assert!(error.to_string().contains("replica"), "{error}");
            }
        }
        raw.words(back);
        storage.health().await?;
    }
    assert_eq!(raw.words("KEYS *"), "", "the health check left a key");
    // A key of another program with the same name.
    raw.words("SET gcli2api:health theirs");
    storage.health().await?;
    assert_eq!(raw.words("GET gcli2api:health"), "theirs");
    raw.words("DEL gcli2api:health");
    raw.words("HSET gcli2api:health a b");
    storage.health().await?;
    storage.close().await
}

#[tokio::test]
async fn health_fails_where_writes_are_not_confirmed() -> Result {
    let server = Server::start(&[]);
    let url = format!("{}?wait_replicas=1&wait_timeout=50ms", server.url());
    let storage = Storage::<Redis>::open(url.as_str()).await?;
    let error = storage.health().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied), "{error:?}");
    let _replica = Server::start(&["--replicaof", &format!("127.0.0.1 {}", server.port)]);
    let begun = Instant::now();
    while let Err(error) = storage.health().await {
        assert!(begun.elapsed() < Duration::from_secs(60), "{error:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    storage.set_config("a", json!(1)).await?;
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_opens_with_one_master_and_health_counts_the_slots() -> Result {
    let mut cluster = Cluster::start(3, 0);
    for node in &cluster.nodes {
        node.raw().words("CONFIG SET cluster-require-full-coverage no");
    }
    let storage = Storage::<Redis>::open(cluster.url().as_str()).await?;
    storage.health().await?;

    // One slot without a server.
    for node in &cluster.nodes {
        node.raw().words("CLUSTER DELSLOTS 5000");
    }
    let unassigned = storage.health().await.unwrap_err();
    assert_eq!((unassigned.kind(), unassigned.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
    assert!(unassigned.to_string().contains("1 of the 16384 slots"), "{unassigned}");
    for node in &cluster.nodes[..1] {
        node.raw().words("CLUSTER ADDSLOTS 5000");
    }
    let begun = Instant::now();
    while let Err(error) = storage.health().await {
        assert!(begun.elapsed() < Duration::from_secs(60), "{error:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // A dead server.
    cluster.nodes[2].kill();
    servers::until("the others know", || cluster.nodes[0].raw().words("CLUSTER NODES").contains("fail "));
    let dead = storage.health().await.unwrap_err();
    assert!(dead.is_retryable() && dead.outcome() == Outcome::NotApplied, "{dead:?}");
    assert!(dead.to_string().contains("5461 of the 16384 slots"), "{dead}");
    let opened = Storage::<Redis>::open(cluster.url().as_str()).await?;
    let mut stored = 0;
    for n in 0..30 {
        stored += usize::from(opened.set_credential(format!("id-{n}"), json!({})).await.is_ok());
    }
    assert!((1..30).contains(&stored), "{stored} of 30 were stored");
    assert!(opened.stats().await.is_err() && opened.list_credentials().await.is_err());
    assert!(opened.export().any(|record| async move { record.is_err() }).await);

    // No server replies.
    for node in &mut cluster.nodes[..2] {
        node.kill();
    }
    let error = Storage::<Redis>::open(cluster.url().as_str()).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn health_of_a_store_in_one_slot_ignores_the_other_slots() -> Result {
    let mut cluster = Cluster::start(3, 0);
    for node in &cluster.nodes {
        node.raw().words("CONFIG SET cluster-require-full-coverage no");
    }
    // The slot of `foo` is 12182, which the third server owns.
    let storage = Storage::<Redis>::open(format!("{}?prefix={{foo}}:", cluster.url()).as_str()).await?;
    storage.set_config("a", json!(1)).await?;
    cluster.nodes[0].kill();
    servers::until("the others know", || cluster.nodes[1].raw().words("CLUSTER NODES").contains("fail "));
    storage.health().await?;
    cluster.nodes[2].kill();
    let begun = Instant::now();
    while storage.health().await.is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(10), "health is ok without the server");
    }
    Ok(())
}

/// New connections lead to another server, and those to the old one stay open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_leave_a_master_that_became_a_replica() -> Result {
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    let proxy = Proxy::start(old.addr()).await;
    let storage = Storage::<Redis>::open(format!("redis://{}", proxy.addr).as_str()).await?;
    storage.set_config("a", json!("old")).await?;
    new.raw().words("HSET gcli2api:config a \"new\"");
    proxy.lead_to(new.addr());
    // A replica whose master does not reply serves its old data.
    old.raw().words("REPLICAOF 127.0.0.1 1");
    let demoted = Instant::now();
    while storage.get_config("a").await?.value() != "new" {
        assert!(demoted.elapsed() < Duration::from_secs(20), "reads stay with the old master");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(demoted.elapsed() < Duration::from_secs(8), "{:?}", demoted.elapsed());
    // All connections have left it, not only that of the first call.
    for _ in 0..20 {
        let reads = futures_util::future::join_all((0..64).map(|_| storage.get_config("a"))).await;
        assert!(reads.into_iter().all(|read| read.unwrap().value() == "new"));
    }
    storage.health().await?;
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_leaves_a_master_that_became_a_replica() -> Result {
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    let proxy = Proxy::start(old.addr()).await;
    let url = format!("redis://{}?min_idle=1", proxy.addr);
    let storage = Storage::<Redis>::open(url.as_str()).await?;
    storage.set_config("a", json!("old")).await?;
    new.raw().words("HSET gcli2api:config a \"new\"");
    proxy.lead_to(new.addr());
    old.raw().words("REPLICAOF 127.0.0.1 1");
    assert_eq!(storage.health().await.unwrap_err().code(), Some("READONLY"));
    assert_eq!(storage.get_config("a").await?.value(), "new");
    storage.health().await?;
    storage.close().await
}
