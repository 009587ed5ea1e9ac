//! What the tests of counters and streams in `MongoDb` and `Postgres` share.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, future::join_all};
use gateway_storage::{
    ConfigStore, CredentialStore, Increment, Key, Memory, Result, Storage, UsageRecord, UsageStore,
    list::ListOptions, usage::Within,
};
use serde_json::json;

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

/// Batches in which counters repeat, change their sign and overflow have the totals of `Memory`. `records` is
/// the number of records, of which each has three counters.
pub(crate) async fn batches_are_those_of_memory<B: UsageStore>(storage: &Storage<B>, records: usize) {
    const DELTAS: [i64; 10] = [i64::MIN, i64::MIN + 1, -7, -1, 0, 1, 7, 1 << 62, i64::MAX - 1, i64::MAX];
    let memory = Storage::<Memory>::open("memory:").await.unwrap();
    for round in 0..12 {
        let step = |n: usize| {
            let record = if round % 2 == 0 { n % records } else { fastrand::usize(..records) };
            let field = ["a", "b.$", "c%"][fastrand::usize(..3)];
            // In most rounds few increments overflow.
            let delta = if fastrand::usize(..40) < round {
                DELTAS[fastrand::usize(..10)]
            } else {
                fastrand::i64(-9..9)
            };
            Increment::new(&key(&format!("batch {record:03}")), &key(field), delta)
        };
        let steps: Vec<_> = (0..2 * records).map(step).collect();
        let expected = memory.increment_many(&steps).await.unwrap();
        let found = storage.increment_many(&steps).await.unwrap();
        assert_eq!(found.totals, expected.totals, "in round {round}");
        let failures = |totals: &gateway_storage::usage::Totals| {
            let failure = |of: &gateway_storage::BatchFailure| (of.index, of.key.clone(), of.error.kind());
            totals.failures.iter().map(failure).collect::<Vec<_>>()
        };
        assert_eq!(failures(&found), failures(&expected));
        assert!(storage.list_usage().await.unwrap() == memory.list_usage().await.unwrap());
    }
}

/// Each total of a counter is returned once, from batches and from single calls. `records` is the number of
/// records in each batch.
pub(crate) async fn each_total_is_returned_once<B: UsageStore>(storages: &[Storage<B>], records: usize) {
    const ROUNDS: usize = 4;
    let keys: Vec<Key> = (0..records).map(|n| key(&format!("hot {n:03}"))).collect();
    let field = key("n");
    let task = |task: usize| {
        let (storage, keys, field) = (storages[task % storages.len()].clone(), keys.clone(), field.clone());
        async move {
            let mut totals = Vec::new();
            for round in 0..ROUNDS {
                if (task + round).is_multiple_of(4) {
                    for key in &keys {
                        totals.push((key.clone(), storage.increment_usage(key, &field, 1).await.unwrap()));
                    }
                    continue;
                }
                let mut keys = keys.clone();
                fastrand::shuffle(&mut keys);
                let steps: Vec<_> = keys.iter().map(|key| Increment::new(key, &field, 1)).collect();
                let found = storage.increment_many(&steps).await.unwrap().complete().unwrap();
                totals.extend(keys.into_iter().zip(found));
            }
            totals
        }
    };
    let tasks = (0..8).map(|n| tokio::spawn(task(n)));
    let mut totals: BTreeMap<Key, Vec<i64>> = BTreeMap::new();
    for (key, total) in join_all(tasks).await.into_iter().flat_map(|totals| totals.unwrap()) {
        totals.entry(key).or_default().push(total);
    }
    assert_eq!(totals.len(), records);
    for totals in totals.values_mut() {
        totals.sort_unstable();
        assert!(totals.iter().copied().eq(1..=8 * ROUNDS as i64), "{totals:?}");
    }
}

/// 64 tasks reserve, and give back, within a budget. A refusal tells a total with which it is one.
pub(crate) async fn a_budget_holds<B: UsageStore>(storages: &[Storage<B>]) {
    const LIMIT: i64 = 40;
    let task = |task: usize| {
        let storage = storages[task % storages.len()].clone();
        async move {
            let (mut held, mut refused) = (0, 0);
            for _ in 0..12 {
                let delta = if held > 3 { -held } else { fastrand::i64(1..=9) };
                match storage.increment_within("budget", "tokens", delta, LIMIT).await.unwrap() {
                    Within::Counted(total) => {
                        assert!((0..=LIMIT).contains(&total), "{total} was counted");
                        held += delta;
                    }
                    Within::Refused(total) => {
                        assert!(total <= LIMIT && total + delta > LIMIT, "{delta} was refused at {total}");
                        refused += 1;
                    }
                }
            }
            (held, refused)
        }
    };
    let tasks = join_all((0..64).map(|n| tokio::spawn(task(n)))).await;
    let ended = tasks.into_iter().map(|task| task.unwrap());
    let (held, refused) = ended.fold((0, 0), |sum, task| (sum.0 + task.0, sum.1 + task.1));
    assert_eq!(storage_total(&storages[0]).await, held);
    assert!(refused > 0, "no call was refused");
}

async fn storage_total<B: UsageStore>(storage: &Storage<B>) -> i64 {
    storage.get_counter("budget", "tokens").await.unwrap()
}

/// Streams of records across the borders of pages, with counters of 3,000 in one of them.
pub(crate) async fn streams_cross_pages<B: UsageStore + CredentialStore + ConfigStore>(storage: &Storage<B>) {
    let small = (0..600).map(|n| Increment::new(&key(&format!("r{n:03}")), &key("n"), n));
    let of_large = |(name, of): (&'static str, i64)| {
        (0..of).map(move |n| Increment::new(&key(name), &key(&format!("field {n:04}")), n))
    };
    // The first and the last record of a page, and one after the other.
    let large = [("r000", 3_000), ("r100", 999), ("r100a", 1_001), ("r599", 3_000)].into_iter();
    let steps: Vec<_> = small.chain(large.flat_map(of_large)).collect();
    storage.increment_many(&steps).await.unwrap().complete().unwrap();
    let all: Vec<(Key, UsageRecord)> = storage.list_usage().await.unwrap().into_iter().collect();
    assert_eq!((all.len(), all[0].1.len()), (601, 3_001));

    for (prefix, after, limit) in [
        ("", None, None),
        ("", Some("r000"), None),
        ("", Some("r0"), Some(250)),
        ("", None, Some(251)),
        ("r1", None, None),
        ("r100", None, None),
        ("r100", Some("r100"), None),
        ("r5", Some("r549"), None),
        ("r5", Some("r4"), Some(1)),
        ("r", Some("s"), None),
        ("r", None, Some(0)),
        ("x", None, None),
    ] {
        let mut options = ListOptions::default().with_prefix(prefix);
        (options.after, options.limit) = (after.map(key), limit);
        let is_named =
            |name: &Key| name.as_str().starts_with(prefix) && after.is_none_or(|after| name.as_str() > after);
        let expected = all.iter().filter(|(key, _)| is_named(key)).take(limit.unwrap_or(usize::MAX));
        let found: Vec<_> = storage.stream_usage(options.clone()).try_collect().await.unwrap();
        assert!(found.iter().eq(expected), "{options:?}: {} records", found.len());
    }

    // Pages that are limited in bytes: of values of a megabyte, and of small ones between them.
    let text = "x".repeat(1_000_000);
    let value = |n: usize| if n % 7 < 3 { json!({ "n": n, "text": text }) } else { json!({ "n": n }) };
    for n in 0..40 {
        storage.set_credential(&key(&format!("c{n:02}")), value(n)).await.unwrap();
        storage.set_config(&key(&format!("c{n:02}")), value(n)).await.unwrap();
    }
    for options in [ListOptions::default(), ListOptions::default().with_prefix("c").with_limit(39)] {
        let count = options.limit.unwrap_or(40);
        let found: Vec<_> = storage.stream_credentials(options.clone()).try_collect().await.unwrap();
        assert_eq!(found.len(), count);
        for ((id, credential), n) in found.into_iter().zip(0..) {
            assert_eq!(id.as_str(), format!("c{n:02}"));
            assert!(credential == value(n).try_into().unwrap());
        }
        let found: Vec<_> = storage.stream_configs(options).try_collect().await.unwrap();
        assert_eq!(found.len(), count);
        for ((_, config), n) in found.into_iter().zip(0..) {
            assert!(config.value() == &value(n));
        }
    }
}

/// A prefix is a text, whatever its characters mean to the server.
pub(crate) async fn prefixes_are_texts<B: UsageStore + CredentialStore + ConfigStore>(storage: &Storage<B>) {
    let names = [
        "a%b",
        "a%",
        "a_b",
        "a\\b",
        "a\\",
        "a'b",
        "a\"b",
        "a$b",
        "$a",
        "a.b",
        ".",
        "a*b",
        "a?b",
        "a[b]",
        "a",
        "aB",
        "ä",
        "äb",
        "\u{10ffff}",
        "\u{10ffff}\u{10ffff}",
        "日本",
        "日",
        "ab",
    ];
    for name in names {
        storage.increment_usage(name, "n", 1).await.unwrap();
        storage.set_config(name, json!(name)).await.unwrap();
        storage.set_credential(name, json!({ "n": name })).await.unwrap();
    }
    let other = ["", "%", "_", "\\", "\0", "a\0", "\0a", "a%\0", "'; DROP", "A", "a\u{1}", "\u{d7ff}"];
    for prefix in names.into_iter().chain(other).chain([&*"a".repeat(300)]) {
        let mut expected: Vec<&str> = names.into_iter().filter(|name| name.starts_with(prefix)).collect();
        expected.sort_unstable();
        for after in [None, Some("a"), Some("a%b"), Some("日")] {
            let mut options = ListOptions::default().with_prefix(prefix);
            options.after = after.map(key);
            let expected = expected.iter().filter(|name| after.is_none_or(|after| **name > after));
            let expected: Vec<Key> = expected.map(|name| key(name)).collect();
            let usage = storage.stream_usage(options.clone()).map_ok(|(key, _)| key);
            let configs = storage.stream_configs(options.clone()).map_ok(|(key, _)| key);
            let credentials = storage.stream_credentials(options.clone()).map_ok(|(key, _)| key);
            let found = [usage.boxed(), configs.boxed(), credentials.boxed()];
            for found in join_all(found.map(TryStreamExt::try_collect::<Vec<Key>>)).await {
                let found: Result<Vec<Key>> = found;
                assert_eq!(found.unwrap(), expected, "{prefix:?} {after:?}");
            }
        }
    }
    for prefix in ["a%", "$", "a_", "ä", "\u{10ffff}", "'", "a"] {
        let left: Vec<_> = storage.list_usage().await.unwrap().into_keys().collect();
        let gone = left.iter().filter(|key| key.as_str().starts_with(prefix)).count();
        assert_eq!(storage.reset_usage_prefix(prefix).await.unwrap(), gone as u64, "{prefix}");
        let stays = left.into_iter().filter(|key| !key.as_str().starts_with(prefix));
        assert!(storage.list_usage().await.unwrap().into_keys().eq(stays), "{prefix}");
    }
}
