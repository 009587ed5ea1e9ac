//! The commands of each operation, and the server's replies.

use super::*;

/// How often the server ran each command.
fn commands(raw: &mut Raw) -> BTreeMap<String, u64> {
    raw.words("INFO commandstats")
        .lines()
        .filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="))
        .map(|(name, rest)| (name.to_owned(), rest.split(',').next().unwrap().parse().unwrap()))
        // ROLE is sent on connections in use.
        .filter(|(name, _)| name != "info" && name != "role")
        .collect()
}

macro_rules! one_command {
    ($raw:ident, $times:literal x $command:literal, |$n:ident| $call:expr) => {{
        $raw.words("CONFIG RESETSTAT");
        for $n in 0..1000_usize {
            let _ = $call.await.expect($command);
        }
        let mut counted = commands(&mut $raw);
        counted.remove("config|resetstat");
        assert_eq!(counted, BTreeMap::from([($command.to_owned(), 1000 * $times)]));
    }};
}

#[tokio::test]
async fn every_operation_is_one_command() -> Result {
    let server = Server::start(&["--appendfsync", "no"]);
    let mut raw = Raw::to(&server.url());
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    // Waits until all connections are open: opening one is not part of an operation.
    storage.list_configs().await?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let names: Vec<Key> = (0..1000).map(|n| key(&format!("k{n}"))).collect();
    let ttl = Duration::from_secs(60);
    one_command!(raw, 1 x "set", |n| storage.set_credential(&names[n], json!({})));
    one_command!(raw, 1 x "get", |n| storage.get_credential(&names[n]));
    one_command!(raw, 1 x "unlink", |n| storage.delete_credential(&names[n]));
    one_command!(raw, 1 x "hset", |n| storage.set_config(&names[n], json!(1)));
    one_command!(raw, 1 x "hget", |n| storage.get_config(&names[n]));
    one_command!(raw, 1 x "hdel", |n| storage.delete_config(&names[n]));
    one_command!(raw, 1 x "hgetall", |_n| storage.list_configs());
    one_command!(raw, 1 x "hincrby", |n| storage.increment_usage(&names[n], "f", 1));
    one_command!(raw, 1 x "hgetall", |n| storage.get_usage(&names[n]));
    one_command!(raw, 1 x "hget", |n| storage.get_counter(&names[n], "f"));
    one_command!(raw, 1 x "unlink", |n| storage.reset_usage(&names[n]));
    one_command!(raw, 1 x "set", |n| storage.set_cache(&names[n], "x", ttl));
    one_command!(raw, 1 x "set", |n| storage.set_cache_if_absent(&names[n], "y", ttl));
    one_command!(raw, 1 x "get", |n| storage.get_cache(&names[n]));
    raw.words("CONFIG RESETSTAT");
    for name in &names {
        storage.get_cache_entry(name).await?;
    }
    assert_eq!(commands(&mut raw)["eval"], 1000, "one script");
    one_command!(raw, 1 x "unlink", |n| storage.delete_cache(&names[n]));

    let few: Vec<(Key, Credential)> =
        names[..10].iter().map(|id| (id.clone(), json!({}).try_into().unwrap())).collect();
    let steps: Vec<Increment> = names[..10].iter().map(|name| Increment::new(name, name, 1)).collect();
    one_command!(raw, 1 x "mset", |_n| storage.set_credentials(&few));
    one_command!(raw, 1 x "mget", |_n| storage.get_credentials(&names[..10]));
    one_command!(raw, 10 x "unlink", |_n| storage.delete_credentials(&names[..10]));
    one_command!(raw, 10 x "hincrby", |_n| storage.increment_many(&steps));
    one_command!(raw, 10 x "hgetall", |_n| storage.get_usages(&names[..10]));
    one_command!(raw, 1 x "hset", |_n| storage.set_configs(names[..10].iter().map(|key| (key, json!(1)))));
    one_command!(raw, 1 x "hmget", |_n| storage.get_configs(&names[..10]));
    one_command!(raw, 10 x "set", |_n| storage.set_cache_many(names[..10].iter().map(|key| (key, "x")), ttl));
    one_command!(raw, 10 x "get", |_n| storage.get_cache_many(&names[..10]));
    assert_eq!(storage.stats().await?.usage_record_count, 10);
    storage.close().await
}

#[tokio::test]
async fn cache_values_expire_and_can_hold_any_bytes() -> Result {
    let storage = Storage::<Redis>::open(servers::redis().as_str()).await?;
    for _ in 0..5 {
        storage.set_cache("k", b"x", Duration::from_millis(50)).await?;
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert_eq!(storage.get_cache("k").await.unwrap_err().kind(), ErrorKind::NotFound);
    }
    let mut random = vec![0_u8; 1 << 20];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut random).unwrap();
    storage.set_cache("large", &random, Duration::from_secs(60)).await?;
    assert!(storage.get_cache("large").await? == random);
    storage.close().await
}

#[tokio::test]
async fn errors_of_the_server_keep_their_kind_and_code() -> Result {
    let server = Server::start(&[]);
    let mut raw = Raw::to(&server.url());
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    raw.words("CONFIG SET maxmemory 1");
    let error = storage.set_config("a", json!(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Busy, Some("OOM")));
    assert_eq!((error.outcome(), error.is_retryable()), (Outcome::NotApplied, true));
    raw.words("CONFIG SET maxmemory 0");

    raw.words("REPLICAOF 127.0.0.1 1");
    let error = storage.set_config("a", json!(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unavailable, Some("READONLY")));
    assert_eq!((error.outcome(), error.is_retryable()), (Outcome::NotApplied, true));
    let warnings = storage.stats().await?.details["warnings"].clone();
    assert_eq!(warnings.as_array().unwrap().len(), 2, "{warnings}");
    raw.words("REPLICAOF NO ONE");
    storage.set_config("a", json!(1)).await?;

    raw.words("CONFIG SET maxmemory-policy allkeys-lru");
    raw.words("CONFIG SET appendonly no");
    let stats = storage.stats().await?;
    assert_eq!(stats.details["warnings"].as_array().unwrap().len(), 2, "{:?}", stats.details);
    assert!(stats.healthy && stats.connection_count.unwrap() >= 1 && stats.config_count == 1);
    let text = json!(stats).to_string();
    assert!(text.contains("redis_version") && text.contains("maxmemory_policy"), "{text}");
    drop((storage.close().await?, server));
    let refused = Storage::<Redis>::open("redis://127.0.0.1:1").await.unwrap_err();
    assert_eq!((refused.kind(), refused.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
    assert_eq!(refused.code(), Some("os error 111"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_while_the_pool_is_resized() -> Result {
    let storage = Storage::<Redis>::open(servers::redis().as_str()).await?;
    let calls: Vec<_> = (0..16)
        .map(|_| {
            let storage = storage.clone();
            tokio::spawn(async move {
                for _ in 0..200 {
                    storage.increment_usage("a", "n", 1).await.unwrap();
                }
            })
        })
        .collect();
    for max in [1, 5, 2, 20, 1, 3] {
        storage.resize_pool(max).await?;
        assert_eq!(storage.pool_stats().await?.max, max + 2, "and the two that calls share");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(storage.get_usage("a").await?.get("n"), Some(3200));
    assert!(storage.pool_stats().await?.open <= 3);
    assert_eq!(storage.resize_pool(0).await.unwrap_err().kind(), ErrorKind::InvalidValue);
    storage.close().await
}

#[cfg(feature = "cli")]
#[test]
fn the_command_works_on_redis_and_doctor_warns() {
    let server = Server::start(&["--appendonly", "no"]);
    let url = server.url();
    let storage = |line: &[&str]| {
        let ended =
            Command::new(env!("CARGO_BIN_EXE_storage")).args(["--url", &url]).args(line).output().unwrap();
        assert!(ended.status.success(), "{line:?}: {}", String::from_utf8_lossy(&ended.stderr));
        String::from_utf8(ended.stdout).unwrap()
    };
    storage(&["cache", "set", "k", "v", "--ttl", "90s"]);
    assert_eq!(storage(&["cache", "get", "k"]), "v");
    assert_eq!(storage(&["usage", "increment", "k", "n", "2"]), "2\n");
    let doctor: serde_json::Value = serde_json::from_str(&storage(&["--output", "json", "doctor"])).unwrap();
    assert!(doctor["warnings"].to_string().contains("append-only"), "{}", doctor["warnings"]);
}

#[tokio::test]
async fn in_a_cluster_every_operation_is_one_command() -> Result {
    let cluster = Cluster::start(3, 0);
    let storage = Storage::<Redis>::open(cluster.url().as_str()).await?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let ids: Vec<Key> = (0..1000).map(|n| key(&format!("k{n}"))).collect();
    for node in &cluster.nodes {
        node.raw().words("CONFIG RESETSTAT");
    }
    for id in &ids {
        storage.set_credential(id, json!({})).await?;
        storage.increment_usage(id, "n", 1).await?;
    }
    let mut counted = BTreeMap::<String, u64>::new();
    for node in &cluster.nodes {
        for (name, times) in commands(&mut node.raw()) {
            *counted.entry(name).or_default() += times;
        }
    }
    counted.retain(|name, _| !name.contains('|'));
    assert_eq!(counted, BTreeMap::from([("set".to_owned(), 1000), ("hincrby".to_owned(), 1000)]));
    let error = Storage::<Redis>::open(cluster.nodes[0].url().as_str()).await?.list_credentials().await;
    assert!(error.is_ok(), "one server of the cluster, opened alone, serves its own keys");
    let alone = Storage::<Redis>::open(cluster.nodes[0].url().as_str()).await?;
    let moved = alone.get_credentials(&ids).await?;
    assert!(moved.failures.iter().all(|failure| failure.error.kind() == ErrorKind::Unsupported));
    storage.close().await
}

/// Plans of one store under 200 config writes a second of another one: each write is kept, and each plan is
/// applied once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_get_through_a_storm_of_config_writes() -> Result {
    for (delay, shared) in [(0, false), (0, true), (5, false), (5, true)] {
        plans_in_a_storm(Duration::from_millis(delay), shared).await?;
    }
    Ok(())
}

/// `delay` is how late each reply to the plans' store is. If `shared`, all plans set one value.
async fn plans_in_a_storm(delay: Duration, shared: bool) -> Result {
    const PLANS: usize = 100;
    let server = Server::start(&["--appendfsync", "no"]);
    let proxy = Proxy::start(server.addr()).await;
    let writer = Storage::<Redis>::open(server.url().as_str()).await?;
    let planner = Storage::<Redis>::open(format!("redis://{}", proxy.addr).as_str()).await?;
    planner.health().await?;
    // Delays the connections that are open.
    proxy.delay_replies(delay);
    let running = Arc::new(AtomicBool::new(true));
    let storm = tokio::spawn({
        let running = running.clone();
        async move {
            let mut tick = tokio::time::interval(Duration::from_millis(5));
            let mut written = 0_u32;
            while running.load(Ordering::SeqCst) {
                tick.tick().await;
                writer.set_config(format!("w{written}"), json!(written)).await.unwrap();
                written += 1;
            }
            written
        }
    });
    let plans: Vec<_> = (0..PLANS)
        .map(|n| {
            let planner = planner.clone();
            tokio::spawn(async move {
                let also = if shared { "p".to_owned() } else { format!("q{n}") };
                let changes = json!([
                    { "set": format!("p{n}"), "value": n, "expect_absent": true }, { "set": also, "value": n }
                ]);
                let plan = gateway_storage::plan::Plan::from_json(changes.to_string()).unwrap();
                let (begun, options) = (Instant::now(), Default::default());
                planner.apply_plan(format!("plan{n}"), &plan, &options).await.unwrap();
                let took = begun.elapsed();
                let again = planner.apply_plan(format!("plan{n}"), &plan, &options).await.unwrap();
                assert_eq!(again, gateway_storage::plan::Applied::Replayed);
                took
            })
        })
        .collect();
    let mut slowest = Duration::ZERO;
    for plan in plans {
        slowest = slowest.max(plan.await.unwrap());
    }
    running.store(false, Ordering::SeqCst);
    let written = storm.await.unwrap();
    println!(
        "replies {delay:?} late, shared {shared}: {written} writes beside {PLANS} plans, the slowest of which took {slowest:?}"
    );
    let configs = planner.list_configs().await?;
    assert_eq!(configs.len(), written as usize + PLANS + if shared { 1 } else { PLANS });
    let audit: Vec<_> = planner.audit_plans(Default::default()).collect().await;
    assert_eq!(audit.len(), 2 * PLANS, "one entry for each attempt, and none for the conflicts");
    planner.close().await
}
