//! The contract that credentials and config values share: JSON documents by key.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use super::{
    CANARY, TASKS, WaitLimit, concurrently, difference, drop_after, fails_about, hostile_keys, identical,
    key, must, numbered, ok, same, same_keys, settle, shares, sorted,
};
use crate::{
    Backend, BatchFailure, BatchReport, ErrorKind, Key, OptionalExt, Outcome, Result, Storage, StorageStats,
};

/// One kind of document.
pub(super) trait Documents<B: Backend>: 'static {
    /// The kind, as operations name it.
    const NAME: &'static str;

    fn get(storage: &Storage<B>, key: &Key) -> impl Future<Output = Result<Value>> + Send;
    fn set(storage: &Storage<B>, key: &Key, value: Value) -> impl Future<Output = Result<()>> + Send;
    fn delete(storage: &Storage<B>, key: &Key) -> impl Future<Output = Result<()>> + Send;
    fn get_many(
        storage: &Storage<B>,
        keys: &[Key],
    ) -> impl Future<Output = Result<(BTreeMap<Key, Value>, Vec<BatchFailure>)>> + Send;
    fn set_many(
        storage: &Storage<B>,
        items: Vec<(Key, Value)>,
    ) -> impl Future<Output = Result<BatchReport>> + Send;
    fn list(storage: &Storage<B>) -> impl Future<Output = Result<Vec<Key>>> + Send;
    fn count(stats: &StorageStats) -> u64;
    fn hostile_values() -> Vec<Value>;
}

/// Asserts every bullet that both kinds have.
pub(super) async fn documents<D: Documents<B>, B: Backend>(storage: &Storage<B>) {
    let name = D::NAME;
    must(format!("the kit needs a storage without {name}s"), is_empty::<D, B>(storage.clone())).await;
    must(format!("get_{name}, delete_{name}: NotFound if there is none"), missing::<D, B>(storage.clone()))
        .await;
    must(format!("get_{name}: equal to what was stored"), equal::<D, B>(storage.clone())).await;
    must(format!("set_{name}: in place of any other"), replaces::<D, B>(storage.clone())).await;
    must(format!("delete_{name}: for good"), deletes::<D, B>(storage.clone())).await;
    must("a key is never interpreted", keys::<D, B>(storage.clone())).await;
    must(format!("list_{name}s: all keys, sorted by their bytes"), lists::<D, B>(storage.clone())).await;
    must(format!("stats: counts what is stored ({name}s), no keys"), counts::<D, B>(storage.clone())).await;
    let bullet = format!("set_{name}: of concurrent calls one value stays, whole");
    must(bullet, concurrent_sets::<D, B>(storage.clone())).await;
    must(format!("set_{name}: concurrently, none is lost"), none_is_lost::<D, B>(storage.clone())).await;
    let bullet = format!("delete_{name}: of concurrent calls one succeeds");
    must(bullet, concurrent_deletes::<D, B>(storage.clone())).await;
    must("a dropped call is applied as a whole or not at all", dropped::<D, B>(storage.clone())).await;
    must("a call ends within its deadline, and reports its outcome", deadline::<D, B>(storage.clone())).await;
    must("the kit leaves nothing", is_empty::<D, B>(storage.clone())).await;
}

async fn is_empty<D: Documents<B>, B: Backend>(storage: Storage<B>) {
    let keys = ok("list", D::list(&storage).await);
    assert!(keys.is_empty(), "it has {} records", keys.len());
}

pub(super) async fn clear<D: Documents<B>, B: Backend>(storage: &Storage<B>) {
    let keys = ok("list", D::list(storage).await);
    concurrently(shares(&keys).map(|keys| delete_each::<D, B>(storage.clone(), keys))).await;
}

async fn delete_each<D: Documents<B>, B: Backend>(storage: Storage<B>, keys: Vec<Key>) {
    for key in keys {
        ok("delete of a listed key", D::delete(&storage, &key).await);
    }
}

#[track_caller]
fn assert_identical(what: &str, wanted: &Value, found: &Value) {
    assert!(identical(wanted, found), "{what}: {}", difference(&wanted.to_string(), &found.to_string()));
}

async fn missing<D: Documents<B>, B: Backend>(storage: Storage<B>) {
    let (there, nowhere) = (key("there"), key(CANARY[0]));
    fails_about("get from an empty storage", ErrorKind::NotFound, &nowhere, D::get(&storage, &nowhere).await);
    fails_about(
        "delete from an empty storage",
        ErrorKind::NotFound,
        &nowhere,
        D::delete(&storage, &nowhere).await,
    );
    ok("set", D::set(&storage, &there, json!({})).await);
    for name in ["nowhere", "ther", "there.", "There", "t*", "there.json", "there/", "*"] {
        let other = key(name);
        let (get, delete) = (D::get(&storage, &other).await, D::delete(&storage, &other).await);
        fails_about(format!("get of {name:?} beside \"there\""), ErrorKind::NotFound, &other, get);
        fails_about(format!("delete of {name:?} beside \"there\""), ErrorKind::NotFound, &other, delete);
    }
    same(
        "optional() of a missing record",
        true,
        ok("optional", D::get(&storage, &nowhere).await.optional()).is_none(),
    );
    same(
        "optional() of a stored record",
        true,
        ok("optional", D::get(&storage, &there).await.optional()).is_some(),
    );
    ok("delete", D::delete(&storage, &there).await);
    fails_about("get after delete", ErrorKind::NotFound, &there, D::get(&storage, &there).await);
    fails_about("delete after delete", ErrorKind::NotFound, &there, D::delete(&storage, &there).await);
}

async fn equal<D: Documents<B>, B: Backend>(storage: Storage<B>) {
    let values = D::hostile_values();
    let keys = numbered("value ", values.len());
    for (key, value) in keys.iter().zip(&values) {
        ok("set", D::set(&storage, key, value.clone()).await);
        assert_identical("right after set", value, &ok("get", D::get(&storage, key).await));
    }
    for (key, value) in keys.iter().zip(&values) {
        assert_identical("after all are set", value, &ok("get", D::get(&storage, key).await));
    }
    clear::<D, B>(&storage).await;
}

async fn replaces<D: Documents<B>, B: Backend>(storage: Storage<B>) {
    let key = key("replaced");
    let values = [
        json!({ "a": 1, "b": { "c": [1, 2, 3] } }),
        json!({ "b": { "d": 2 } }),
        json!({}),
        json!({ "a": 0.0 }),
        json!({ "a": -0.0 }),
    ];
    for value in &values {
        ok("set", D::set(&storage, &key, value.clone()).await);
        assert_identical("after it is replaced", value, &ok("get", D::get(&storage, &key).await));
        same_keys("keys", std::slice::from_ref(&key), ok("list", D::list(&storage).await));
    }
    clear::<D, B>(&storage).await;
}

async fn deletes<D: Documents<B>, B: Backend>(storage: Storage<B>) {
    let (gone, stays) = (key("gone"), key("stays"));
    ok("set", D::set(&storage, &gone, json!({ "old": 1 })).await);
    ok("set", D::set(&storage, &stays, json!({ "stays": 1 })).await);
    ok("delete", D::delete(&storage, &gone).await);
    same_keys("keys after delete", std::slice::from_ref(&stays), ok("list", D::list(&storage).await));
    assert_identical("the other record", &json!({ "stays": 1 }), &ok("get", D::get(&storage, &stays).await));
    ok("set after delete", D::set(&storage, &gone, json!({ "new": 1 })).await);
    assert_identical("set after delete", &json!({ "new": 1 }), &ok("get", D::get(&storage, &gone).await));
    clear::<D, B>(&storage).await;
}

async fn keys<D: Documents<B>, B: Backend>(storage: Storage<B>) {
    let keys = hostile_keys(storage.backend().max_key_bytes());
    let value = |key: &Key| json!({ "stored under": key.as_str() });
    for key in &keys {
        ok(format!("set of {key:?} {:?}", key.as_str()), D::set(&storage, key, value(key)).await);
    }
    same_keys("keys", &sorted(keys.clone()), ok("list", D::list(&storage).await));
    for key in &keys {
        let found = ok(format!("get of {:?}", key.as_str()), D::get(&storage, key).await);
        assert_identical(&format!("under {:?}", key.as_str()), &value(key), &found);
    }
    // Deletes every second key: a key that is stored as the same record as its neighbour deletes it, too.
    let (gone, stay): (Vec<_>, Vec<_>) = keys.into_iter().enumerate().partition(|(at, _)| at % 2 == 0);
    for (_, key) in &gone {
        ok(format!("delete of {:?}", key.as_str()), D::delete(&storage, key).await);
    }
    let stay: Vec<Key> = stay.into_iter().map(|(_, key)| key).collect();
    same_keys("keys after every second one is deleted", &sorted(stay), ok("list", D::list(&storage).await));
    clear::<D, B>(&storage).await;
}

async fn lists<D: Documents<B>, B: Backend>(storage: Storage<B>) {
    // Set backwards and past 9 -> 10, so that the order is neither that of age nor that of numbers.
    let keys: Vec<Key> = (0..300).rev().map(|n| key(&format!("key {n}"))).collect();
    concurrently(keys.iter().cloned().map(|key| set_one::<D, B>(storage.clone(), key, json!({})))).await;
    same_keys("keys", &sorted(keys), ok("list", D::list(&storage).await));
    clear::<D, B>(&storage).await;
    same_keys("keys after all are deleted", &[], ok("list", D::list(&storage).await));
}

async fn set_one<D: Documents<B>, B: Backend>(storage: Storage<B>, key: Key, value: Value) {
    ok("set", D::set(&storage, &key, value).await);
}

async fn counts<D: Documents<B>, B: Backend>(storage: Storage<B>) {
    for (at, key) in numbered("sk-secret-key-", 5).iter().enumerate() {
        ok("set", D::set(&storage, key, json!({ "token": "sk-secret-value" })).await);
        ok("set again", D::set(&storage, key, json!({ "token": "sk-secret-value" })).await);
        let stats = ok("stats", storage.stats().await);
        same("count", at as u64 + 1, D::count(&stats));
        let shown = format!("{stats:?} {}", json!(stats));
        assert!(!shown.contains("sk-secret"), "stats show a key or a value");
    }
    clear::<D, B>(&storage).await;
    same("count of nothing", 0, D::count(&ok("stats", storage.stats().await)));
}

/// A value whose parts all name its writer, so that a mix of two is found.
fn whole(writer: usize) -> Value {
    json!({ "first": writer, "filler": "x".repeat(2_000), "list": vec![writer; 50], "last": writer })
}

#[track_caller]
fn assert_whole(found: &Value, writers: usize) {
    let writer = found["first"]
        .as_u64()
        .and_then(|writer| usize::try_from(writer).ok())
        .filter(|&writer| writer < writers);
    let writer = writer.unwrap_or_else(|| panic!("the value was stored by no writer"));
    assert_identical("a mix of two writes", &whole(writer), found);
}

async fn concurrent_sets<D: Documents<B>, B: Backend>(storage: Storage<B>) {
    let hot = key("hot");
    ok("set", D::set(&storage, &hot, whole(0)).await);
    concurrently((0..TASKS).map(|writer| set_and_read::<D, B>(storage.clone(), hot.clone(), writer))).await;
    assert_whole(&ok("get", D::get(&storage, &hot).await), TASKS);
    same_keys("keys", &[hot], ok("list", D::list(&storage).await));
    clear::<D, B>(&storage).await;
}

async fn set_and_read<D: Documents<B>, B: Backend>(storage: Storage<B>, key: Key, writer: usize) {
    for _ in 0..4 {
        ok("set", D::set(&storage, &key, whole(writer)).await);
        assert_whole(&ok("get while others set", D::get(&storage, &key).await), TASKS);
    }
}

async fn none_is_lost<D: Documents<B>, B: Backend>(storage: Storage<B>) {
    let keys = numbered("mine ", TASKS * 4);
    concurrently(keys.chunks(4).map(|own| set_and_delete::<D, B>(storage.clone(), own.to_vec()))).await;
    let stay: Vec<Key> = keys.chunks(4).flat_map(|own| own[..3].to_vec()).collect();
    same_keys("keys", &stay, ok("list", D::list(&storage).await));
    for key in &stay {
        let found = ok("get", D::get(&storage, key).await);
        assert_identical("its own", &json!({ "key": key.as_str() }), &found);
    }
    clear::<D, B>(&storage).await;
}

async fn set_and_delete<D: Documents<B>, B: Backend>(storage: Storage<B>, own: Vec<Key>) {
    for key in &own {
        ok("set", D::set(&storage, key, json!({ "key": key.as_str() })).await);
        let found = ok("get of its own", D::get(&storage, key).await);
        assert_identical("its own", &json!({ "key": key.as_str() }), &found);
    }
    ok("delete", D::delete(&storage, &own[3]).await);
}

async fn concurrent_deletes<D: Documents<B>, B: Backend>(storage: Storage<B>) {
    let hot = key("hot");
    ok("set", D::set(&storage, &hot, json!({})).await);
    let results = concurrently((0..TASKS).map(|_| delete_one::<D, B>(storage.clone(), hot.clone()))).await;
    let (found, others): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    same("the number of deletes that succeed", 1, found.len());
    for other in others {
        fails_about("delete after another delete", ErrorKind::NotFound, &hot, other);
    }
}

async fn delete_one<D: Documents<B>, B: Backend>(storage: Storage<B>, key: Key) -> Result<()> {
    D::delete(&storage, &key).await
}

async fn dropped<D: Documents<B>, B: Backend>(storage: Storage<B>) {
    let hot = key("hot");
    ok("set", D::set(&storage, &hot, whole(0)).await);
    for round in 1..32 {
        if let Some(result) = drop_after(round % 8, D::set(&storage, &hot, whole(round as usize))).await {
            ok("set", result);
        }
        drop(drop_after(round % 5, D::list(&storage)).await);
        assert_whole(&ok("get after a dropped call", D::get(&storage, &hot).await), 32);
    }
    // The dropped calls end, and a value that is set afterwards stays.
    let limit = WaitLimit::new();
    loop {
        ok("set after dropped calls", D::set(&storage, &hot, whole(0)).await);
        settle().await;
        if identical(&whole(0), &ok("get", D::get(&storage, &hot).await)) {
            break;
        }
        limit.pause("a value that is set after dropped calls does not stay").await;
    }
    clear::<D, B>(&storage).await;
}

async fn deadline<D: Documents<B>, B: Backend>(storage: Storage<B>) {
    for micros in [0, 1, 20, 100, 500, 2_000] {
        let (hasty, hot) =
            (storage.with_deadline(Duration::from_micros(micros)), key(&format!("after {micros} us")));
        ok("set with the old deadline", D::set(&storage, &hot, whole(0)).await);
        let result = D::set(&hasty, &hot, whole(1)).await;
        let found = ok("get on the other handle, which has a longer deadline", D::get(&storage, &hot).await);
        match result {
            Ok(()) => assert_identical("after Ok", &whole(1), &found),
            Err(error) => {
                same("the error after the deadline", ErrorKind::Timeout, error.kind());
                match error.outcome() {
                    Outcome::NotApplied => assert_identical("not applied", &whole(0), &found),
                    Outcome::Unknown => assert_whole(&found, 2),
                }
            }
        }
        if let Err(error) = D::get(&hasty, &hot).await {
            same("the error after the deadline", ErrorKind::Timeout, error.kind());
        }
    }
    settle().await;
    clear::<D, B>(&storage).await;
}
