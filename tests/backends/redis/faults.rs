//! The server is killed, stopped or silent; connections are cut.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovers_after_server_restarts_and_loses_no_count() -> Result {
    let mut server = Server::start(&["--appendfsync", "always"]);
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    let running = Arc::new(AtomicBool::new(true));
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let (storage, running) = (storage.clone(), running.clone());
            tokio::spawn(async move {
                let (mut applied, mut unknown, mut last) = (0_i64, 0_i64, Instant::now());
                while running.load(Ordering::SeqCst) {
                    match storage.increment_usage("total", "n", 1).await {
                        Ok(_) => (applied, last) = (applied + 1, Instant::now()),
                        Err(error) => {
                            assert!(error.is_retryable(), "{error:?}");
                            unknown += i64::from(error.outcome() == Outcome::Unknown);
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                    }
                }
                (applied, unknown, last)
            })
        })
        .collect();
    let mut restarted = Instant::now();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.kill();
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.restart();
        restarted = Instant::now();
        while storage.health().await.is_err() {
            assert!(restarted.elapsed() < Duration::from_secs(2), "no recovery");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    // On a busy machine a task may wait that long for its turn.
    tokio::time::sleep(Duration::from_secs(2)).await;
    running.store(false, Ordering::SeqCst);
    let (mut applied, mut unknown) = (0, 0);
    for task in tasks {
        let (task_applied, task_unknown, last) = task.await.unwrap();
        assert!(last > restarted, "a task had no success after the last restart");
        (applied, unknown) = (applied + task_applied, unknown + task_unknown);
    }
    let total = storage.get_usage("total").await?.get("n").unwrap();
    assert!((applied..=applied + unknown).contains(&total), "{applied} <= {total} <= {applied} + {unknown}");
    let begun = Instant::now();
    loop {
        storage.health().await?;
        let pool = storage.pool_stats().await?;
        if (2..=pool.max).contains(&pool.open) && pool.waiting == 0 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "fewer than the minimum are open: {pool:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    storage.close().await
}

#[tokio::test]
async fn timeouts_of_a_stopped_server_have_the_right_outcome() -> Result {
    let server = Server::start(&[]);
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    storage.set_config("a", json!(0)).await?;
    server.signal("-STOP");
    let hurried = storage.with_deadline(Duration::from_millis(200));
    let begun = Instant::now();
    let (set, increment, get, list) = tokio::join!(
        hurried.set_config("a", json!(1)),
        hurried.increment_usage("a", "n", 1),
        hurried.get_config("a"),
        hurried.list_credentials(),
    );
    assert!(begun.elapsed() < Duration::from_millis(300), "{:?}", begun.elapsed());
    for (error, outcome) in [
        (set.unwrap_err(), Outcome::Unknown),
        (increment.unwrap_err(), Outcome::Unknown),
        (get.unwrap_err(), Outcome::NotApplied),
        (list.unwrap_err(), Outcome::NotApplied),
    ] {
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, outcome));
    }

    // A store that is opened now gets no connection, so that nothing is applied.
    let begun = Instant::now();
    let options = RedisOptions::try_from(format!("{}?deadline=300ms", server.url()).as_str())?;
    let error = Storage::<Redis>::open(options).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied));
    assert!(begun.elapsed() < Duration::from_millis(400), "{:?}", begun.elapsed());

    server.signal("-CONT");
    storage.health().await?;
    assert_eq!(
        storage.increment_usage("a", "n", 1).await?,
        2,
        "the write with the unknown outcome was applied"
    );
    storage.close().await
}

#[tokio::test]
async fn a_silent_connection_is_replaced() -> Result {
    let server = Server::start(&[]);
    let storage =
        Storage::<Redis>::open(format!("{}?read_timeout=100ms&dial_timeout=200ms", server.url()).as_str())
            .await?;
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.signal("-STOP");
    let mut unknown = 0;
    let error = loop {
        let error = storage.increment_usage("a", "n", 1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        if error.outcome() == Outcome::NotApplied {
            break error;
        }
        unknown += 1;
        assert!(unknown <= 10, "the silent connections are never replaced");
    };
    assert!(error.is_retryable());
    server.signal("-CONT");
    let begun = Instant::now();
    while storage.health().await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(2), "no recovery");
    }
    assert_eq!(
        storage.increment_usage("a", "n", 1).await?,
        unknown + 1,
        "each write was applied, and nothing else"
    );
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_is_complete_although_the_server_restarts_meanwhile() -> Result {
    const COUNT: usize = 50_000;
    let mut server = Server::start(&["--appendfsync", "no"]);
    let fill = format!("for n = 1, {COUNT} do redis.call('SET', 'gcli2api:cred:' .. n, '{{}}') end return 1");
    server.raw().ask(&[b"EVAL", fill.as_bytes(), b"0"]);
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    let lists = tokio::spawn({
        let storage = storage.clone();
        async move {
            let (mut complete, mut failed) = (0, 0);
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(6) || complete == 0 {
                match storage.list_credentials().await {
                    Ok(ids) => {
                        assert_eq!(ids.len(), COUNT, "a list that is Ok is complete");
                        complete += 1;
                    }
                    Err(error) => {
                        assert!(error.is_retryable(), "{error:?}");
                        failed += 1;
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
            }
            println!("{complete} complete lists, {failed} failed");
        }
    });
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(437)).await;
        server.kill();
        server.restart();
    }
    lists.await.unwrap();
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_connection_is_replaced_although_calls_are_short() -> Result {
    let server = Server::start(&[]);
    let proxy = Proxy::start(server.addr()).await;
    let url = format!("redis://{}?deadline=300ms&read_timeout=1s", proxy.addr);
    let storage = Storage::<Redis>::open(url.as_str()).await?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    proxy.fall_silent();
    let begun = Instant::now();
    let mut failed = 0;
    while let Err(error) = storage.health().await {
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
        failed += 1;
        assert!(begun.elapsed() < Duration::from_secs(20), "the connection is never replaced");
    }
    assert!(failed > 0, "the connection was not silent");
    storage.close().await
}

#[tokio::test]
async fn a_slow_connection_attempt_is_not_a_slow_reply() -> Result {
    let server = Server::start(&[]);
    let proxy = Proxy::start(server.addr()).await;
    proxy.delay_connections(Duration::from_millis(900));
    let storage =
        Storage::<Redis>::open(format!("redis://{}?read_timeout=400ms&min_idle=1", proxy.addr).as_str())
            .await?;
    while proxy.cut_one() > 0 {}
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(storage.increment_usage("a", "n", 1).await?, 1);
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_count_is_lost_or_doubled_while_connections_are_cut() -> Result {
    const TASKS: i64 = 64;
    const EACH: i64 = 100_000 / TASKS;
    let server = Server::start(&["--appendfsync", "no"]);
    let proxy = Proxy::start(server.addr()).await;
    let deadline = Duration::from_secs(5);
    let storage = Storage::<Redis>::open(format!("redis://{}?deadline=5s", proxy.addr).as_str()).await?;
    let running = Arc::new(AtomicBool::new(true));
    let cutter = tokio::spawn({
        let (proxy, running) = (proxy.clone(), running.clone());
        async move {
            let mut cuts = 0;
            while running.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(20)).await;
                cuts += proxy.cut_one();
            }
            cuts
        }
    });
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let storage = storage.clone();
            tokio::spawn(async move { Tally::of(&storage, "total", EACH, &AtomicBool::new(true)).await })
        })
        .collect();
    let mut tally = Tally::default();
    for task in tasks {
        tally = tally.add(task.await.unwrap());
    }
    running.store(false, Ordering::SeqCst);
    let cuts = cutter.await.unwrap();
    let total: i64 = server.raw().words("HGET gcli2api:usage:total n").parse().unwrap();
    println!("{cuts} cuts: {} acknowledged, {} unknown, {total} counted", tally.acknowledged, tally.unknown);
    assert!(cuts > 20 && tally.unknown > 0, "{cuts} cuts left {} outcomes unknown", tally.unknown);
    assert!(tally.acknowledged == TASKS * EACH, "some tasks did not finish");
    assert!((tally.acknowledged..=tally.acknowledged + tally.unknown).contains(&total));
    assert!(tally.slowest < deadline + Duration::from_millis(100), "{:?}", tally.slowest);
    storage.close().await
}

/// A batch to a dead server fails as a whole call, which is retried and earns no retry budget.
#[tokio::test]
async fn batches_to_a_dead_server_are_retried_and_earn_no_budget() -> Result {
    const CALLS: u64 = 60;
    let mut server = Server::start(&[]);
    let count = Count::default();
    let retry = Retry::new().pauses(Duration::ZERO, Duration::ZERO);
    let bare = Storage::<Redis>::open(server.url().as_str()).await?;
    let storage = bare.clone().layer(count.clone()).layer(retry.clone());
    let increments: Vec<_> = (0..15).map(|n| Increment::new(&key(&format!("k{n}")), &key("n"), 1)).collect();
    let ids: Vec<_> = increments.iter().map(|increment| increment.key.clone()).collect();
    let credentials: Vec<_> = ids
        .iter()
        .map(|id| Ok((id.clone(), Credential::new(json!({ "token": 1 }).as_object().unwrap().clone())?)))
        .collect::<Result<_>>()?;
    assert!(storage.increment_many(&increments).await?.is_complete());
    server.kill();
    // Makes the store notice that its connections are dead.
    bare.health().await.unwrap_err();

    for (name, error) in [
        ("increment_many", storage.increment_many(&increments).await.map(drop).unwrap_err()),
        ("set_credentials", storage.set_credentials(&credentials).await.map(drop).unwrap_err()),
        ("get_credentials", storage.get_credentials(&ids).await.map(drop).unwrap_err()),
        ("delete_credentials", storage.delete_credentials(&ids).await.map(drop).unwrap_err()),
    ] {
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied), "{name}");
        let before = u64::from(name == "increment_many");
        assert_eq!(count.of(name) - before, 4, "{name}");
    }

    let count = Count::default();
    let storage = bare.clone().layer(count.clone()).layer(retry.budget(10));
    for _ in 0..CALLS {
        storage.increment_usage("a", "n", 1).await.unwrap_err();
        storage.increment_many(&increments).await.map(drop).unwrap_err();
    }
    let attempts = count.of("increment_usage") + count.of("increment_many");
    assert_eq!(attempts, 2 * CALLS + 10, "one attempt per call, and the budget");
    bare.close().await
}

/// A set whose reply was lost is not retried: it would undo a later delete.
#[tokio::test]
async fn a_retry_does_not_bring_a_deleted_credential_back() -> Result {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let server = Server::start(&[]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let addr = server.addr();
    // A proxy that forwards the request with the canary, drops its reply, deletes the credential and closes
    // the connection.
    let deleted = Arc::new(AtomicBool::new(false));
    let was_deleted = deleted.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (addr, was_deleted) = (addr.clone(), was_deleted.clone());
            tokio::spawn(async move {
                let mut upstream = tokio::net::TcpStream::connect(&addr).await.unwrap();
                let (mut from_client, mut from_server) = (vec![0; 65_536], vec![0; 65_536]);
                loop {
                    tokio::select! {
                        Ok(read) = client.read(&mut from_client) => {
                            if read == 0 {
                                return;
                            }
                            upstream.write_all(&from_client[..read]).await.unwrap();
                            let canary = from_client[..read].windows(8).any(|bytes| bytes == b"CANARY-A");
                            if canary && !was_deleted.load(Ordering::SeqCst) {
                                assert!(upstream.read(&mut from_server).await.unwrap() > 0);
                                let direct = format!("redis://{addr}");
                                let other = Storage::<Redis>::open(direct.as_str()).await.unwrap();
                                other.delete_credential("alice").await.expect("it was set");
                                was_deleted.store(true, Ordering::SeqCst);
                                return;
                            }
                        }
                        Ok(read) = upstream.read(&mut from_server) => {
                            if read == 0 || client.write_all(&from_server[..read]).await.is_err() {
                                return;
                            }
                        }
                        else => return,
                    }
                }
            });
        }
    });

    let bare = Storage::<Redis>::open(server.url().as_str()).await?;
    let storage = Storage::<Redis>::open(url.as_str()).await?;
    let token = || json!({ "token": "CANARY-A" });
    let error = storage.clone().layer(Retry::new()).set_credential("alice", token()).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error:?}");
    assert!(deleted.load(Ordering::SeqCst));
    assert_eq!(bare.get_credential("alice").await.unwrap_err().kind(), ErrorKind::NotFound);

    deleted.store(false, Ordering::SeqCst);
    storage.clone().layer(Retry::new().overwriting()).set_credential("alice", token()).await?;
    assert!(deleted.load(Ordering::SeqCst));
    bare.get_credential("alice").await.expect("`overwriting` retries the set");
    bare.close().await
}
