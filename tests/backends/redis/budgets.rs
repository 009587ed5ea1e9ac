//! Counters with a limit: the script at the edges of `i64`, beside damaged data, and without replicas.

use gateway_storage::{Memory, usage::Within};

use super::*;

/// Around the edges of `i64`, of a Lua number, and of the parts in which the script compares.
fn edges() -> Vec<i64> {
    let around = |n: i64| [n.saturating_sub(1), n, n.saturating_add(1)];
    let mut edges: Vec<i64> = [0, 1_000_000_000, 1 << 53, (1 << 53) + 2, i64::MAX - 1]
        .into_iter()
        .flat_map(|n| around(n).into_iter().chain(around(-n)))
        .chain([i64::MIN])
        .collect();
    edges.sort_unstable();
    edges.dedup();
    edges
}

#[tokio::test]
async fn a_limit_is_exact_for_every_total() -> Result {
    let server = Server::start(&["--appendonly", "no"]);
    let mut raw = server.raw();
    let redis = Storage::<Redis>::open(server.url().as_str()).await?;
    let memory = Storage::<Memory>::open("memory:").await?;
    let mut refused = 0;
    for total in edges().into_iter().map(Some).chain([None]) {
        for delta in edges() {
            for limit in edges() {
                let name = key(&format!("{total:?} {delta} {limit}"));
                if let Some(total) = total {
                    let record = format!("gcli2api:usage:{}", name.as_str());
                    raw.ask(&[b"HSET", record.as_bytes(), b"n", total.to_string().as_bytes()]);
                    memory.increment_usage(&name, "n", total).await?;
                }
                let wanted = memory.increment_within(&name, "n", delta, limit).await;
                let found = redis.increment_within(&name, "n", delta, limit).await;
                match (wanted, found) {
                    (Ok(wanted), Ok(found)) => {
                        assert_eq!(found, wanted, "{}", name.as_str());
                        refused += u32::from(!found.is_counted());
                    }
                    (Err(wanted), Err(found)) => {
                        let facts = |error: &gateway_storage::Error| {
                            (error.kind(), error.outcome(), error.key() == Some(&name))
                        };
                        assert_eq!(facts(&found), facts(&wanted), "{}", name.as_str());
                    }
                    (wanted, found) => panic!("{found:?}, not {wanted:?}: {}", name.as_str()),
                }
            }
        }
    }
    assert!(refused > 1000);
    let stored = redis.list_usage().await?;
    assert!(stored == memory.list_usage().await?, "a refusal makes and changes nothing");
    redis.close().await
}

#[tokio::test]
async fn a_damaged_counter_is_corrupt() -> Result {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    raw.words("SET gcli2api:usage:text 1");
    let long = "9".repeat(400);
    let values = [
        ("word", "many"),
        ("empty", ""),
        ("zeros", "007"),
        ("minus", "-0"),
        ("plus", "+7"),
        ("half", "7.5"),
        ("hex", "0x7"),
        ("spaced", " 7"),
        ("large", "9223372036854775808"),
        ("larger", &long),
        ("small", "-9223372036854775809"),
    ];
    for (field, value) in values {
        raw.ask(&[b"HSET", b"gcli2api:usage:hash", field.as_bytes(), value.as_bytes()]);
    }
    let before = raw.words("HGETALL gcli2api:usage:hash");
    for (record, field) in values.map(|(field, _)| ("hash", field)).into_iter().chain([("text", "n")]) {
        let corrupt = |error: gateway_storage::Error| {
            let facts = (error.kind(), error.outcome(), error.key());
            let wanted = (ErrorKind::Corrupt, Outcome::NotApplied, Some(&key(record)));
            assert_eq!(facts, wanted, "{record} {field}: {error:?}");
            assert!(!format!("{error:?}").contains("many"));
        };
        corrupt(storage.increment_usage(record, field, 1).await.unwrap_err());
        corrupt(storage.get_counter(record, field).await.unwrap_err());
        for limit in [i64::MIN, -1, 0, 100, i64::MAX] {
            corrupt(storage.increment_within(record, field, 1, limit).await.unwrap_err());
        }
    }
    assert_eq!(raw.words("HGETALL gcli2api:usage:hash"), before);
    assert_eq!(storage.increment_within("hash", "other", 1, 1).await?, Within::Counted(1));
    assert_eq!(storage.get_counter("hash", "other").await?, 1, "other counters are usable");
    assert_eq!(storage.get_counter("hash", "none").await?, 0);
    storage.close().await
}

/// Only what was counted can be unconfirmed.
#[tokio::test]
async fn a_missing_replica_does_not_hide_a_refusal() -> Result {
    let server = Server::start(&[]);
    let url = format!("{}?wait_replicas=1&wait_timeout=10ms", server.url());
    let storage = Storage::<Redis>::open(url.as_str()).await?;
    assert_eq!(storage.increment_within("a", "n", 1, 0).await?, Within::Refused(0));
    assert_eq!(server.raw().words("DBSIZE"), "0");
    let error = storage.increment_within("a", "n", 2, 2).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::Unknown), "{error:?}");
    assert_eq!(storage.increment_within("a", "n", 1, 2).await?, Within::Refused(2));
    storage.close().await
}

#[tokio::test]
async fn a_server_that_takes_no_write_counts_nothing() -> Result {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    storage.increment_usage("a", "n", 2).await?;
    for (refuse, kind, again) in [
        ("CONFIG SET maxmemory 1", ErrorKind::Busy, "CONFIG SET maxmemory 0"),
        ("ACL SETUSER default -hincrby", ErrorKind::Denied, "ACL SETUSER default +hincrby"),
    ] {
        raw.words(refuse);
        let error = storage.increment_within("a", "n", 1, 3).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (kind, Outcome::NotApplied), "{error:?}");
        raw.words(again);
        assert_eq!(storage.get_counter("a", "n").await?, 2);
    }
    storage.close().await
}

/// Also in a cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_never_exceed_a_budget() -> Result {
    const LIMIT: i64 = 10_000;
    let (server, cluster) = (Server::start(&["--appendfsync", "no"]), Cluster::start(3, 0));
    for url in [server.url(), cluster.url()] {
        let storages = [(); 2].map(|()| Storage::<Redis>::open(url.as_str()));
        let storages = futures_util::future::try_join_all(storages).await?;
        let tasks: Vec<_> = (0..64_i64)
            .map(|task| {
                let storage = storages[task as usize % 2].clone();
                tokio::spawn(async move {
                    let (mut totals, mut counted) = (Vec::new(), 0);
                    for round in 0..20 {
                        let delta = 1 + (task * 7 + round * 13) % 29;
                        match storage.increment_within("client", "tokens", delta, LIMIT).await.unwrap() {
                            Within::Counted(total) => {
                                assert!(total <= LIMIT, "{total}");
                                counted += delta;
                                totals.push(total);
                            }
                            Within::Refused(total) => {
                                assert!(total <= LIMIT && total + delta > LIMIT, "{total} and {delta}");
                            }
                        }
                    }
                    (totals, counted)
                })
            })
            .collect();
        let (mut totals, mut counted) = (Vec::new(), 0);
        for task in tasks {
            let (of_task, count) = task.await.unwrap();
            totals.extend(of_task);
            counted += count;
        }
        let number = totals.len();
        totals.sort_unstable();
        totals.dedup();
        assert_eq!(totals.len(), number, "two tasks got one total");
        assert!(number < 64 * 20, "some are refused");
        let total = storages[0].get_counter("client", "tokens").await?;
        assert_eq!((total, total), (counted, *totals.last().unwrap()));
        assert!((LIMIT - 29..=LIMIT).contains(&total), "{total}");
        for storage in storages {
            storage.close().await?;
        }
    }
    Ok(())
}
