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

/// On a busy machine the test itself is delayed, which looks like a stall of the server. One of the attempts
/// has none.
const ATTEMPTS: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_wake_together_open_no_connections() -> Result {
    let server = Server::start(&[]);
    let mut seen = Vec::new();
    for _ in 0..ATTEMPTS {
        let storage = Storage::<Redis>::open(server.url().as_str()).await?;
        seen.push(wake_together(&storage, 200, Duration::from_millis(15)).await);
        storage.close().await?;
        if seen.last() == Some(&2) {
            return Ok(());
        }
    }
    panic!("each attempt opened more connections: {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_stall_does_not_open_all_connections() -> Result {
    let server = Server::start(&[]);
    let mut seen = Vec::new();
    for _ in 0..ATTEMPTS {
        let proxy = Proxy::start(server.addr()).await;
        let storage = Storage::<Redis>::open(format!("redis://{}", proxy.addr).as_str()).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        storage.health().await?;
        proxy.delay_replies(Duration::from_millis(50));
        storage.get_usage("none").await.unwrap_err();
        proxy.delay_replies(Duration::ZERO);
        // Calls are spread now, and more calls run at once than there are connections.
        seen.push(wake_together(&storage, 40, Duration::from_millis(5)).await);
        storage.close().await?;
        if seen.last().is_some_and(|open| *open <= 4) {
            return Ok(());
        }
    }
    panic!("each attempt opened most connections: {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_network_is_not_a_stall() -> Result {
    let server = Server::start(&[]);
    let mut seen = Vec::new();
    for _ in 0..ATTEMPTS {
        let proxy = Proxy::start(server.addr()).await;
        proxy.delay_connections(Duration::from_millis(20));
        let storage = Storage::<Redis>::open(format!("redis://{}", proxy.addr).as_str()).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        proxy.delay_replies(Duration::from_millis(10));
        // The first replies show the length of a round trip.
        for _ in 0..10 {
            storage.health().await?;
        }
        tokio::time::sleep(Duration::from_millis(1100)).await;
        seen.push(wake_together(&storage, 40, Duration::from_millis(15)).await);
        storage.close().await?;
        if seen.last() == Some(&2) {
            return Ok(());
        }
    }
    panic!("each attempt opened more connections: {seen:?}");
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
