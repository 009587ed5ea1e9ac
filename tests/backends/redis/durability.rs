//! Writes that wait for replicas, and servers that are not durable enough.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_wait_for_replicas_do_not_queue_while_connections_are_free() -> Result {
    let server = Server::start(&[]);
    let storage =
        Storage::<Redis>::open(format!("{}?wait_replicas=1&wait_timeout=1s", server.url()).as_str()).await?;
    let writes: Vec<_> = (0..8)
        .map(|n| {
            let storage = storage.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(60 * n)).await;
                let begun = Instant::now();
                let error = storage.set_config("a", json!(n)).await.unwrap_err();
                assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::Unknown));
                begun.elapsed()
            })
        })
        .collect();
    for write in writes {
        let took = write.await.unwrap();
        assert!(took < Duration::from_millis(1800), "{took:?}: a write waited behind another one");
    }
    storage.close().await
}

#[tokio::test]
async fn a_write_waits_for_its_replicas() -> Result {
    let master = Server::start(&["--repl-diskless-sync-delay", "0"]);
    let replica = Server::start(&["--replicaof", &format!("127.0.0.1 {}", master.port)]);
    servers::until("the replica follows", || {
        replica.raw().words("INFO replication").contains("master_link_status:up")
    });
    let storage =
        Storage::<Redis>::open(format!("{}?wait_replicas=1&wait_timeout=4s", master.url()).as_str()).await?;
    let mut raw = replica.raw();
    for n in 0..100 {
        storage.increment_usage("a", "n", 1).await?;
        assert_eq!(raw.words("HGET gcli2api:usage:a n"), (n + 1).to_string());
    }
    let ids = [key("x"), key("y")];
    let items = ids.clone().map(|id| (id, json!({}).try_into().unwrap()));
    assert!(storage.set_credentials(&items).await?.is_complete());
    assert_eq!(raw.words("EXISTS gcli2api:cred:x gcli2api:cred:y"), "2");

    replica.signal("-STOP");
    let error = storage.increment_usage("a", "n", 1).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::Unknown));
    let error = storage.delete_credentials(&[key("x"), key("none")]).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::Unknown));
    assert_eq!(storage.get_usage("a").await?.get("n"), Some(101), "reads do not wait");
    replica.signal("-CONT");
    let begun = Instant::now();
    while storage.increment_usage("a", "n", 1).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the replica does not confirm writes again");
    }
    storage.close().await
}

#[tokio::test]
async fn refuses_a_server_that_would_lose_data() -> Result {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    let at = |durability: &str| format!("{}?durability={durability}", server.url());
    Storage::<Redis>::open(at("aof").as_str()).await?.close().await?;
    for (setting, durability, word) in [
        ("appendfsync everysec", "fsync", "appendfsync"),
        ("maxmemory-policy allkeys-lru", "aof", "eviction"),
        ("appendonly no", "aof", "append-only"),
    ] {
        raw.words(&format!("CONFIG SET {setting}"));
        let error = Storage::<Redis>::open(at(durability).as_str()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(word), "{error}");
        Storage::<Redis>::open(at("any").as_str()).await?.close().await?;
        raw.words("CONFIG SET maxmemory-policy noeviction");
    }
    raw.words("CONFIG SET appendonly yes");
    raw.words("CONFIG SET appendfsync always");
    Storage::<Redis>::open(at("fsync").as_str()).await?.close().await
}
