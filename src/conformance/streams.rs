//! The contract of streams: of credentials, of config values and of usage records.

use std::ops::Range;

use tokio::task::yield_now;

use super::{concurrently, hostile_keys, key, must, numbered, ok, same, same_keys, shares, sorted};
use crate::{Backend, Key, Result, Storage, model::ListOptions};

/// One kind of record.
pub(super) trait Streamed<B: Backend>: 'static {
    /// The kind, as operations name it.
    const NAME: &'static str;

    /// Stores a record for each key, from which the key can be told.
    fn put(storage: &Storage<B>, keys: &[Key]) -> impl Future<Output = ()> + Send;
    fn remove(storage: &Storage<B>, key: &Key) -> impl Future<Output = Result<()>> + Send;

    /// The keys of the stream, and whether each record is the one that [`put`](Self::put) stores.
    fn stream(
        storage: &Storage<B>,
        options: ListOptions,
    ) -> impl Future<Output = Result<Vec<(Key, bool)>>> + Send;
}

/// Asserts every bullet of streams.
pub(super) async fn streams<S: Streamed<B>, B: Backend>(storage: &Storage<B>) {
    let name = S::NAME;
    let bullet = format!("stream_{name}: all records with their keys, sorted by their bytes");
    must(bullet, all::<S, B>(storage.clone())).await;
    must(format!("stream_{name}: those with a prefix"), prefixes::<S, B>(storage.clone())).await;
    must(format!("stream_{name}: those after a key, up to a limit"), parts::<S, B>(storage.clone())).await;
    must(format!("stream_{name}: of nothing, and of many"), sizes::<S, B>(storage.clone())).await;
    let bullet = format!("stream_{name}: a record that is there all the time is returned once");
    must(bullet, meanwhile::<S, B>(storage.clone())).await;
}

async fn stream<S: Streamed<B>, B: Backend>(storage: &Storage<B>, options: &ListOptions) -> Vec<Key> {
    let found = some_of::<S, B>(storage, options).await;
    let whole = found.into_iter().map(|(key, is_whole)| {
        assert!(is_whole, "the record of {:?} is not the one that was stored", key.as_str());
        key
    });
    whole.collect()
}

/// A stream in which a record that is being made may be incomplete.
async fn some_of<S: Streamed<B>, B: Backend>(
    storage: &Storage<B>,
    options: &ListOptions,
) -> Vec<(Key, bool)> {
    ok(format!("stream_{}", S::NAME), S::stream(storage, options.clone()).await)
}

pub(super) async fn remove<S: Streamed<B>, B: Backend>(storage: &Storage<B>, keys: &[Key]) {
    concurrently(shares(keys).map(|keys| remove_each::<S, B>(storage.clone(), keys))).await;
}

async fn remove_each<S: Streamed<B>, B: Backend>(storage: Storage<B>, keys: Vec<Key>) {
    for key in keys {
        ok("the end of a record", S::remove(&storage, &key).await);
    }
}

async fn all<S: Streamed<B>, B: Backend>(storage: Storage<B>) {
    let keys = hostile_keys(storage.backend().max_key_bytes());
    S::put(&storage, &keys).await;
    same_keys("keys", &sorted(keys.clone()), stream::<S, B>(&storage, &ListOptions::default()).await);
    remove::<S, B>(&storage, &keys).await;
}

async fn prefixes<S: Streamed<B>, B: Backend>(storage: Storage<B>) {
    let keys = sorted(hostile_keys(storage.backend().max_key_bytes()));
    S::put(&storage, &keys).await;
    let strange = ["\0", "\n", "a\0", "no such key", "\u{10ffff}", "[", "\\", "%", "_", "?", "a.", "A"];
    let long = "x".repeat(1_000);
    let all = keys.iter().map(Key::as_str).chain(strange).chain([long.as_str()]);
    for prefix in all {
        let wanted: Vec<Key> = keys.iter().filter(|key| key.as_str().starts_with(prefix)).cloned().collect();
        let found = stream::<S, B>(&storage, &ListOptions::default().with_prefix(prefix)).await;
        same_keys(format!("keys with the prefix {prefix:?}"), &wanted, found);
    }
    remove::<S, B>(&storage, &keys).await;
}

async fn parts<S: Streamed<B>, B: Backend>(storage: Storage<B>) {
    let keys = sorted([numbered("a/", 12), numbered("b/", 3), vec![key("a"), key("ab"), key("b")]].concat());
    S::put(&storage, &keys).await;
    for limit in [1, 2, 5, 7, 18, 19, usize::MAX] {
        for prefix in ["", "a/"] {
            let wanted: Vec<Key> =
                keys.iter().filter(|key| key.as_str().starts_with(prefix)).cloned().collect();
            let mut options = ListOptions::default().with_prefix(prefix).with_limit(limit);
            let mut found = Vec::new();
            loop {
                let page = stream::<S, B>(&storage, &options).await;
                let left = wanted.len() - found.len();
                same("the number of records on a page", left.min(limit), page.len());
                let Some(last) = page.last() else { break };
                options = options.with_after(last.clone());
                found.extend(page);
            }
            same_keys(format!("pages of {limit} with the prefix {prefix:?}"), &wanted, found);
        }
    }
    for (prefix, after, limit, wanted) in [
        ("", "a/00003x", 2, 5..7),
        ("a/", "a", 1, 1..2),
        ("a/", "b", 9, 0..0),
        ("b", "a/", 2, 14..16),
        ("", "z", 9, 0..0),
        ("", "0", 0, 0..0),
    ] {
        let wanted: Range<usize> = wanted;
        let options = ListOptions::default().with_prefix(prefix).with_after(key(after)).with_limit(limit);
        let what = format!("{limit} after {after:?} with the prefix {prefix:?}");
        same_keys(what, &keys[wanted], stream::<S, B>(&storage, &options).await);
    }
    remove::<S, B>(&storage, &keys).await;
}

async fn sizes<S: Streamed<B>, B: Backend>(storage: Storage<B>) {
    same_keys("keys of an empty storage", &[], stream::<S, B>(&storage, &ListOptions::default()).await);
    let keys = numbered("many ", 330);
    S::put(&storage, &keys).await;
    same_keys("keys", &keys, stream::<S, B>(&storage, &ListOptions::default()).await);
    let middle = ListOptions::default().with_after(keys[99].clone()).with_limit(201);
    same_keys("keys in the middle", &keys[100..301], stream::<S, B>(&storage, &middle).await);
    remove::<S, B>(&storage, &keys).await;
}

async fn meanwhile<S: Streamed<B>, B: Backend>(storage: Storage<B>) {
    let stay: Vec<Key> = numbered("stays ", 260);
    S::put(&storage, &stay).await;
    concurrently((0..4).map(|task| step::<S, B>(storage.clone(), stay.clone(), task))).await;
    remove::<S, B>(&storage, &stay).await;
}

/// Two tasks store and remove records between those that stay, and two read the stream.
async fn step<S: Streamed<B>, B: Backend>(storage: Storage<B>, stay: Vec<Key>, task: usize) {
    if task < 2 {
        let keys: Vec<Key> = (0..5).map(|n| key(&format!("stays 00{}0 {task}", n * 60 / 10))).collect();
        for round in 0..8 {
            S::put(&storage, &keys).await;
            // Uneven, so that a backend that never waits is read between any two steps, too.
            for _ in 0..1 + (round + task) % 3 {
                yield_now().await;
            }
            remove_each::<S, B>(storage.clone(), keys.clone()).await;
            yield_now().await;
        }
        return;
    }
    for _ in 0..4 {
        let page = some_of::<S, B>(&storage, &ListOptions::default().with_limit(200)).await;
        same("the number of records on a page", 200, page.len());
        let found = some_of::<S, B>(&storage, &ListOptions::default()).await;
        let kept = found.iter().filter(|(key, is_whole)| *is_whole && stay.contains(key));
        same_keys("keys that stay", &stay, kept.map(|(key, _)| key.clone()));
        let found: Vec<Key> = found.into_iter().map(|(key, _)| key).collect();
        same_keys("all keys", &sorted(found.clone()), found);
    }
}
