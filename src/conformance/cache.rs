//! The contract of [`CacheStore`].

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::{
    CANARY, TASKS,
    batches::{MANY, with_missing},
    complete, concurrently, drop_after, fails, fails_about, hostile_keys, key, must, numbered, ok, same,
    same_failures, same_keys, settle,
};
use crate::{CacheStore, ErrorKind, Key, MAX_CACHE_TTL, MAX_VALUE_BYTES, OptionalExt, Result, Storage};

/// A time to live that is longer than the kit runs.
const LONG: Duration = Duration::from_secs(600);

/// How long after its expiry a value may still be readable, since a server may be slow.
const LATE: Duration = Duration::from_secs(2);

/// Asserts the contract of [`CacheStore`].
///
/// A cache can't be listed, so only the kit's own keys are checked to be unused before and after.
///
/// # Panics
///
/// At the first violated bullet.
pub async fn cache<B: CacheStore>(storage: &Storage<B>) {
    must("get_cache, delete_cache: NotFound if there is none", missing(storage.clone())).await;
    must("get_cache: the bytes that were stored", equal(storage.clone())).await;
    must("set_cache: in place of any other", replaces(storage.clone())).await;
    must("a key is never interpreted", keys(storage.clone())).await;
    must("set_cache: over MAX_VALUE_BYTES is TooLarge", large(storage.clone())).await;
    must("set_cache: a ttl of zero or over MAX_CACHE_TTL is InvalidValue", limits(storage.clone())).await;
    must("get_cache: NotFound once it expired, and not before", expires(storage.clone())).await;
    must("set_cache_if_absent: stores what is missing, and nothing else", if_absent(storage.clone())).await;
    must("set_cache_if_absent: of concurrent calls one stores", concurrent_if_absent(storage.clone())).await;
    must("get_cache_many: sorted by key, each missing key a failure", gets(storage.clone())).await;
    must("set_cache_many: each value for its ttl, the last of a key stays", sets(storage.clone())).await;
    must("set_cache_many: an item that is too large stops no other", sets_too_large(storage.clone())).await;
    must("a batch may be empty or large", sizes(storage.clone())).await;
    must("get_cache_entry: the value, and at most its ttl", entry(storage.clone())).await;
    must("delete_cache: NotFound if it expired", deletes_expired(storage.clone())).await;
    must("set_cache: the last call sets the ttl", last_ttl(storage.clone())).await;
    must("set_cache: of concurrent calls one value stays, whole", concurrent_sets(storage.clone())).await;
    must("delete_cache: of concurrent calls one succeeds", concurrent_deletes(storage.clone())).await;
    must("a dropped call is applied as a whole or not at all", dropped(storage.clone())).await;
    must("a call ends within its deadline", deadline(storage.clone())).await;
}

async fn get<B: CacheStore>(storage: &Storage<B>, key: &str) -> Vec<u8> {
    ok("get_cache", storage.get_cache(key).await)
}

async fn set<B: CacheStore>(storage: &Storage<B>, key: &str, value: impl AsRef<[u8]> + Send, ttl: Duration) {
    ok("set_cache", storage.set_cache(key, value.as_ref(), ttl).await);
}

async fn delete<B: CacheStore>(storage: &Storage<B>, key: &str) {
    ok("delete_cache", storage.delete_cache(key).await);
}

async fn missing<B: CacheStore>(storage: Storage<B>) {
    fails_about(
        "get from an empty cache",
        ErrorKind::NotFound,
        &key("there"),
        storage.get_cache("there").await,
    );
    fails_about(
        "delete from an empty cache",
        ErrorKind::NotFound,
        &key("there"),
        storage.delete_cache("there").await,
    );
    set(&storage, "there", "", LONG).await;
    for name in ["no", "ther", "There", "t*", "there:", "*"] {
        let (other, get, delete) =
            (key(name), storage.get_cache(name).await, storage.delete_cache(name).await);
        fails_about(format!("get of {name:?} beside \"there\""), ErrorKind::NotFound, &other, get);
        fails_about(format!("delete of {name:?} beside \"there\""), ErrorKind::NotFound, &other, delete);
    }
    same("optional() of a missing value", None, ok("optional", storage.get_cache("no").await.optional()));
    delete(&storage, "there").await;
    fails_about("get after delete", ErrorKind::NotFound, &key("there"), storage.get_cache("there").await);
    fails_about(
        "delete after delete",
        ErrorKind::NotFound,
        &key("there"),
        storage.delete_cache("there").await,
    );
}

async fn equal<B: CacheStore>(storage: Storage<B>) {
    let every_byte: Vec<u8> = (0..=255).cycle().take(1_000).collect();
    let values: [&[u8]; 9] = [
        CANARY[0].as_bytes(),
        b"",
        b"\0",
        b"\xff\xfe\x00",
        b"{\"a\":1}",
        b"123",
        b"line\r\nline\n",
        "团队".as_bytes(),
        &every_byte,
    ];
    for value in values {
        set(&storage, "bytes", value, LONG).await;
        same("the bytes", value, &*get(&storage, "bytes").await);
    }
    delete(&storage, "bytes").await;
}

async fn replaces<B: CacheStore>(storage: Storage<B>) {
    for value in ["a long value", "short", ""] {
        set(&storage, "replaced", value, LONG).await;
        same("the bytes", value.as_bytes(), &*get(&storage, "replaced").await);
    }
    delete(&storage, "replaced").await;
}

async fn keys<B: CacheStore>(storage: Storage<B>) {
    let keys = hostile_keys(storage.backend().max_key_bytes());
    for key in &keys {
        let set = storage.set_cache(key, key.as_str(), LONG).await;
        ok(format!("set of {:?}", key.as_str()), set);
    }
    for (at, key) in keys.iter().enumerate() {
        let found = ok(format!("get of {:?}", key.as_str()), storage.get_cache(key).await);
        same("the bytes", key.as_str().as_bytes(), &*found);
        if at % 2 == 0 {
            ok(format!("delete of {:?}", key.as_str()), storage.delete_cache(key).await);
        }
    }
    for (at, key) in keys.iter().enumerate() {
        let found = ok("get", storage.get_cache(key).await.optional());
        same(format!("{:?} is stored", key.as_str()), at % 2 == 1, found.is_some());
        if found.is_some() {
            ok("delete", storage.delete_cache(key).await);
        }
    }
}

async fn large<B: CacheStore>(storage: Storage<B>) {
    let largest: Vec<u8> = (0..=250).cycle().take(MAX_VALUE_BYTES).collect();
    set(&storage, "large", &largest, LONG).await;
    assert!(get(&storage, "large").await == largest, "1 MiB came back changed");
    let over = vec![0; MAX_VALUE_BYTES + 1];
    fails("one byte more", ErrorKind::TooLarge, storage.set_cache("large", &over, LONG).await);
    assert!(get(&storage, "large").await == largest, "the refused value changed the one before");
    fails("one byte more", ErrorKind::TooLarge, storage.set_cache("new", &over, LONG).await);
    fails_about("get of a refused value", ErrorKind::NotFound, &key("new"), storage.get_cache("new").await);
    delete(&storage, "large").await;
}

async fn limits<B: CacheStore>(storage: Storage<B>) {
    set(&storage, "limits", "before", LONG).await;
    for ttl in [Duration::ZERO, MAX_CACHE_TTL + Duration::from_nanos(1), Duration::MAX] {
        let set = storage.set_cache("limits", "refused", ttl).await;
        fails(format!("a ttl of {ttl:?}"), ErrorKind::InvalidValue, set);
        same("the value before", "before".as_bytes(), &*get(&storage, "limits").await);
    }
    set(&storage, "limits", "longest", MAX_CACHE_TTL).await;
    same("the value with the longest ttl", "longest".as_bytes(), &*get(&storage, "limits").await);
    // A fraction of a millisecond is rounded up to one: it is neither an error nor without expiry.
    set(&storage, "limits", "shortest", Duration::from_nanos(1)).await;
    gone(&storage, "limits", Instant::now()).await;
}

/// Waits until a value that expires at `due` is gone.
async fn gone<B: CacheStore>(storage: &Storage<B>, key: &str, due: Instant) {
    while ok("get_cache", storage.get_cache(key).await.optional()).is_some() {
        assert!(due.elapsed() < LATE, "it is still readable {:?} after it expired", due.elapsed());
        sleep(Duration::from_millis(2)).await;
    }
}

async fn expires<B: CacheStore>(storage: Storage<B>) {
    for ttl in [50, 300].map(Duration::from_millis) {
        // Measured from before the call, so that a slow call can't make the value look younger than it is.
        let start = Instant::now();
        set(&storage, "expires", "x", ttl).await;
        while ok("get_cache", storage.get_cache("expires").await.optional()).is_some() {
            assert!(
                start.elapsed() < ttl + LATE,
                "it is still readable {:?} after it was set with a ttl of {ttl:?}",
                start.elapsed()
            );
            sleep(Duration::from_millis(2)).await;
        }
        assert!(start.elapsed() >= ttl, "it is gone after {:?} of a ttl of {ttl:?}", start.elapsed());
    }
    let start = Instant::now();
    set(&storage, "expires", "x", Duration::from_secs(60)).await;
    sleep(Duration::from_millis(120)).await;
    assert!(start.elapsed() > Duration::from_secs(60) || get(&storage, "expires").await == b"x");
    delete(&storage, "expires").await;
}

async fn if_absent<B: CacheStore>(storage: Storage<B>) {
    let set = async |value: &[u8], ttl| storage.set_cache_if_absent("absent", value, ttl).await;
    same("a missing value is stored", true, ok("set_cache_if_absent", set(b"first", LONG).await));
    same(
        "another is stored",
        false,
        ok("set_cache_if_absent", set(b"second", Duration::from_millis(1)).await),
    );
    sleep(Duration::from_millis(20)).await;
    same("the value", b"first".as_slice(), &*get(&storage, "absent").await);
    let over = vec![0; MAX_VALUE_BYTES + 1];
    fails("one byte more", ErrorKind::TooLarge, set(&over, LONG).await);
    fails("a ttl of zero", ErrorKind::InvalidValue, set(b"x", Duration::ZERO).await);
    let too_long = MAX_CACHE_TTL + Duration::from_nanos(1);
    fails("a ttl that is too long", ErrorKind::InvalidValue, set(b"x", too_long).await);
    delete(&storage, "absent").await;
    let ttl = Duration::from_millis(100);
    let start = Instant::now();
    same("a deleted value is stored", true, ok("set_cache_if_absent", set(b"", ttl).await));
    gone(&storage, "absent", start + ttl).await;
    assert!(start.elapsed() >= ttl, "it is gone after {:?} of a ttl of {ttl:?}", start.elapsed());
    same("an expired value is stored", true, ok("set_cache_if_absent", set(b"third", LONG).await));
    same("the value", b"third".as_slice(), &*get(&storage, "absent").await);
    delete(&storage, "absent").await;
}

async fn concurrent_if_absent<B: CacheStore>(storage: Storage<B>) {
    let results = concurrently((0..TASKS as u8).map(|writer| store_once(storage.clone(), writer))).await;
    let stored: Vec<u8> = results.into_iter().flatten().collect();
    same("the number of calls that stored", 1, stored.len());
    same("the value", stored, get(&storage, "hot").await);
    delete(&storage, "hot").await;
}

async fn store_once<B: CacheStore>(storage: Storage<B>, writer: u8) -> Option<u8> {
    let stored = ok("set_cache_if_absent", storage.set_cache_if_absent("hot", [writer], LONG).await);
    stored.then_some(writer)
}

async fn gets<B: CacheStore>(storage: Storage<B>) {
    for name in ["b", "a", "d", "c"] {
        set(&storage, name, name, LONG).await;
    }
    let keys = ["d", "no", "a", "no", "c", "A", "a"].map(key);
    let found = ok("get_cache_many", storage.get_cache_many(&keys).await);
    let values = ["a", "c", "d"].map(|name| (key(name), name.as_bytes().to_vec()));
    same_keys("keys that are found", &values.clone().map(|(key, _)| key), found.values.keys().cloned());
    same("values", Vec::from(values), found.values.into_iter().collect());
    let failed = [1, 3, 5].map(|at: usize| (at, &keys[at]));
    same_failures("get_cache_many", ErrorKind::NotFound, &failed, &found.failures);
    for name in ["b", "a", "d", "c"] {
        delete(&storage, name).await;
    }
}

async fn sets<B: CacheStore>(storage: Storage<B>) {
    set(&storage, "a", "before", LONG).await;
    let values = [("a", "1"), ("b", "2"), ("a", "3"), ("c", "\0")];
    complete("set_cache_many", 4, storage.set_cache_many(values, LONG).await);
    for (name, value) in [("a", "3"), ("b", "2"), ("c", "\0")] {
        same(name, value.as_bytes(), &*get(&storage, name).await);
    }
    let ttl = Duration::from_millis(100);
    let start = Instant::now();
    complete("set_cache_many", 4, storage.set_cache_many(values, ttl).await);
    for name in ["a", "b", "c"] {
        gone(&storage, name, start + ttl).await;
    }
    assert!(start.elapsed() >= ttl, "they are gone after {:?} of a ttl of {ttl:?}", start.elapsed());
}

async fn sets_too_large<B: CacheStore>(storage: Storage<B>) {
    let large = vec![0; MAX_VALUE_BYTES + 1];
    let values = [("a", b"1".to_vec()), ("b", large), ("c", b"3".to_vec())];
    let report = ok("set_cache_many", storage.set_cache_many(values, LONG).await);
    same("the number stored", 2, report.succeeded);
    same_failures("set_cache_many", ErrorKind::TooLarge, &[(1, &key("b"))], &report.failures);
    for name in ["a", "c"] {
        delete(&storage, name).await;
    }
    let keys = [key("a"), key("b")];
    let report = ok("set_cache_many", storage.set_cache_many([("a", "1"), ("b", "2")], Duration::ZERO).await);
    same_failures(
        "a ttl of zero",
        ErrorKind::InvalidValue,
        &[(0, &keys[0]), (1, &keys[1])],
        &report.failures,
    );
}

async fn sizes<B: CacheStore>(storage: Storage<B>) {
    complete("set_cache_many", 0, storage.set_cache_many(Vec::<(Key, Vec<u8>)>::new(), LONG).await);
    let found = ok("get_cache_many", storage.get_cache_many(Vec::<Key>::new()).await);
    same("found and failed", (0, 0), (found.values.len(), found.failures.len()));
    let keys = numbered("many ", MANY);
    let values = keys.iter().map(|key| (key, key.as_str()));
    complete("set_cache_many", MANY, storage.set_cache_many(values, LONG).await);
    let mixed = with_missing(&keys);
    let missing: Vec<(usize, &Key)> = mixed.iter().enumerate().step_by(10).collect();
    let found = ok("get_cache_many", storage.get_cache_many(&mixed).await);
    same_failures("get_cache_many", ErrorKind::NotFound, &missing, &found.failures);
    same("the number found", MANY - missing.len(), found.values.len());
    for (key, value) in &found.values {
        same("its value", key.as_str().as_bytes(), value.as_slice());
    }
    complete(
        "set_cache_many",
        MANY,
        storage.set_cache_many(keys.iter().map(|key| (key, "")), Duration::from_millis(1)).await,
    );
}

async fn entry<B: CacheStore>(storage: Storage<B>) {
    fails_about("missing entry", ErrorKind::NotFound, &key("entry"), storage.get_cache_entry("entry").await);
    let ttl = Duration::from_secs(60);
    let start = Instant::now();
    set(&storage, "entry", b"\0\xff", ttl).await;
    sleep(Duration::from_millis(20)).await;
    let entry = ok("get_cache_entry", storage.get_cache_entry("entry").await);
    same("the bytes", b"\0\xff".as_slice(), &*entry.value);
    let left = entry.expires_in.expect("it expires");
    assert!(left <= ttl - Duration::from_millis(10), "{left:?} are left of {ttl:?}, after 20 ms");
    assert!(left + start.elapsed() + LATE >= ttl, "only {left:?} are left of {ttl:?}");
    set(&storage, "entry", "", Duration::from_millis(20)).await;
    gone(&storage, "entry", Instant::now() + Duration::from_millis(20)).await;
    fails_about(
        "entry of an expired value",
        ErrorKind::NotFound,
        &key("entry"),
        storage.get_cache_entry("entry").await,
    );
}

async fn deletes_expired<B: CacheStore>(storage: Storage<B>) {
    set(&storage, "expired", "x", Duration::from_millis(20)).await;
    // Not read before the delete, because expiry must not depend on a read.
    sleep(Duration::from_millis(20) + LATE / 4).await;
    fails_about(
        "delete of an expired value",
        ErrorKind::NotFound,
        &key("expired"),
        storage.delete_cache("expired").await,
    );
}

async fn last_ttl<B: CacheStore>(storage: Storage<B>) {
    let short = Duration::from_millis(60);
    set(&storage, "anew", "short", short).await;
    set(&storage, "anew", "long", LONG).await;
    sleep(short * 3).await;
    same("a long ttl after a short one", "long".as_bytes(), &*get(&storage, "anew").await);
    set(&storage, "anew", "short", short).await;
    gone(&storage, "anew", Instant::now() + short).await;
    set(&storage, "anew", "after it expired", LONG).await;
    same("after it expired", "after it expired".as_bytes(), &*get(&storage, "anew").await);
    delete(&storage, "anew").await;
}

async fn concurrent_sets<B: CacheStore>(storage: Storage<B>) {
    concurrently((0..TASKS as u8).map(|writer| set_and_read(storage.clone(), writer))).await;
    assert_whole(&get(&storage, "hot").await);
    delete(&storage, "hot").await;
}

async fn set_and_read<B: CacheStore>(storage: Storage<B>, writer: u8) {
    for _ in 0..4 {
        set(&storage, "hot", vec![writer; 5_000 + usize::from(writer)], LONG).await;
        assert_whole(&get(&storage, "hot").await);
    }
}

fn assert_whole(value: &[u8]) {
    let writer = value.first().copied().unwrap_or_default();
    assert!(
        value.len() == 5_000 + usize::from(writer) && value.iter().all(|&byte| byte == writer),
        "the value is a mix of two writes"
    );
}

async fn concurrent_deletes<B: CacheStore>(storage: Storage<B>) {
    set(&storage, "hot", "x", LONG).await;
    let results = concurrently((0..TASKS).map(|_| delete_one(storage.clone(), key("hot")))).await;
    let (found, others): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    same("the number of deletes that succeed", 1, found.len());
    for other in others {
        fails_about("delete after another delete", ErrorKind::NotFound, &key("hot"), other);
    }
}

async fn delete_one<B: CacheStore>(storage: Storage<B>, key: Key) -> Result<()> {
    storage.delete_cache(&key).await
}

async fn dropped<B: CacheStore>(storage: Storage<B>) {
    set(&storage, "hot", vec![0; 5_000], LONG).await;
    for writer in 0..32_u8 {
        let value = vec![writer; 5_000 + usize::from(writer)];
        if let Some(result) = drop_after(u32::from(writer) % 6, storage.set_cache("hot", &value, LONG)).await
        {
            ok("set_cache", result);
        }
        drop(drop_after(u32::from(writer) % 4, storage.get_cache("hot")).await);
        assert_whole(&get(&storage, "hot").await);
    }
    settle().await;
    delete(&storage, "hot").await;
}

async fn deadline<B: CacheStore>(storage: Storage<B>) {
    for micros in [0, 1, 100, 2_000] {
        let hasty = storage.with_deadline(Duration::from_micros(micros));
        for result in
            [hasty.set_cache("hot", "x", LONG).await, hasty.get_cache("hot").await.optional().map(drop)]
        {
            if let Err(error) = result {
                same("the error after the deadline", ErrorKind::Timeout, error.kind());
            }
        }
        set(&storage, "hot", "the other handle has time", LONG).await;
    }
    settle().await;
    delete(&storage, "hot").await;
}
