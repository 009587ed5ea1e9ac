//! Batches of config values, usage records and cache values: on one server and in a cluster.

use futures_util::TryStreamExt;
use gateway_storage::{BatchFailure, ConfigValue};
use testkit::servers::wire::Protocol;

use super::*;

const TTL: Duration = Duration::from_secs(60);

/// More than two chunks of each kind.
async fn many_of_each(url: &str) -> Result {
    let storage = Storage::<Redis>::open(url).await?;
    let keys: Vec<Key> = (0..2_300).map(|n| key(&format!("k{n:05}"))).collect();
    let none = key("none");
    let asked: Vec<Key> = [&none, &keys[7]].into_iter().chain(&keys).chain([&none]).cloned().collect();
    let missing = |failures: &[BatchFailure]| {
        let facts: Vec<_> = failures.iter().map(|one| (one.index, one.error.kind())).collect();
        assert_eq!(facts, [(0, ErrorKind::NotFound), (2_302, ErrorKind::NotFound)]);
    };

    // Of several items with one key the last one counts.
    let configs: Vec<(Key, ConfigValue)> = [json!("first"), json!("second")]
        .into_iter()
        .flat_map(|value| keys.iter().map(move |key| (key.clone(), json!([key, value]).try_into().unwrap())))
        .collect();
    let report = storage.set_configs(&configs).await?;
    assert_eq!((report.succeeded, report.is_complete()), (4_600, true));
    let found = storage.get_configs(&asked).await?;
    assert!(found.values == configs[2_300..].iter().cloned().collect());
    missing(&found.failures);

    let steps: Vec<Increment> = keys.iter().chain(&keys).map(|key| Increment::new(key, key, 2)).collect();
    let totals = storage.increment_many(&steps).await?;
    assert!(totals.totals.iter().take(2_300).all(|total| *total == Some(2)));
    assert!(totals.totals.iter().skip(2_300).all(|total| *total == Some(4)) && totals.is_complete());
    let found = storage.get_usages(&asked).await?;
    assert_eq!(found.values.len(), 2_300);
    assert!(found.values.iter().all(|(key, record)| record.get(key.as_str()) == Some(4)));
    missing(&found.failures);

    let cached = |text: &'static str| keys.iter().map(move |key| (key, format!("{text} {}", key.as_str())));
    let report = storage.set_cache_many(cached("first").chain(cached("second")), TTL).await?;
    assert_eq!((report.succeeded, report.is_complete()), (4_600, true));
    let found = storage.get_cache_many(&asked).await?;
    assert!(found.values == cached("second").map(|(key, text)| (key.clone(), text.into_bytes())).collect());
    missing(&found.failures);
    let left = storage.get_cache_entry(&keys[0]).await?.expires_in.unwrap();
    assert!(left <= TTL && left > TTL / 2, "{left:?}");

    // 1000 records of k01.
    assert_eq!(storage.reset_usage_prefix("k01").await?, 1_000);
    assert_eq!(storage.reset_usage_prefix("k01").await?, 0);
    let rest: Vec<Key> = storage.list_usage().await?.into_keys().collect();
    assert!(rest.iter().eq(keys.iter().filter(|key| !key.as_str().starts_with("k01"))));
    assert_eq!(storage.reset_usage_prefix("k").await?, 1_300);
    assert_eq!((storage.list_usage().await?.len(), storage.list_configs().await?.len()), (0, 2_300));

    assert!(storage.set_cache_if_absent("new", "a", TTL).await?);
    assert!(!storage.set_cache_if_absent("new", "b", TTL).await?);
    assert_eq!(storage.get_cache("new").await?, b"a");
    storage.close().await
}

#[tokio::test]
async fn many_records_on_a_server() -> Result {
    let server = Server::start(&["--appendfsync", "no"]);
    many_of_each(&server.url()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_records_in_a_cluster() -> Result {
    let cluster = Cluster::start(3, 0);
    many_of_each(&cluster.url()).await
}

#[tokio::test]
async fn one_round_trip_is_enough() -> Result {
    let server = Server::start(&[]);
    let proxy = Proxy::counting(server.addr(), Protocol::Redis).await;
    let storage = Storage::<Redis>::open(format!("redis://{}?min_idle=1", proxy.addr).as_str()).await?;
    let keys: Vec<Key> = (0..10).map(|n| key(&format!("k{n}"))).collect();
    let configs: Vec<(Key, ConfigValue)> =
        keys.iter().map(|key| (key.clone(), json!(1).try_into().unwrap())).collect();
    let steps: Vec<Increment> = keys.iter().map(|key| Increment::new(key, key, 1)).collect();
    // Opens the connection that lists use.
    storage.list_credentials().await?;
    macro_rules! round_trips {
        ($number:literal, $call:expr) => {{
            let before = proxy.traffic().round_trips;
            let _ = $call.await?;
            assert_eq!(proxy.traffic().round_trips - before, $number, stringify!($call));
        }};
    }
    round_trips!(1, storage.increment_within("k0", "n", 1, 1));
    round_trips!(1, storage.increment_within("k0", "n", 1, 1));
    round_trips!(1, storage.get_counter("k0", "n"));
    round_trips!(1, storage.increment_many(&steps));
    round_trips!(1, storage.get_usages(&keys));
    round_trips!(1, storage.set_configs(&configs));
    round_trips!(1, storage.get_configs(&keys));
    round_trips!(1, storage.get_cache_many(&keys));
    round_trips!(1, storage.set_cache_many(keys.iter().map(|key| (key, "v")), TTL));
    round_trips!(1, storage.get_cache_many(&keys));
    round_trips!(1, storage.set_cache_if_absent("k0", "w", TTL));
    // A list of the keys, and the page.
    round_trips!(2, storage.stream_usage(Default::default()).try_collect::<Vec<_>>());
    round_trips!(2, storage.stream_configs(Default::default()).try_collect::<Vec<_>>());
    round_trips!(2, storage.reset_usage_prefix("k"));
    round_trips!(1, storage.reset_usage_prefix("k"));
    storage.close().await
}

#[tokio::test]
async fn records_of_a_wrong_type_fail_alone() -> Result {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    storage.increment_usage("good", "n", 1).await?;
    storage.set_cache("good", "v", TTL).await?;
    raw.words("SET gcli2api:usage:bad text");
    raw.words("HSET gcli2api:usage:word n many");
    raw.words("HSET gcli2api:cache:bad a b");
    let keys = ["bad", "good", "none", "word"];
    let kinds = |failures: &[BatchFailure]| {
        failures.iter().map(|one| (one.index, one.error.kind())).collect::<Vec<_>>()
    };
    let found = storage.get_usages(keys).await?;
    assert_eq!(found.values.keys().collect::<Vec<_>>(), [&key("good")]);
    let wanted = [(0, ErrorKind::Corrupt), (2, ErrorKind::NotFound), (3, ErrorKind::Corrupt)];
    assert_eq!(kinds(&found.failures), wanted);
    let found = storage.get_cache_many(keys).await?;
    assert_eq!(found.values, BTreeMap::from([(key("good"), b"v".to_vec())]));
    let wanted = [(0, ErrorKind::Corrupt), (2, ErrorKind::NotFound), (3, ErrorKind::NotFound)];
    assert_eq!(kinds(&found.failures), wanted);
    let totals = storage.increment_many(&[("bad", "n", 1), ("good", "n", 1), ("word", "n", 1)]).await?;
    assert_eq!((&totals.totals[..], totals.failures.len()), (&[None, Some(2), None][..], 2));
    // A write replaces a value of any type, but a value of any type is one.
    assert!(!storage.set_cache_if_absent("bad", "v", TTL).await?);
    assert!(storage.set_cache_many([("bad", "v")], TTL).await?.is_complete());
    assert_eq!(storage.get_cache("bad").await?, b"v");
    // The values that can't be stored fail alone.
    let large = vec![0; gateway_storage::MAX_VALUE_BYTES + 1];
    let report = storage.set_cache_many([("a", large), ("b", b"v".to_vec())], TTL).await?;
    assert_eq!((report.succeeded, kinds(&report.failures)), (1, vec![(0, ErrorKind::TooLarge)]));
    let report = storage.set_cache_many([("a", "v"), ("b", "v")], Duration::ZERO).await?;
    assert_eq!((report.succeeded, report.failures[1].error.kind()), (0, ErrorKind::InvalidValue));

    raw.words("SET gcli2api:config text");
    let found = storage.get_configs(["a", "b"]).await?;
    assert_eq!(kinds(&found.failures), [(0, ErrorKind::Corrupt), (1, ErrorKind::Corrupt)]);
    let report = storage.set_configs([("a", json!(1)), ("b", json!(2))]).await?;
    assert_eq!(kinds(&report.failures), [(0, ErrorKind::Corrupt), (1, ErrorKind::Corrupt)]);
    assert!(report.failures.iter().all(|failure| failure.error.outcome() == Outcome::NotApplied));
    assert_eq!(raw.words("GET gcli2api:config"), "text");
    storage.close().await
}

/// Only what was stored can be unconfirmed.
#[tokio::test]
async fn a_missing_replica_does_not_hide_a_cached_value() -> Result {
    let server = Server::start(&[]);
    let url = format!("{}?wait_replicas=1&wait_timeout=10ms", server.url());
    let storage = Storage::<Redis>::open(url.as_str()).await?;
    let error = storage.set_cache_if_absent("a", "v", TTL).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::Unknown), "{error:?}");
    assert!(!storage.set_cache_if_absent("a", "w", TTL).await?);
    assert_eq!(storage.get_cache("a").await?, b"v");
    storage.close().await
}

/// One server of a cluster refuses to delete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_that_fails_half_way_is_unknown() -> Result {
    let cluster = Cluster::start(3, 0);
    let storage = Storage::<Redis>::open(cluster.url().as_str()).await?;
    let steps: Vec<_> = (0..300).map(|n| (format!("day/{n}"), "n", 1)).collect();
    assert!(storage.increment_many(&steps).await?.is_complete());
    let reset = async |allowed: &str, servers: &[Server]| {
        servers.iter().for_each(|server| drop(server.raw().words(&format!("ACL SETUSER default {allowed}"))));
        storage.reset_usage_prefix("day/").await
    };
    let error = reset("-unlink", &cluster.nodes).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Denied, Outcome::NotApplied), "{error:?}");
    assert_eq!(storage.list_usage().await?.len(), 300);
    let error = reset("+unlink", &cluster.nodes[1..]).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Denied, Outcome::Unknown), "{error:?}");
    let left = storage.list_usage().await?.len() as u64;
    assert!((1..300).contains(&left), "{left}");
    assert_eq!(reset("+unlink", &cluster.nodes[..1]).await?, left);
    storage.close().await
}
