//! The contract of [`UsageStore`].

use std::{collections::BTreeMap, time::Duration};

use futures_util::TryStreamExt;
use serde_json::json;

use super::{
    TASKS, WaitLimit,
    batches::{MANY, with_missing},
    budgets::budgets,
    concurrently, counted, drop_after, fails_about, hostile_keys, key, must, numbered, ok, same,
    same_failures, same_keys, settle, sorted,
    streams::{Streamed, remove, streams},
};
use crate::{
    ErrorKind, Increment, Key, OptionalExt, Outcome, Result, Storage, UsageRecord, UsageStore,
    model::ListOptions,
};

/// Asserts the contract of [`UsageStore`].
///
/// # Panics
///
/// At the first violated bullet.
pub async fn usage<B: UsageStore>(storage: &Storage<B>) {
    must("the kit needs a storage without usage", is_empty(storage.clone())).await;
    must("increment_usage: gives the new total; a missing counter starts at 0", totals(storage.clone()))
        .await;
    must("increment_usage: any i64, to the last digit", extremes(storage.clone())).await;
    must("increment_usage: Overflow leaves the counter unchanged", overflow(storage.clone())).await;
    must("get_usage, reset_usage: NotFound if there is none", missing(storage.clone())).await;
    must("reset_usage: removes one record with all its counters", resets(storage.clone())).await;
    must("a key or field is never interpreted", keys(storage.clone())).await;
    must("list_usage: all records, sorted by key", lists(storage.clone())).await;
    must("stats: counts what is stored (usage records), no keys", counts(storage.clone())).await;
    must("increment_many: in order, increments of one counter add up", many(storage.clone())).await;
    must("increment_many: an overflow fails, and the next is applied", many_overflow(storage.clone())).await;
    must("increment_many: of nothing, and of many", sizes(storage.clone())).await;
    budgets(storage).await;
    must("get_counter: one counter, 0 if it is missing", counters(storage.clone())).await;
    must("get_usages: sorted by key, each missing key a failure", gets(storage.clone())).await;
    must("get_usages: of nothing, and of many", many_gets(storage.clone())).await;
    must("reset_usage_prefix: the records with the prefix, and their number", prefixes(storage.clone()))
        .await;
    must("reset_usage_prefix: of many", many_resets(storage.clone())).await;
    streams::<Usage, B>(storage).await;
    must("increment_usage: atomic and exact concurrently", exact(storage.clone())).await;
    must("increment_usage: exact concurrently, up to the last i64", to_the_limit(storage.clone())).await;
    must("increment_many: atomic and exact concurrently, on shared counters", overlapping(storage.clone()))
        .await;
    must("increment_many: concurrently, each item has its own total", own_totals(storage.clone())).await;
    must("reset_usage: of concurrent calls one succeeds", concurrent_resets(storage.clone())).await;
    must("a dropped increment is applied as a whole or not at all", dropped(storage.clone())).await;
    must("a call ends within its deadline, and reports its outcome", deadline(storage.clone())).await;
    must("the kit leaves nothing", is_empty(storage.clone())).await;
}

async fn is_empty<B: UsageStore>(storage: Storage<B>) {
    same("records", 0, ok("list_usage", storage.list_usage().await).len());
}

async fn clear<B: UsageStore>(storage: &Storage<B>) {
    let keys: Vec<Key> = ok("list_usage", storage.list_usage().await).into_keys().collect();
    remove::<Usage, B>(storage, &keys).await;
}

fn record<const N: usize>(counters: [(&str, i64); N]) -> UsageRecord {
    counters.into_iter().map(|(field, count)| (key(field), count)).collect()
}

async fn add<B: UsageStore>(storage: &Storage<B>, key: &str, field: &str, delta: i64) -> i64 {
    ok("increment_usage", storage.increment_usage(key, field, delta).await)
}

async fn get<B: UsageStore>(storage: &Storage<B>, key: &str) -> UsageRecord {
    ok("get_usage", storage.get_usage(key).await)
}

fn same_records(what: &str, wanted: &BTreeMap<Key, UsageRecord>, found: &BTreeMap<Key, UsageRecord>) {
    let keys: Vec<Key> = wanted.keys().cloned().collect();
    same_keys(what, &keys, found.keys().cloned());
    for (key, wanted) in wanted {
        same(format!("{what}: {:?}", key.as_str()), wanted, &found[key]);
    }
}

async fn totals<B: UsageStore>(storage: Storage<B>) {
    for (delta, total) in [(5, 5), (2, 7), (-10, -3), (0, -3), (3, 0), (1, 1)] {
        same("total", total, add(&storage, "a", "requests", delta).await);
        same("record", record([("requests", total)]), get(&storage, "a").await);
    }
    same("total of another field", 4, add(&storage, "a", "tokens", 4).await);
    same("total of another record", -1, add(&storage, "b", "requests", -1).await);
    same("a", record([("requests", 1), ("tokens", 4)]), get(&storage, "a").await);
    same("b", record([("requests", -1)]), get(&storage, "b").await);
    same("total after a zero for a missing counter", 0, add(&storage, "zero", "requests", 0).await);
    same("record after a zero", record([("requests", 0)]), get(&storage, "zero").await);
    clear(&storage).await;
}

async fn extremes<B: UsageStore>(storage: Storage<B>) {
    let deltas = [
        i64::MAX,
        i64::MIN,
        i64::MIN + 1,
        9_007_199_254_740_993,
        -9_007_199_254_740_993,
        i64::from(u32::MAX) + 1,
    ];
    for (field, delta) in numbered("f", deltas.len()).iter().zip(deltas) {
        same("total", delta, ok("increment_usage", storage.increment_usage("extreme", field, delta).await));
        same("count", Some(delta), get(&storage, "extreme").await.get(field.as_str()));
    }
    same("the total from i64::MAX to -1", -1, add(&storage, "extreme", "f00000", i64::MIN).await);
    same("the total beyond 2^53", 9_007_199_254_740_994, add(&storage, "extreme", "f00003", 1).await);
    clear(&storage).await;
}

async fn overflow<B: UsageStore>(storage: Storage<B>) {
    for (end, beyond) in [(i64::MAX, 1), (i64::MAX, i64::MAX), (i64::MIN, -1), (i64::MIN, i64::MIN)] {
        add(&storage, "a", "count", end).await;
        for _ in 0..2 {
            let result = storage.increment_usage("a", "count", beyond).await;
            fails_about("an increment beyond i64", ErrorKind::Overflow, &key("a"), result);
            same("the counter after Overflow", record([("count", end)]), get(&storage, "a").await);
        }
        let back = if end > 0 { -1 } else { 1 };
        same("total after Overflow", end + back, add(&storage, "a", "count", back).await);
        clear(&storage).await;
    }
}

async fn missing<B: UsageStore>(storage: Storage<B>) {
    fails_about("get from an empty storage", ErrorKind::NotFound, &key("no"), storage.get_usage("no").await);
    fails_about(
        "reset of an empty storage",
        ErrorKind::NotFound,
        &key("no"),
        storage.reset_usage("no").await,
    );
    add(&storage, "there", "requests", 1).await;
    for name in
        ["no", "ther", "there:requests", "There", "t*", "there.json", "there/requests", "requests", "*"]
    {
        let (other, get, reset) = (key(name), storage.get_usage(name).await, storage.reset_usage(name).await);
        fails_about(format!("get of {name:?} beside \"there\""), ErrorKind::NotFound, &other, get);
        fails_about(format!("reset of {name:?} beside \"there\""), ErrorKind::NotFound, &other, reset);
    }
    same("optional() of a missing record", None, ok("optional", storage.get_usage("no").await.optional()));
    ok("reset", storage.reset_usage("there").await);
    fails_about("get after reset", ErrorKind::NotFound, &key("there"), storage.get_usage("there").await);
    fails_about("reset after reset", ErrorKind::NotFound, &key("there"), storage.reset_usage("there").await);
}

async fn resets<B: UsageStore>(storage: Storage<B>) {
    for field in ["x", "y", "z"] {
        add(&storage, "gone", field, 7).await;
        add(&storage, "stays", field, 7).await;
    }
    ok("reset", storage.reset_usage("gone").await);
    same("keys", vec!["stays"], ok("list", storage.list_usage().await).keys().map(Key::as_str).collect());
    same("the other record", record([("x", 7), ("y", 7), ("z", 7)]), get(&storage, "stays").await);
    same("total after reset", 1, add(&storage, "gone", "y", 1).await);
    same("record after reset", record([("y", 1)]), get(&storage, "gone").await);
    clear(&storage).await;
}

async fn keys<B: UsageStore>(storage: Storage<B>) {
    let keys = hostile_keys(storage.backend().max_key_bytes());
    let mut expected: BTreeMap<Key, UsageRecord> = BTreeMap::new();
    for (at, key) in (1..).zip(&keys) {
        // Each key as a record, and as a field of two records whose keys could run together with a field's
        // name.
        for (record, field) in [(key, &super::key("f")), (&super::key("a"), key), (&super::key("a:b"), key)] {
            let total = storage.increment_usage(record, field, at).await;
            let total = ok(format!("increment of {:?} {:?}", record.as_str(), field.as_str()), total);
            let counters = expected.entry(record.clone()).or_default();
            let count = counters.get(field.as_str()).unwrap_or(0) + at;
            counters.set(field.clone(), count);
            same(format!("total of {:?} {:?}", record.as_str(), field.as_str()), count, total);
        }
    }
    same_records("all records", &expected, &ok("list_usage", storage.list_usage().await));
    for (key, record) in &expected {
        same(format!("record {:?}", key.as_str()), record, &ok("get_usage", storage.get_usage(key).await));
    }
    for key in keys.iter().step_by(2) {
        ok(format!("reset of {:?}", key.as_str()), storage.reset_usage(key).await);
        expected.remove(key);
    }
    same(
        "all records after every second one is reset",
        &expected,
        &ok("list_usage", storage.list_usage().await),
    );
    clear(&storage).await;
}

async fn lists<B: UsageStore>(storage: Storage<B>) {
    let keys: Vec<Key> = (0..120).rev().map(|n| key(&format!("key {n}"))).collect();
    let increments: Vec<Increment> = keys
        .iter()
        .zip(0..)
        .flat_map(|(at, n)| [Increment::new(at, &key("n"), n), Increment::new(at, &key("-n"), -n)])
        .collect();
    counted("increment_many", increments.len(), storage.increment_many(&increments).await);
    let expected = keys.iter().cloned().zip((0..).map(|n| record([("n", n), ("-n", -n)]))).collect();
    let found = ok("list_usage", storage.list_usage().await);
    same_keys("keys", &sorted(keys), found.keys().cloned());
    same_records("records", &expected, &found);
    clear(&storage).await;
}

async fn counts<B: UsageStore>(storage: Storage<B>) {
    for (key, n) in numbered("sk-secret-", 4).iter().zip(1..) {
        for field in ["x", "y"] {
            ok("increment_usage", storage.increment_usage(key, field, n).await);
        }
        let stats = ok("stats", storage.stats().await);
        same("the number of records", n, i64::try_from(stats.usage_record_count).expect("there are few"));
        assert!(!format!("{stats:?} {}", json!(stats)).contains("sk-secret"), "stats show a key");
    }
    clear(&storage).await;
    same("the number of records", 0, ok("stats", storage.stats().await).usage_record_count);
}

async fn many<B: UsageStore>(storage: Storage<B>) {
    add(&storage, "a", "x", 100).await;
    let steps = [("a", "x", 1), ("b", "x", 5), ("a", "y", -1), ("a", "x", 10), ("b", "x", -7), ("c", "x", 0)];
    let increments = steps.map(|(record, field, delta)| Increment::new(&key(record), &key(field), delta));
    let totals = counted("increment_many", increments.len(), storage.increment_many(&increments).await);
    same("the total of each", vec![101, 5, -1, 111, -2, 0], totals);
    same("a", record([("x", 111), ("y", -1)]), get(&storage, "a").await);
    same("b", record([("x", -2)]), get(&storage, "b").await);
    same("c", record([("x", 0)]), get(&storage, "c").await);
    clear(&storage).await;
}

async fn many_overflow<B: UsageStore>(storage: Storage<B>) {
    add(&storage, "top", "x", i64::MAX - 1).await;
    add(&storage, "bottom", "x", i64::MIN).await;
    let steps = [
        ("before", 1),
        ("top", 2),
        ("top", 1),
        ("top", 1),
        ("bottom", -1),
        ("between", 1),
        ("bottom", 1),
        ("bottom", -2),
        ("top", -5),
        ("top", i64::MAX),
        ("after", 1),
        ("new", i64::MAX),
        ("new", 1),
        ("new", -1),
    ];
    let increments = steps.map(|(record, delta)| Increment::new(&key(record), &key("x"), delta));
    let report = ok("increment_many", storage.increment_many(&increments).await);
    let failed = [1, 3, 4, 7, 9, 12].map(|at: usize| (at, &increments[at].key));
    same_failures("increment_many", ErrorKind::Overflow, &failed, &report.failures);
    let totals = [
        Some(1),
        None,
        Some(i64::MAX),
        None,
        None,
        Some(1),
        Some(i64::MIN + 1),
        None,
        Some(i64::MAX - 5),
        None,
        Some(1),
        Some(i64::MAX),
        None,
        Some(i64::MAX - 1),
    ];
    same("the totals", totals.to_vec(), report.totals);
    let counts = [
        ("before", 1),
        ("top", i64::MAX - 5),
        ("bottom", i64::MIN + 1),
        ("between", 1),
        ("after", 1),
        ("new", i64::MAX - 1),
    ];
    for (key, count) in counts {
        same(key, record([("x", count)]), get(&storage, key).await);
    }
    clear(&storage).await;
}

async fn sizes<B: UsageStore>(storage: Storage<B>) {
    counted("increment_many", 0, storage.increment_many::<Increment>(&[]).await);
    is_empty(storage.clone()).await;
    let (keys, field) = (numbered("many ", 250), key("x"));
    let increments: Vec<Increment> =
        keys.iter().cycle().take(1_000).zip(1..).map(|(key, n)| Increment::new(key, &field, n)).collect();
    counted("increment_many", increments.len(), storage.increment_many(&increments).await);
    let expected = keys.iter().cloned().zip((1..).map(|n| record([("x", 4 * n + 1_500)]))).collect();
    same_records("records", &expected, &ok("list_usage", storage.list_usage().await));
    clear(&storage).await;
}

async fn own_totals<B: UsageStore>(storage: Storage<B>) {
    let totals = concurrently((0..8).map(|task| hot_batches(storage.clone(), task))).await;
    let mut totals = totals.concat();
    totals.sort_unstable();
    same("the totals that were returned, each once", (1..=8 * 4 * 6).collect(), totals);
    clear(&storage).await;
}

/// Counts one counter twice in each batch, beside others. Returns its totals.
async fn hot_batches<B: UsageStore>(storage: Storage<B>, task: i64) -> Vec<i64> {
    let other = key(&format!("other {task}"));
    let hot = || Increment::new(&key("hot"), &key("x"), 1);
    let batch =
        [hot(), Increment::new(&other, &key("x"), 1), hot(), Increment::new(&key("hot"), &key("y"), 5)];
    let mut totals = Vec::new();
    for round in 0..12 {
        let mut batch = batch.to_vec();
        batch.rotate_left(round % 4);
        let found = counted("increment_many", batch.len(), storage.increment_many(&batch).await);
        let of_hot = batch.iter().zip(found).filter(|(step, _)| **step == hot());
        let of_hot: Vec<i64> = of_hot.map(|(_, total)| total).collect();
        assert!(of_hot[0] < of_hot[1], "the totals of one counter are {of_hot:?}");
        totals.extend(of_hot);
    }
    totals
}

async fn counters<B: UsageStore>(storage: Storage<B>) {
    let get = async |key: &str, field: &str| ok("get_counter", storage.get_counter(key, field).await);
    same("of a missing record", 0, get("a", "x").await);
    add(&storage, "a", "x", -7).await;
    add(&storage, "a", "zero", 0).await;
    let found = [get("a", "x").await, get("a", "zero").await, get("a", "y").await, get("A", "x").await];
    same("the counters", [-7, 0, 0, 0], found);
    for key in hostile_keys(storage.backend().max_key_bytes()) {
        ok("increment_usage", storage.increment_usage("b", &key, 5).await);
        same("a counter of any name", 5, ok("get_counter", storage.get_counter("b", &key).await));
    }
    clear(&storage).await;
}

async fn gets<B: UsageStore>(storage: Storage<B>) {
    for (name, n) in [("b", 1), ("a", 2), ("d", 3), ("c", 4)] {
        add(&storage, name, "x", n).await;
        add(&storage, name, "-x", -n).await;
    }
    let keys = ["d", "no", "a", "no", "c", "A", "a"].map(key);
    let found = ok("get_usages", storage.get_usages(&keys).await);
    let both = |n| record([("x", n), ("-x", -n)]);
    same_records(
        "get_usages",
        &[("a", both(2)), ("c", both(4)), ("d", both(3))].map(|(name, of)| (key(name), of)).into(),
        &found.values,
    );
    let failed = [1, 3, 5].map(|at: usize| (at, &keys[at]));
    same_failures("get_usages", ErrorKind::NotFound, &failed, &found.failures);
    clear(&storage).await;
}

async fn many_gets<B: UsageStore>(storage: Storage<B>) {
    let found = ok("get_usages", storage.get_usages(Vec::<Key>::new()).await);
    same("found and failed", (0, 0), (found.values.len(), found.failures.len()));
    let keys = numbered("many ", MANY);
    Usage::put(&storage, &keys).await;
    let mixed = with_missing(&keys);
    let missing: Vec<(usize, &Key)> = mixed.iter().enumerate().step_by(10).collect();
    let found = ok("get_usages", storage.get_usages(&mixed).await);
    same_failures("get_usages", ErrorKind::NotFound, &missing, &found.failures);
    same("the number found", MANY - missing.len(), found.values.len());
    for (key, found) in &found.values {
        same("its record", &usage_of(key), found);
    }
    clear(&storage).await;
}

async fn prefixes<B: UsageStore>(storage: Storage<B>) {
    let keys = hostile_keys(storage.backend().max_key_bytes());
    for prefix in ["a", "a:", "*", "[1]", "%", "_", "\\", "'", "x", "no such key"].map(key) {
        Usage::put(&storage, &keys).await;
        let (gone, stay): (Vec<Key>, Vec<Key>) =
            keys.iter().cloned().partition(|key| key.as_str().starts_with(prefix.as_str()));
        let what = format!("the number of records with the prefix {:?}", prefix.as_str());
        same(what, gone.len() as u64, ok("reset", storage.reset_usage_prefix(&prefix).await));
        let what = format!("records after a reset of {:?}", prefix.as_str());
        same_keys(what, &sorted(stay), ok("list", storage.list_usage().await).into_keys());
        same("the number of records, again", 0, ok("reset", storage.reset_usage_prefix(&prefix).await));
    }
    same("the total after a reset", 1, add(&storage, keys[0].as_str(), "x", 1).await);
    clear(&storage).await;
}

async fn many_resets<B: UsageStore>(storage: Storage<B>) {
    let (gone, stay) = (numbered("2025-", MANY), numbered("2026-", 3));
    Usage::put(&storage, &gone).await;
    Usage::put(&storage, &stay).await;
    same("the number reset", gone.len() as u64, ok("reset", storage.reset_usage_prefix("2025-").await));
    same_keys("records that stay", &stay, ok("list", storage.list_usage().await).into_keys());
    let stats = ok("stats", storage.stats().await);
    same("the number of records", stay.len() as u64, stats.usage_record_count);
    same("the number reset", 3, ok("reset", storage.reset_usage_prefix("2026-").await));
}

struct Usage;

/// The record that [`Usage`] stores under a key.
fn usage_of(key: &Key) -> UsageRecord {
    record([("bytes", key.as_str().len() as i64), ("-bytes", -(key.as_str().len() as i64))])
}

impl<B: UsageStore> Streamed<B> for Usage {
    const NAME: &'static str = "usage";

    async fn put(storage: &Storage<B>, keys: &[Key]) {
        let old = ok("get_usages", storage.get_usages(keys).await).values;
        let new = keys.iter().filter(|key| !old.contains_key(*key));
        let increments: Vec<Increment> = new
            .flat_map(|key| usage_of(key).into_iter().map(|(field, n)| Increment::new(key, &field, n)))
            .collect();
        counted("increment_many", increments.len(), storage.increment_many(&increments).await);
    }

    async fn remove(storage: &Storage<B>, key: &Key) -> Result<()> {
        storage.reset_usage(key).await
    }

    async fn stream(storage: &Storage<B>, options: ListOptions) -> Result<Vec<(Key, bool)>> {
        let records: Vec<(Key, UsageRecord)> = storage.stream_usage(options).try_collect().await?;
        Ok(records.into_iter().map(|(key, found)| (key.clone(), usage_of(&key) == found)).collect())
    }
}

const STEPS: i64 = 16;

async fn exact<B: UsageStore>(storage: Storage<B>) {
    // A new counter, so that the tasks also race to create it.
    let totals = concurrently((0..TASKS).map(|_| steps(storage.clone(), 1))).await;
    let mut totals = totals.concat();
    totals.sort_unstable();
    let all = STEPS * TASKS as i64;
    same("the totals that were returned, each once", (1..=all).collect(), totals);
    same("the counter", Some(all), get(&storage, "hot").await.get("x"));

    let deltas = (0..TASKS as i64).map(|n| (n - 20) * 1_000_000_007);
    concurrently(deltas.clone().map(|delta| steps(storage.clone(), delta))).await;
    same("the counter", Some(all + STEPS * deltas.sum::<i64>()), get(&storage, "hot").await.get("x"));
    clear(&storage).await;
}

async fn steps<B: UsageStore>(storage: Storage<B>, delta: i64) -> Vec<i64> {
    let mut totals = Vec::new();
    for _ in 0..STEPS {
        totals.push(add(&storage, "hot", "x", delta).await);
        get(&storage, "hot").await;
    }
    totals
}

async fn to_the_limit<B: UsageStore>(storage: Storage<B>) {
    add(&storage, "hot", "x", i64::MAX - 10).await;
    let results = concurrently((0..TASKS).map(|_| one_step(storage.clone()))).await;
    let (fit, over): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    same("the number that succeed", 10, fit.len());
    for result in over {
        fails_about("an increment beyond i64", ErrorKind::Overflow, &key("hot"), result);
    }
    same("the counter", record([("x", i64::MAX)]), get(&storage, "hot").await);
    clear(&storage).await;
}

async fn one_step<B: UsageStore>(storage: Storage<B>) -> Result<i64> {
    storage.increment_usage("hot", "x", 1).await
}

async fn overlapping<B: UsageStore>(storage: Storage<B>) {
    let increments: Vec<Increment> =
        numbered("shared ", 50).iter().map(|key| Increment::new(key, &super::key("x"), 1)).collect();
    concurrently((0..8).map(|task| many_reordered(storage.clone(), increments.clone(), task))).await;
    let expected = increments.iter().map(|step| (step.key.clone(), record([("x", 8 * 5)]))).collect();
    same_records("records", &expected, &ok("list_usage", storage.list_usage().await));
    clear(&storage).await;
}

/// A different order for each task, half of them backwards: locks taken in these orders would deadlock.
async fn many_reordered<B: UsageStore>(storage: Storage<B>, mut increments: Vec<Increment>, task: usize) {
    increments.rotate_left(task * 7 % 50);
    if task % 2 == 1 {
        increments.reverse();
    }
    for _ in 0..4 {
        counted("increment_many", increments.len(), storage.increment_many(&increments).await);
    }
    for Increment { key, field, delta } in &increments {
        ok("increment_usage", storage.increment_usage(key, field, *delta).await);
    }
}

async fn concurrent_resets<B: UsageStore>(storage: Storage<B>) {
    add(&storage, "hot", "x", 1).await;
    let results = concurrently((0..TASKS).map(|_| reset(storage.clone()))).await;
    let (found, others): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    same("the number of resets that succeed", 1, found.len());
    for other in others {
        fails_about("reset after another reset", ErrorKind::NotFound, &key("hot"), other);
    }
}

async fn reset<B: UsageStore>(storage: Storage<B>) -> Result<()> {
    storage.reset_usage("hot").await
}

async fn dropped<B: UsageStore>(storage: Storage<B>) {
    let (mut done, mut open) = (0, 0);
    for round in 0..64 {
        match drop_after(round % 8, storage.increment_usage("hot", "x", 1)).await {
            Some(result) => {
                ok("increment_usage", result);
                done += 1;
            }
            None => open += 1,
        }
    }
    let mut total = add(&storage, "hot", "x", 0).await;
    // Waits until no dropped call is applied any more.
    let limit = WaitLimit::new();
    loop {
        settle().await;
        let before = std::mem::replace(&mut total, add(&storage, "hot", "x", 0).await);
        if total == before {
            break;
        }
        limit.pause("dropped calls never end").await;
    }
    assert!(
        (done..=done + open).contains(&total),
        "{done} ended and {open} were dropped, but the total is {total}"
    );
    same("total after dropped calls", total + 1, add(&storage, "hot", "x", 1).await);
    clear(&storage).await;
}

async fn deadline<B: UsageStore>(storage: Storage<B>) {
    let (mut done, mut unknown) = (0, 0);
    for micros in [0, 1, 10, 20, 50, 100, 200, 500, 1_000, 2_000] {
        let hasty = storage.with_deadline(Duration::from_micros(micros));
        match hasty.increment_usage("hot", "x", 1).await {
            Ok(_) => done += 1,
            Err(error) => {
                same("the error after the deadline", ErrorKind::Timeout, error.kind());
                unknown += i64::from(error.outcome() == Outcome::Unknown);
            }
        }
    }
    settle().await;
    let total = add(&storage, "hot", "x", 0).await;
    assert!(
        (done..=done + unknown).contains(&total),
        "{done} are Ok and {unknown} have an unknown outcome, but the total is {total}"
    );
    clear(&storage).await;
}
