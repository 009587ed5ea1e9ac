//! What only Redis has: its layout, its round trips, its server's death.
#![cfg(feature = "redis")]

mod servers;

use std::{
    collections::BTreeMap,
    io::Read,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use gateway_storage::{Credential, ErrorKind, Increment, Key, Outcome, Record, Redis, RedisConfig, Storage};
use serde_json::json;
use servers::{
    proxy::Proxy,
    redis::{Cluster, Raw, Sentinels, Server, Tls},
};

type Result<T = ()> = gateway_storage::Result<T>;

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

#[tokio::test]
async fn reads_what_the_go_module_left() -> Result {
    let url = servers::redis();
    let (_, prefix) = url.split_once("prefix=").unwrap();
    let mut raw = Raw::to(&url);
    let name = |rest: &str| format!("{prefix}{rest}");
    raw.ask(&[b"SET", name("cred:alice").as_bytes(), br#"{"access_token":"t","n":18446744073709551615}"#]);
    raw.ask(&[b"SET", name("cred:broken").as_bytes(), b"{"]);
    raw.ask(&[b"SET", name("cache:models").as_bytes(), b"\0\xff", b"PX", b"60000"]);
    for (field, value) in [
        ("quoted", &br#""text""#[..]),
        ("bare", b"127.0.0.1:8317"),
        ("number", b"5"),
        ("list", b"[1,\"two\"]"),
        ("null", b"null"),
    ] {
        raw.ask(&[b"HSET", name("config").as_bytes(), field.as_bytes(), value]);
    }
    raw.ask(&[b"HSET", name("usage:alice").as_bytes(), b"requests", b"41"]);
    raw.ask(&[b"HSET", name("usage:bob").as_bytes(), b"requests", b"many", b"tokens", b"7"]);
    raw.ask(&[b"SET", name("usage:odd").as_bytes(), b"1"]);

    let storage = Storage::<Redis>::open(url.as_str()).await?;
    let expected = Credential::try_from(json!({ "access_token": "t", "n": u64::MAX }))?;
    assert_eq!(storage.get_credential("alice").await?, expected);
    let broken = storage.get_credential("broken").await.unwrap_err();
    assert_eq!((broken.kind(), broken.key()), (ErrorKind::Corrupt, Some(&key("broken"))));
    let found = storage.get_credentials(&[key("alice"), key("broken"), key("none")]).await?;
    assert_eq!(found.credentials, BTreeMap::from([(key("alice"), expected)]));
    let kinds: Vec<_> = found.failures.iter().map(|failure| failure.error.kind()).collect();
    assert_eq!(kinds, [ErrorKind::Corrupt, ErrorKind::NotFound]);
    raw.ask(&[b"HSET", name("cred:hash").as_bytes(), b"a", b"b"]);
    let of_a_wrong_type = storage.get_credentials(&[key("alice"), key("hash")]).await?;
    assert_eq!(of_a_wrong_type.failures[0].error.kind(), ErrorKind::Corrupt);
    assert_eq!(storage.get_credential("hash").await.unwrap_err().kind(), ErrorKind::Corrupt);
    raw.ask(&[b"SET", name("cred:not\na key").as_bytes(), b"{}"]);
    assert!(storage.stats().await?.details["warnings"].to_string().contains("1 records have names"));
    assert_eq!(storage.list_credentials().await.unwrap_err().kind(), ErrorKind::Corrupt);
    raw.ask(&[b"DEL", name("cred:not\na key").as_bytes(), name("cred:hash").as_bytes()]);
    assert_eq!(storage.get_cache("models").await?, b"\0\xff");

    let configs: BTreeMap<_, _> = storage
        .list_configs()
        .await?
        .into_iter()
        .map(|(key, value)| (key.as_str().to_owned(), value.value().clone()))
        .collect();
    assert_eq!(
        json!(configs),
        json!({ "quoted": "text", "bare": "127.0.0.1:8317", "number": 5, "list": [1, "two"], "null": null })
    );

    assert_eq!(storage.increment_usage("alice", "requests", 1).await?, 42);
    for error in [
        storage.get_usage("bob").await.unwrap_err(),
        storage.increment_usage("bob", "requests", 1).await.unwrap_err(),
        storage.list_usage().await.unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Corrupt, Outcome::NotApplied));
        assert!(error.key() == Some(&key("bob")) || error.key() == Some(&key("odd")));
        assert!(!format!("{error:?}").contains("many"));
    }
    assert_eq!(storage.increment_usage("bob", "tokens", 1).await?, 8, "other fields are unharmed");
    for error in [
        storage.get_usage("odd").await.unwrap_err(),
        storage.increment_usage("odd", "requests", 1).await.unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.key()), (ErrorKind::Corrupt, Some(&key("odd"))));
    }
    let many = [("bob", "requests"), ("bob", "tokens"), ("odd", "x"), ("alice", "requests")]
        .map(|(record, field)| Increment::new(&key(record), &key(field), 1));
    let report = storage.increment_many(&many).await?;
    assert_eq!((report.succeeded, report.failures.len()), (2, 2));
    assert!(report.failures.iter().all(|failure| failure.error.kind() == ErrorKind::Corrupt));
    storage.close().await
}

#[tokio::test]
async fn leaves_what_the_go_module_reads() -> Result {
    let url = servers::redis();
    let (_, prefix) = url.split_once("prefix=").unwrap();
    let mut raw = Raw::to(&url);
    let storage = Storage::<Redis>::open(url.as_str()).await?;
    storage.set_credential("alice", json!({ "b": 1, "a": "x" })).await?;
    storage.set_config("host", json!("local")).await?;
    storage.increment_usage("alice", "requests", 3).await?;
    storage.set_cache("models", b"bytes", Duration::from_secs(60)).await?;
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&raw.words(&format!("GET {prefix}cred:alice"))).unwrap(),
        json!({ "a": "x", "b": 1 })
    );
    assert_eq!(raw.words(&format!("TTL {prefix}cred:alice")), "-1");
    assert_eq!(raw.words(&format!("HGET {prefix}config host")), "\"local\"");
    assert_eq!(raw.words(&format!("HGET {prefix}usage:alice requests")), "3");
    assert_eq!(raw.words(&format!("GET {prefix}cache:models")), "bytes");
    let left: i64 = raw.words(&format!("PTTL {prefix}cache:models")).parse().unwrap();
    assert!((50_000..=60_000).contains(&left), "{left}");
    storage.close().await
}

#[tokio::test]
async fn nothing_in_a_prefix_is_a_pattern_and_foreign_keys_are_untouched() -> Result {
    let server = Server::start(&[]);
    let mut raw = Raw::to(&server.url());
    let foreign = ["app1:cred:x", "xy:cred:x", "ay:usage:x", "app[1]:credx", "app[1]:config2", "cred:x", "*"];
    for name in foreign {
        raw.words(&format!("SET {name} foreign"));
    }
    for prefix in ["app[1]:", "?y:", "*", "\\", "a-z^:", ""] {
        let encoded: String = prefix.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let storage = Storage::<Redis>::open(format!("{}?prefix={encoded}", server.url()).as_str()).await?;
        // The empty prefix shares its words with the foreign `cred:x`.
        let own = if prefix.is_empty() { vec![key("mine"), key("x")] } else { vec![key("mine")] };
        storage.set_credential("mine", json!({})).await?;
        storage.increment_usage("mine", "n", 1).await?;
        assert_eq!(storage.list_credentials().await?, own, "{prefix:?}");
        assert_eq!(storage.list_usage().await?.into_keys().collect::<Vec<_>>(), [key("mine")], "{prefix:?}");
        let stats = storage.stats().await?;
        assert_eq!((stats.credential_count, stats.usage_record_count), (own.len() as u64, 1), "{prefix:?}");
        storage.delete_credential("mine").await?;
        storage.reset_usage("mine").await?;
        storage.close().await?;
    }
    assert_eq!(raw.words("DBSIZE"), foreign.len().to_string());
    for name in foreign {
        assert_eq!(raw.words(&format!("GET {name}")), "foreign");
    }
    Ok(())
}

/// How often the server ran each command.
fn commands(raw: &mut Raw) -> BTreeMap<String, u64> {
    raw.words("INFO commandstats")
        .lines()
        .filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="))
        .map(|(name, rest)| (name.to_owned(), rest.split(',').next().unwrap().parse().unwrap()))
        .filter(|(name, _)| name != "info")
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
    // All connections are open: opening one is not part of an operation.
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
    one_command!(raw, 1 x "unlink", |n| storage.reset_usage(&names[n]));
    one_command!(raw, 1 x "set", |n| storage.set_cache(&names[n], "x", ttl));
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
    assert_eq!(storage.stats().await?.usage_record_count, 10);
    storage.close().await
}

#[tokio::test]
async fn a_cache_value_is_gone_when_its_time_is_over() -> Result {
    let storage = Storage::<Redis>::open(servers::redis().as_str()).await?;
    for _ in 0..5 {
        storage.set_cache("k", b"x", Duration::from_millis(50)).await?;
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert_eq!(storage.get_cache("k").await.unwrap_err().kind(), ErrorKind::NotFound);
    }
    let mut random = vec![0_u8; 1 << 20];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut random).unwrap();
    storage.set_cache("wide", &random, Duration::from_secs(60)).await?;
    assert!(storage.get_cache("wide").await? == random);
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovers_when_its_server_does_and_loses_no_count() -> Result {
    let mut server = Server::start(&["--appendfsync", "always"]);
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    let running = Arc::new(AtomicBool::new(true));
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let (storage, running) = (storage.clone(), running.clone());
            tokio::spawn(async move {
                let (mut sure, mut unsure, mut last) = (0_i64, 0_i64, Instant::now());
                while running.load(Ordering::SeqCst) {
                    match storage.increment_usage("total", "n", 1).await {
                        Ok(_) => (sure, last) = (sure + 1, Instant::now()),
                        Err(error) => {
                            assert!(error.is_retryable(), "{error:?}");
                            unsure += i64::from(error.outcome() == Outcome::Unknown);
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                    }
                }
                (sure, unsure, last)
            })
        })
        .collect();
    let mut returned = Instant::now();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.kill();
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.restart();
        returned = Instant::now();
        while storage.health().await.is_err() {
            assert!(returned.elapsed() < Duration::from_secs(2), "no recovery");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    running.store(false, Ordering::SeqCst);
    let (mut sure, mut unsure) = (0, 0);
    for task in tasks {
        let (task_sure, task_unsure, last) = task.await.unwrap();
        assert!(last > returned, "a task never got through again");
        (sure, unsure) = (sure + task_sure, unsure + task_unsure);
    }
    let total = storage.get_usage("total").await?.get("n").unwrap();
    assert!(sure <= total && total <= sure + unsure, "{sure} <= {total} <= {sure} + {unsure}");
    let begun = Instant::now();
    loop {
        storage.health().await?;
        let pool = storage.pool_stats().await?;
        if (2..=pool.max).contains(&pool.open) && pool.waiting == 0 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "the least number is open again: {pool:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    storage.close().await
}

#[tokio::test]
async fn a_stopped_server_makes_true_timeouts() -> Result {
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

    // Nobody who opens now gets a connection, so nothing of theirs is applied.
    let begun = Instant::now();
    let config = RedisConfig::try_from(format!("{}?deadline=300ms", server.url()).as_str())?;
    let error = Storage::<Redis>::open(config).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied));
    assert!(begun.elapsed() < Duration::from_millis(400), "{:?}", begun.elapsed());

    server.signal("-CONT");
    storage.health().await?;
    assert_eq!(
        storage.increment_usage("a", "n", 1).await?,
        2,
        "the one with the unknown outcome was applied"
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
        assert!(unknown <= 10, "the silent connections are never given up");
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
        "each was applied, and nothing else"
    );
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_is_whole_though_the_server_is_another_process_meanwhile() -> Result {
    const MANY: usize = 50_000;
    let mut server = Server::start(&["--appendfsync", "no"]);
    let fill = format!("for n = 1, {MANY} do redis.call('SET', 'gcli2api:cred:' .. n, '{{}}') end return 1");
    server.raw().ask(&[b"EVAL", fill.as_bytes(), b"0"]);
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    let lists = tokio::spawn({
        let storage = storage.clone();
        async move {
            let (mut whole, mut failed) = (0, 0);
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(6) || whole == 0 {
                match storage.list_credentials().await {
                    Ok(ids) => {
                        assert_eq!(ids.len(), MANY, "a list that is Ok is whole");
                        whole += 1;
                    }
                    Err(error) => {
                        assert!(error.is_retryable(), "{error:?}");
                        failed += 1;
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
            }
            println!("{whole} whole lists, {failed} failed");
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
async fn a_connection_that_fell_silent_is_given_up_although_calls_are_short() -> Result {
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
        assert!(begun.elapsed() < Duration::from_secs(20), "never given up");
    }
    assert!(failed > 0, "nothing was silent");
    storage.close().await
}

#[tokio::test]
async fn the_time_to_connect_is_not_the_time_to_reply() -> Result {
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
async fn waited_writes_do_not_queue_while_there_are_connections() -> Result {
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
        assert!(took < Duration::from_millis(1800), "{took:?}: one wait of a second, not two");
    }
    storage.close().await
}

#[tokio::test]
async fn refuses_settings_that_can_not_be_meant() {
    for url in [
        "redis://alice@localhost",
        "redis://a,b",
        "redis://localhost?read_timeout=0s",
        "redis://localhost?dial_timeout=0s",
        "redis://localhost?deadline=0s",
        "redis://localhost?pool_size=0",
        "redis://localhost?pool_size=5000",
        "redis://localhost?client_name=two%20words",
        "redis-cluster://localhost/1",
        "redis+sentinel://localhost/m?sentinel_username=alice",
    ] {
        let error = Storage::<Redis>::open(url).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::InvalidValue, Outcome::NotApplied), "{url}");
    }
}

#[tokio::test]
async fn logs_in_and_says_why_not() -> Result {
    let server = Server::start(&["--requirepass", "s3cret"]);
    let at = |login: &str| format!("redis://{login}127.0.0.1:{}", server.port);
    for login in ["", ":wr0ng@", "nobody:wr0ng@"] {
        let error = Storage::<Redis>::open(at(login).as_str()).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Denied, Outcome::NotApplied), "{error:?}");
        assert!(!format!("{error:?} {error}").contains("wr0ng"));
    }
    let admin = Storage::<Redis>::open(at(":s3cret@").as_str()).await?;
    let mut raw = Raw::to(&server.url());
    raw.words("AUTH s3cret");
    raw.words("ACL SETUSER reader on >pa@ss ~gcli2api:* +@read +@connection");
    admin.set_config("a", json!(1)).await?;
    let reader = Storage::<Redis>::open(at("reader:pa%40ss@").as_str()).await?;
    assert_eq!(reader.get_config("a").await?.value(), &json!(1));
    let error = reader.set_config("a", json!(2)).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Denied, Some("NOPERM")));
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert!(!format!("{reader:?}").contains("pa@ss"));

    let error = Storage::<Redis>::open(format!("{}/99", at(":s3cret@")).as_str()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidValue, "{error:?}");
    reader.close().await?;
    admin.close().await
}

#[tokio::test]
async fn errors_of_the_server_are_what_they_are() -> Result {
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
    let nobody = Storage::<Redis>::open("redis://127.0.0.1:1").await.unwrap_err();
    assert_eq!((nobody.kind(), nobody.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
    assert_eq!(nobody.code(), Some("os error 111"));
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
        assert_eq!(storage.pool_stats().await?.max, max);
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
fn the_command_serves_it_and_its_doctor_warns() {
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
async fn works_over_a_unix_socket_in_another_database() -> Result {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("redis.sock");
    let server = Server::start(&["--unixsocket", socket.to_str().unwrap()]);
    servers::until("the socket is there", || socket.exists());
    let storage = Storage::<Redis>::open(format!("redis+unix://{}?db=3", socket.display()).as_str()).await?;
    storage.set_config("a", json!(1)).await?;
    let mut raw = Raw::to(&server.url());
    assert_eq!(raw.words("EXISTS gcli2api:config"), "0");
    raw.words("SELECT 3");
    assert_eq!(raw.words("HGET gcli2api:config a"), "1");
    assert!(raw.words("CLIENT LIST").contains("name=gateway-storage"));
    storage.close().await
}

/// Counts what a task knows of its own increments.
#[derive(Clone, Copy, Default)]
struct Tally {
    acknowledged: i64,
    unknown: i64,
    slowest: Duration,
}

impl Tally {
    fn add(self, other: Self) -> Self {
        Self {
            acknowledged: self.acknowledged + other.acknowledged,
            unknown: self.unknown + other.unknown,
            slowest: self.slowest.max(other.slowest),
        }
    }

    /// Increments a counter until as many are acknowledged, or the time is over.
    async fn of(storage: &Storage<Redis>, record: &str, times: i64, running: &AtomicBool) -> Self {
        let mut tally = Self::default();
        while tally.acknowledged < times && running.load(Ordering::SeqCst) {
            let begun = Instant::now();
            match storage.increment_usage(record, "n", 1).await {
                Ok(_) => tally.acknowledged += 1,
                Err(error) => {
                    assert!(error.is_retryable(), "{error:?}");
                    tally.unknown += i64::from(error.outcome() == Outcome::Unknown);
                }
            }
            tally.slowest = tally.slowest.max(begun.elapsed());
        }
        tally
    }
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
    assert!(cuts > 20 && tally.unknown > 0, "{cuts} cuts left {} in doubt", tally.unknown);
    assert!(tally.acknowledged == TASKS * EACH, "every task came through");
    assert!((tally.acknowledged..=tally.acknowledged + tally.unknown).contains(&total));
    assert!(tally.slowest < deadline + Duration::from_millis(100), "{:?}", tally.slowest);
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follows_a_failover_of_sentinels() -> Result {
    let mut sentinels = Sentinels::start();
    // With WAIT no acknowledged write is only on the master that dies.
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
    // The new master has no replica, so that none of these is confirmed; and a read is as good as ever.
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
async fn sentinels_must_know_the_master() -> Result {
    let sentinels = Sentinels::start();
    let url = sentinels.url().replace("/mymaster", "/nobody");
    let error = Storage::<Redis>::open(url.as_str()).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::InvalidValue, Outcome::NotApplied), "{error:?}");
    // Sentinels that are not there are passed over.
    let some = sentinels.url().replace("://", "://127.0.0.1:1,");
    let storage = Storage::<Redis>::open(some.as_str()).await?;
    storage.health().await?;
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_rearranged_under_load() -> Result {
    let cluster = Cluster::start(3, 0);
    let storage = Storage::<Redis>::open(cluster.url().as_str()).await?;
    let running = Arc::new(AtomicBool::new(true));
    // Keys of all servers.
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
                assert!(
                    found.credentials.len() == 500 && found.credentials.values().all(|one| *one == value)
                );
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
        assert_eq!(tally.unknown, 0, "nothing was lost on the way");
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
async fn a_cluster_loses_a_master() -> Result {
    let mut cluster = Cluster::start(3, 1);
    let storage = Storage::<Redis>::open(cluster.url().as_str()).await?;
    let ids: Vec<Key> = (0..300).map(|n| key(&format!("id-{n}"))).collect();
    let items: Vec<_> = ids.iter().map(|id| (id.clone(), json!({}).try_into().unwrap())).collect();
    assert!(storage.set_credentials(&items).await?.is_complete());
    for node in &cluster.nodes[..3] {
        servers::until("the replica has it all", || node.raw().words("WAIT 1 1000") == "1");
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
    assert!(error.is_ok(), "one of its servers, opened alone, serves what it has");
    let alone = Storage::<Redis>::open(cluster.nodes[0].url().as_str()).await?;
    let moved = alone.get_credentials(&ids).await?;
    assert!(moved.failures.iter().all(|failure| failure.error.kind() == ErrorKind::Unsupported));
    storage.close().await
}

#[tokio::test]
async fn tls_trusts_nobody_else() -> Result {
    let server = Tls::start();
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    storage.set_config("a", json!(1)).await?;
    assert_eq!(server.raw().words("HGET gcli2api:config a"), "1");
    assert_eq!(storage.stats().await?.details["tls"], json!(true));
    storage.close().await?;

    let file = |name: &str| server.file(name).display().to_string();
    let own = format!("tls_cert={}&tls_key={}", file("client.pem"), file("client.key"));
    for (url, kind) in [
        // Another authority; the system's; another host name; no certificate of ours.
        (format!("{}?tls_ca={}&{own}", server.at("localhost"), file("stranger.pem")), ErrorKind::Denied),
        (format!("{}?{own}", server.at("localhost")), ErrorKind::Denied),
        (format!("{}?tls_ca={}&{own}", server.at("127.0.0.1"), file("ca.pem")), ErrorKind::Denied),
        (format!("{}?tls_ca={}", server.at("localhost"), file("ca.pem")), ErrorKind::Denied),
        // Files that are not what they should be.
        (format!("{}?tls_ca={}", server.at("localhost"), file("none.pem")), ErrorKind::InvalidValue),
        (format!("{}?tls_ca={}", server.at("localhost"), file("ca.key")), ErrorKind::InvalidValue),
        (format!("{}?tls_cert={}", server.at("localhost"), file("client.pem")), ErrorKind::InvalidValue),
        (
            format!(
                "{}?tls_cert={}&tls_key={}",
                server.at("localhost"),
                file("client.pem"),
                file("client.pem")
            ),
            ErrorKind::InvalidValue,
        ),
    ] {
        let error = Storage::<Redis>::open(url.as_str()).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (kind, Outcome::NotApplied), "{url}: {error:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_write_waits_for_its_replicas() -> Result {
    let master = Server::start(&["--repl-diskless-sync-delay", "0"]);
    let replica = Server::start(&["--replicaof", &format!("127.0.0.1 {}", master.port)]);
    servers::until("the replica follows", || {
        replica.raw().words("INFO replication").contains("master_link_status:up")
    });
    let storage =
        Storage::<Redis>::open(format!("{}?wait_replicas=1&wait_timeout=1s", master.url()).as_str()).await?;
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
    let deleted = storage.delete_credentials(&[key("x"), key("none")]).await?;
    assert_eq!(deleted.failures.len(), 2);
    assert_eq!(storage.get_usage("a").await?.get("n"), Some(101), "reads do not wait");
    replica.signal("-CONT");
    let begun = Instant::now();
    while storage.increment_usage("a", "n", 1).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the replica never confirms again");
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

/// The most memory that the command ever had, in KiB.
#[cfg(all(feature = "cli", target_os = "linux"))]
fn peak_memory(line: &[&str]) -> (String, u64) {
    let mut process = Command::new(env!("CARGO_BIN_EXE_storage"))
        .args(line)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut peak = 0;
    while process.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        peak = peak.max(now.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(2));
    }
    let ended = process.wait_with_output().unwrap();
    assert!(ended.status.success());
    (String::from_utf8(ended.stdout).unwrap(), peak)
}

#[cfg(all(feature = "cli", target_os = "linux"))]
#[test]
fn a_million_foreign_keys_take_no_memory() {
    let server = Server::start(&["--appendonly", "no"]);
    let list = ["--url", &server.url(), "credential", "list"].map(String::from);
    let list: Vec<&str> = list.iter().map(String::as_str).collect();
    for id in ["a", "b"] {
        server.raw().words(&format!("SET gcli2api:cred:{id} {{}}"));
    }
    let fill = "for n = 1, 1000000 do redis.call('SET', 'gcli2api:credit:' .. n, 'x') end return 1";
    server.raw().ask(&[b"EVAL", fill.as_bytes(), b"0"]);
    assert_eq!(server.raw().words("DBSIZE"), "1000002");
    let (ours, among_many) = peak_memory(&list);
    println!("{among_many} KiB among a million foreign keys");
    assert_eq!(ours, "a\nb\n");
    // Their names alone would take 80 MiB; the program itself takes some 10.
    assert!((2 << 10..32 << 10).contains(&among_many), "{among_many} KiB");
    assert_eq!(server.raw().words("DBSIZE"), "1000002");
}

#[tokio::test]
async fn a_large_store_is_listed_exported_and_imported_among_foreign_keys() -> Result {
    let server = Server::start(&["--appendfsync", "no"]);
    let mut raw = Raw::to(&server.url());
    let fill = "for n = 1, 20000 do redis.call('SET', 'foreign:' .. n, 'x') end return 1";
    raw.ask(&[b"EVAL", fill.as_bytes(), b"0"]);
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    let ids: Vec<Key> = (0..2_300).map(|n| key(&format!("id-{n:05}"))).collect();
    let credentials: Vec<_> =
        ids.iter().map(|id| (id.clone(), json!({ "id": id }).try_into().unwrap())).collect();
    assert!(storage.set_credentials(&credentials).await?.is_complete());
    let steps: Vec<Increment> = ids.iter().map(|id| Increment::new(id, &key("n"), 5)).collect();
    assert_eq!(storage.increment_many(&steps).await?.succeeded, 2_300);
    storage.set_config("a", json!([1])).await?;
    assert_eq!(storage.list_credentials().await?, ids);
    assert_eq!(storage.list_usage().await?.len(), 2_300);

    let records: Vec<Record> = storage.export().map(|record| record.unwrap()).collect().await;
    assert_eq!(records.len(), 2_300 + 1 + 2_300);
    let copy = Storage::<Redis>::open(format!("{}?prefix=copy:", server.url()).as_str()).await?;
    for _ in 0..2 {
        let report = copy.import(stream::iter(records.clone().into_iter().map(Ok))).await?;
        assert_eq!((report.succeeded, report.is_complete()), (records.len(), true));
    }
    let copied: Vec<Record> = copy.export().map(|record| record.unwrap()).collect().await;
    assert!(copied == records);
    assert_eq!(storage.delete_credentials(&ids).await?.succeeded, 2_300);
    assert_eq!(storage.list_credentials().await?, []);
    assert_eq!(copy.list_credentials().await?, ids);
    copy.close().await?;
    storage.close().await
}
