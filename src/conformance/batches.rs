//! The contract of batches of credentials and of config values.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    complete, concurrently,
    documents::{Documents, clear},
    hostile_keys, identical, key, must, numbered, ok, same, same_failures, same_keys, sorted,
};
use crate::{Backend, BatchFailure, ErrorKind, Key, Storage};

/// The number of items in a large batch: more than one chunk of any backend.
pub(super) const MANY: usize = 1_200;

/// Asserts every bullet that the batches of both kinds have.
pub(super) async fn batches<D: Documents<B>, B: Backend>(storage: &Storage<B>) {
    let name = D::NAME;
    must(format!("get_{name}s: sorted by key, each missing key a failure"), gets::<D, B>(storage.clone()))
        .await;
    let bullet = format!("get_{name}s: a repeated key is found once, or fails each time");
    must(bullet, gets_twice::<D, B>(storage.clone())).await;
    must(format!("set_{name}s: equal to what was stored, under any key"), sets::<D, B>(storage.clone()))
        .await;
    let bullet = format!("set_{name}s: of several under one key the last stays, all succeed");
    must(bullet, sets_twice::<D, B>(storage.clone())).await;
    must("a batch of nothing does nothing", nothing::<D, B>(storage.clone())).await;
    must("a batch may be large", large::<D, B>(storage.clone())).await;
    must("concurrent batches over the same keys succeed", overlapping::<D, B>(storage.clone())).await;
}

pub(super) fn one_per_key(keys: &[Key]) -> Vec<(Key, Value)> {
    keys.iter().map(|key| (key.clone(), json!({ "key": key.as_str() }))).collect()
}

pub(super) async fn fill<D: Documents<B>, B: Backend>(storage: &Storage<B>, keys: &[Key]) {
    let items = one_per_key(keys);
    complete(format!("set_{}s", D::NAME), keys.len(), D::set_many(storage, items).await);
}

async fn get<D: Documents<B>, B: Backend>(
    storage: &Storage<B>,
    keys: &[Key],
) -> (BTreeMap<Key, Value>, Vec<BatchFailure>) {
    ok(format!("get_{}s", D::NAME), D::get_many(storage, keys).await)
}

async fn gets<D: Documents<B>, B: Backend>(storage: Storage<B>) {
    fill::<D, B>(&storage, &["b", "a", "d", "c"].map(key)).await;
    let keys = ["d", "no 2", "a", "no 1", "c", "A"].map(key);
    let (found, failures) = get::<D, B>(&storage, &keys).await;
    same("keys that are found", vec!["a", "c", "d"], found.keys().map(Key::as_str).collect());
    for (key, found) in &found {
        same("its value", &json!({ "key": key.as_str() }), found);
    }
    same_failures("the batch", ErrorKind::NotFound, &[1, 3, 5].map(|at| (at, &keys[at])), &failures);
    clear::<D, B>(&storage).await;
}

async fn gets_twice<D: Documents<B>, B: Backend>(storage: Storage<B>) {
    fill::<D, B>(&storage, &[key("a")]).await;
    let keys = ["no", "a", "no", "a", "a"].map(key);
    let (found, failures) = get::<D, B>(&storage, &keys).await;
    same("keys that are found", vec!["a"], found.keys().map(Key::as_str).collect());
    same_failures("the batch", ErrorKind::NotFound, &[0, 2].map(|at| (at, &keys[at])), &failures);
    clear::<D, B>(&storage).await;
}

async fn sets<D: Documents<B>, B: Backend>(storage: Storage<B>) {
    // Only small ones: they all go into one call, whose size a server may limit.
    let values = D::hostile_values().into_iter().filter(|value| value.to_string().len() < 1_000);
    let items: Vec<(Key, Value)> =
        hostile_keys(storage.backend().max_key_bytes()).into_iter().zip(values.cycle()).collect();
    complete("the batch", items.len(), D::set_many(&storage, items.clone()).await);
    let keys: Vec<Key> = items.iter().map(|(key, _)| key.clone()).collect();
    same_keys("keys", &sorted(keys.clone()), ok("list", D::list(&storage).await));
    let (found, failures) = get::<D, B>(&storage, &keys).await;
    same_failures("the batch", ErrorKind::NotFound, &[], &failures);
    for (key, stored) in &items {
        let one = ok("get", D::get(&storage, key).await);
        for found in [&one, &found[key]] {
            assert!(identical(stored, found), "{:?}: {stored} became {found}", key.as_str());
        }
    }
    clear::<D, B>(&storage).await;
}

async fn sets_twice<D: Documents<B>, B: Backend>(storage: Storage<B>) {
    let numbers = [("a", 1), ("b", 2), ("a", 3), ("b", 4), ("a", 5)];
    let items = numbers.map(|(name, n)| (key(name), json!({ (format!("n{n}")): n })));
    complete("the batch", items.len(), D::set_many(&storage, items.to_vec()).await);
    same("the last value of a", &items[4].1, &ok("get", D::get(&storage, &key("a")).await));
    same("the last value of b", &items[3].1, &ok("get", D::get(&storage, &key("b")).await));
    clear::<D, B>(&storage).await;
}

async fn nothing<D: Documents<B>, B: Backend>(storage: Storage<B>) {
    complete("the batch", 0, D::set_many(&storage, Vec::new()).await);
    let (found, failures) = get::<D, B>(&storage, &[]).await;
    same("found and failed", (0, 0), (found.len(), failures.len()));
    same_keys("keys", &[], ok("list", D::list(&storage).await));
}

async fn large<D: Documents<B>, B: Backend>(storage: Storage<B>) {
    let keys = numbered("many ", MANY);
    fill::<D, B>(&storage, &keys).await;
    same_keys("keys", &keys, ok("list", D::list(&storage).await));
    // Every tenth key is missing, so that an index within a chunk can't pass for the index within the batch.
    let mixed = with_missing(&keys);
    let missing: Vec<(usize, &Key)> = mixed.iter().enumerate().step_by(10).collect();
    let (found, failures) = get::<D, B>(&storage, &mixed).await;
    same_failures("the batch", ErrorKind::NotFound, &missing, &failures);
    same("the number found", MANY - missing.len(), found.len());
    for (key, found) in &found {
        same("its value", &json!({ "key": key.as_str() }), found);
    }
    clear::<D, B>(&storage).await;
}

/// The keys, but every tenth one is another.
pub(super) fn with_missing(keys: &[Key]) -> Vec<Key> {
    let keys = keys.iter().enumerate();
    keys.map(|(n, one)| if n % 10 == 0 { key(&format!("no {n}")) } else { one.clone() }).collect()
}

async fn overlapping<D: Documents<B>, B: Backend>(storage: Storage<B>) {
    let keys = numbered("shared ", 50);
    concurrently((0..8).map(|task| set_reordered::<D, B>(storage.clone(), reordered(keys.clone(), task))))
        .await;
    same_keys("keys", &keys, ok("list", D::list(&storage).await));
    clear::<D, B>(&storage).await;
}

async fn set_reordered<D: Documents<B>, B: Backend>(storage: Storage<B>, keys: Vec<Key>) {
    for _ in 0..4 {
        fill::<D, B>(&storage, &keys).await;
    }
}

/// A different order for each task, half of them backwards: locks taken in these orders would deadlock.
pub(super) fn reordered(mut keys: Vec<Key>, task: usize) -> Vec<Key> {
    keys.rotate_left(task * 7 % 50);
    if task % 2 == 1 {
        keys.reverse();
    }
    keys
}
