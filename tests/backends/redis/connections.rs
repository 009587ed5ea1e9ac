//! The number of connections, and which one a call uses.

use super::*;

/// How many connections the server has ever accepted.
fn opened(raw: &mut Raw) -> u32 {
    let info = raw.words("INFO stats");
    let line = info.lines().find_map(|line| line.strip_prefix("total_connections_received:")).unwrap();
    line.trim_end().parse().unwrap()
}

/// Runs tasks that repeatedly wake at the same time. Returns how many connections are open at the end.
async fn wake_together(storage: &Storage<Redis>, rounds: u32, pause: Duration) -> u32 {
    const TASKS: usize = 64;
    let barrier = Arc::new(tokio::sync::Barrier::new(TASKS));
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let (storage, barrier) = (storage.clone(), barrier.clone());
            tokio::spawn(async move {
                for _ in 0..rounds {
                    barrier.wait().await;
                    tokio::time::sleep(pause).await;
                    storage.get_usage("none").await.unwrap_err();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    storage.pool_stats().await.unwrap().open
}

/// Neither simultaneous calls nor a slow server or network open connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_calls_share_two_connections() -> Result {
    let server = Server::start(&[]);
    let proxy = Proxy::start(server.addr()).await;
    let storage = Storage::<Redis>::open(format!("redis://{}", proxy.addr).as_str()).await?;
    for delay in [0, 10, 50] {
        proxy.delay_replies(Duration::from_millis(delay));
        assert_eq!(wake_together(&storage, 20, Duration::from_millis(15)).await, 2, "{delay} ms");
    }
    assert_eq!(proxy.accepted(), 2);
    storage.close().await
}

/// The kinds of calls that get a connection for themselves, and that it is closed or reused afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wide_calls_have_a_connection_for_themselves() -> Result {
    let server = Server::start(&[]);
    let storage = Storage::<Redis>::open(format!("{}?min_idle=1", server.url()).as_str()).await?;
    let open = async || storage.pool_stats().await.map(|stats| stats.open);
    storage.set_cache("small", vec![0; 1 << 10], Duration::from_secs(60)).await?;
    storage.get_cache("small").await?;
    storage.get_credentials(&[key("a"), key("b")]).await?;
    assert_eq!(open().await?, 1);
    storage.set_cache("large", vec![0; 1 << 20], Duration::from_secs(60)).await?;
    assert_eq!(open().await?, 2, "the size of a write is known");
    storage.list_credentials().await?;
    storage.list_configs().await?;
    assert_eq!(open().await?, 2, "one after another they use the same connection");
    let reads = async || storage.get_cache("large").await.map(|value| assert_eq!(value.len(), 1 << 20));
    reads().await?;
    let mut raw = server.raw();
    raw.words("CLIENT KILL TYPE normal SKIPME yes");
    // A read whose connection was lost is sent again, over a new one.
    reads().await?;
    storage.list_credentials().await?;
    // A dropped call leaves its connection usable.
    let before = opened(&mut raw);
    for _ in 0..20 {
        drop(futures_util::FutureExt::now_or_never(storage.list_credentials()));
        tokio::time::sleep(Duration::from_millis(5)).await;
        storage.list_credentials().await?;
    }
    assert_eq!(opened(&mut raw), before);
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_call_and_idle_time_cost_no_connection() -> Result {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    let url = format!("{}?read_timeout=300ms&min_idle=1", server.url());
    let storage = Storage::<Redis>::open(url.as_str()).await?;
    let before = opened(&mut raw);
    for _ in 0..10 {
        // Polled once: the request may or may not have been sent.
        drop(futures_util::FutureExt::now_or_never(storage.increment_usage("a", "n", 1)));
        tokio::time::sleep(Duration::from_millis(400)).await;
        storage.health().await?;
    }
    assert_eq!(opened(&mut raw), before);
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_wait_for_replicas_avoid_stalled_connections() -> Result {
    let server = Server::start(&["--repl-diskless-sync-delay", "0"]);
    let _replica = Server::start(&["--replicaof", &format!("127.0.0.1 {}", server.port)]);
    servers::until("the replica follows", || server.raw().words("WAIT 1 100") == "1");
    let proxy = Proxy::start(server.addr()).await;
    let url = format!("redis://{}?wait_replicas=1&pool_size=2&min_idle=1", proxy.addr);
    let storage = Storage::<Redis>::open(url.as_str()).await?;
    storage.set_config("a", json!(1)).await?;
    assert_eq!(storage.pool_stats().await?.open, 2, "one for reads, one for writes");
    // Both connections are delayed; the one that is opened now is not.
    let delay = Duration::from_millis(1500);
    proxy.delay_replies(delay);
    let begun = Instant::now();
    let running = Arc::new(AtomicBool::new(true));
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (storage, running) = (storage.clone(), running.clone());
            tokio::spawn(async move {
                let mut is_undelayed = false;
                while running.load(Ordering::SeqCst) {
                    storage.increment_usage("a", "n", 1).await.unwrap();
                    is_undelayed |= (delay / 2..delay).contains(&begun.elapsed());
                }
                is_undelayed
            })
        })
        .collect();
    tokio::time::sleep(delay).await;
    running.store(false, Ordering::SeqCst);
    let mut undelayed = 0;
    for task in tasks {
        undelayed += u32::from(task.await.unwrap());
    }
    assert!(undelayed >= 3, "of 8 writers {undelayed} used the new connection, and half should");
    storage.close().await
}
