//! Parts of a File store: streams, batches of reads, and resets by prefix.

use std::{
    path::Path,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt, TryStreamExt, future::join_all};
use gateway_storage::{
    Error, ErrorKind, File, Increment, Key, OptionalExt, Outcome, Result, Sharing, Storage, list::ListOptions,
};
use serde_json::json;
use tempfile::TempDir;

use super::file::{open, plant, reading, shared};

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn named(n: usize) -> Key {
    key(&format!("{n:05}"))
}

async fn keys_of<V>(stream: impl Stream<Item = Result<(Key, V)>>) -> Vec<Key> {
    stream.map_ok(|(key, _)| key).try_collect().await.unwrap()
}

/// Stores a record of each kind under each key.
async fn fill(storage: &Storage<File>, keys: &[Key]) {
    let values: Vec<_> = keys.iter().map(|key| (key.clone(), json!({ "of": key.as_str() }))).collect();
    assert!(storage.set_credentials(values.clone()).await.unwrap().is_complete());
    assert!(storage.set_configs(values).await.unwrap().is_complete());
    let count = |key: &Key| Increment::new(key, key, 1);
    let counts: Vec<_> = keys.iter().map(count).collect();
    storage.increment_many(&counts).await.unwrap().complete().unwrap();
}

/// Keys of which many begin with another, with characters that a pattern or a name could treat as its own.
fn near_keys() -> Vec<Key> {
    let parts = ["a", "a b", "a/b", "ab", "a%", "a_", "a*", "a[b]", "a\\", "A", "é", "\u{10ffff}", "~"];
    let names = parts
        .iter()
        .flat_map(|one| [(*one).to_owned()].into_iter().chain(parts.map(|two| format!("{one}{two}"))));
    let mut keys: Vec<Key> = names.map(|name| key(&name)).collect();
    keys.sort();
    keys.dedup();
    keys
}

/// In a store that is read on the caller's thread, and in one of many pages.
#[tokio::test]
async fn a_stream_has_the_records_that_its_options_name() {
    for more in [0, 1_500] {
        let base = TempDir::new().unwrap();
        let storage = open(base.path()).await.unwrap();
        let mut keys = if more == 0 { near_keys()[..30].to_vec() } else { near_keys() };
        keys.extend((0..more).map(|n| key(&format!("a/{n:04}"))));
        keys.sort();
        fill(&storage, &keys).await;
        let some: Vec<_> = keys.iter().step_by(keys.len() / 20).cloned().map(Some).collect();
        let nothing = ["a\0", "a\0a", "a/\0", "a\n", "\0", "*", "a.*", "?", "x"];
        for prefix in
            ["", "a", "a/", "a/0", "a%", "a_", "a*", "a[", "a\\", "\u{10ffff}", "A"].iter().chain(&nothing)
        {
            for after in std::iter::once(&None).chain(&some) {
                for limit in [None, Some(0), Some(1), Some(100), Some(101), Some(600)] {
                    let mut options = ListOptions::default().with_prefix(*prefix);
                    (options.after, options.limit) = (after.clone(), limit);
                    let is_named = |key: &&Key| {
                        key.as_str().starts_with(prefix) && after.as_ref().is_none_or(|after| *key > after)
                    };
                    let wanted: Vec<Key> =
                        keys.iter().filter(is_named).take(limit.unwrap_or(usize::MAX)).cloned().collect();
                    assert!(wanted.is_empty() || !nothing.contains(prefix));
                    let usage: Vec<_> = storage.stream_usage(options.clone()).try_collect().await.unwrap();
                    for (key, record) in &usage {
                        assert_eq!((record.len(), record.get(key.as_str())), (1, Some(1)), "{key:?}");
                    }
                    let usage: Vec<Key> = usage.into_iter().map(|(key, _)| key).collect();
                    assert!(usage == wanted, "{options:?}: {} of {}", usage.len(), wanted.len());
                    assert!(keys_of(storage.stream_configs(options.clone())).await == wanted, "{options:?}");
                    assert!(keys_of(storage.stream_credentials(options)).await == wanted);
                }
            }
        }
    }
}

/// Records with one counter, with as many as a page has, and with more than that.
#[tokio::test]
async fn a_usage_record_is_not_divided_between_pages() {
    let base = TempDir::new().unwrap();
    let storage = open(base.path()).await.unwrap();
    let mut increments = Vec::new();
    for (n, fields) in
        [1, 1, 511, 1, 512, 513, 99, 100, 101, 1, 1_700, 3].into_iter().cycle().take(40).enumerate()
    {
        increments
            .extend((0..fields).map(|field| Increment::new(&named(n), &named(field), field as i64 - 7)));
    }
    storage.increment_many(&increments).await.unwrap().complete().unwrap();
    let listed = storage.list_usage().await.unwrap();
    let streamed: Vec<_> = storage.stream_usage(ListOptions::default()).try_collect().await.unwrap();
    assert_eq!(streamed.len(), 40);
    assert!(streamed.into_iter().eq(listed.clone()));
    for n in 0..40 {
        let mut after = ListOptions::default().with_limit(1);
        after.after = (n > 0).then(|| named(n - 1));
        let streamed: Vec<_> = storage.stream_usage(after).try_collect().await.unwrap();
        assert!(streamed == [(named(n), listed[&named(n)].clone())], "{n}");
    }
    let keys: Vec<_> = listed.keys().cloned().collect();
    for keys in [&keys[..], &keys[..2], &keys[10..11]] {
        let found = storage.get_usages(keys).await.unwrap().complete().unwrap();
        assert!(keys.iter().all(|key| found[key] == listed[key]) && found.len() == keys.len());
    }
}

/// Tasks that store and delete records between others that stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_stays_is_streamed_once_while_others_come_and_go() {
    const KEPT: usize = 2_000;
    let base = TempDir::new().unwrap();
    let storages = [open(base.path()).await.unwrap(), open(base.path()).await.unwrap()];
    let kept: Vec<Key> = (0..KEPT).map(named).collect();
    fill(&storages[0], &kept).await;
    let ends = Arc::new(AtomicBool::new(false));
    let writers = storages.clone().map(|storage| {
        let ends = ends.clone();
        tokio::spawn(async move {
            let mut commits = 0;
            while !ends.load(Ordering::SeqCst) {
                let others: Vec<Key> = (0..50)
                    .map(|_| key(&format!("{:05}-{}", fastrand::usize(..KEPT), fastrand::u8(..3))))
                    .collect();
                fill(&storage, &others).await;
                drop(storage.delete_credentials(&others).await.unwrap());
                for key in &others[..3] {
                    storage.delete_config(key).await.optional().unwrap();
                    storage.reset_usage(key).await.optional().unwrap();
                }
                commits += 1;
            }
            commits
        })
    });
    let check = |streamed: Vec<Key>| {
        assert!(streamed.is_sorted_by(|one, next| one < next));
        let stays = |key: &Key| !key.as_str().contains('-');
        assert!(streamed.iter().filter(|key| stays(key)).eq(&kept));
        streamed.len() - KEPT
    };
    let mut others = 0;
    for round in 0..10 {
        let storage = &storages[round % 2];
        others += check(keys_of(storage.stream_credentials(ListOptions::default())).await);
        others += check(keys_of(storage.stream_configs(ListOptions::default())).await);
        others += check(keys_of(storage.stream_usage(ListOptions::default())).await);
    }
    ends.store(true, Ordering::SeqCst);
    for commits in join_all(writers).await {
        assert!(commits.unwrap() > 0);
    }
    assert!(others > 0);
}

/// The files of this folder that this process has open although they have no name.
fn nameless(path: &Path) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = open.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok());
    targets
        .filter(|target| target.starts_with(path) && target.to_str().unwrap().ends_with(" (deleted)"))
        .count()
}

/// A stream that is open while another handle compacts the store goes on in the new file, and holds nothing
/// of the old one.
#[tokio::test]
async fn a_stream_goes_on_in_a_file_that_was_compacted() {
    let base = TempDir::new().unwrap();
    let path = base.path().canonicalize().unwrap();
    let (storage, other) = (open(&path).await.unwrap(), open(&path).await.unwrap());
    let keys: Vec<Key> = (0..2_000).map(named).collect();
    fill(&storage, &keys).await;
    for (compacts, streams) in [(&storage, &storage), (&other, &storage), (&storage, &other)] {
        let mut credentials = pin!(streams.stream_credentials(ListOptions::default()));
        let mut usage = pin!(streams.stream_usage(ListOptions::default()));
        let first = credentials.next().await.unwrap().unwrap().0;
        assert_eq!((first, usage.next().await.unwrap().unwrap().0), (named(0), named(0)));
        compacts.backend().compact().await.unwrap();
        compacts.set_credential("99999", json!({})).await.unwrap();
        // Each handle finds the new file with its next call.
        for storage in [&storage, &other] {
            storage.get_counter("00000", "00000").await.unwrap();
        }
        let mut looks = 0;
        while nameless(&path) > 0 {
            looks += 1;
            assert!(looks < 1_000, "a stream holds the file that was replaced");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let rest = keys_of(credentials).await;
        assert_eq!((rest.len(), rest.last()), (2_000, Some(&key("99999"))));
        assert!(keys_of(usage).await == keys[1..]);
        storage.delete_credential("99999").await.unwrap();
    }
}

#[tokio::test]
async fn a_stream_of_a_closed_store_ends_with_an_error() {
    let base = TempDir::new().unwrap();
    let storage = open(base.path()).await.unwrap();
    fill(&storage, &(0..1_000).map(named).collect::<Vec<_>>()).await;
    let open = storage.clone();
    let mut stream = pin!(open.stream_configs(ListOptions::default()));
    stream.next().await.unwrap().unwrap();
    storage.close().await.unwrap();
    let rest: Vec<_> = stream.collect().await;
    let error = rest.last().unwrap().as_ref().unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Closed, Outcome::NotApplied));
    assert!(rest.len() < 1_000 && rest[..rest.len() - 1].iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_stream_ends_at_a_damaged_record_and_another_goes_on_behind_it() {
    for count in [10, 2_000] {
        let base = TempDir::new().unwrap();
        let storage = open(base.path()).await.unwrap();
        let mut keys: Vec<Key> = (0..count).map(named).collect();
        fill(&storage, &keys).await;
        storage.close().await.unwrap();
        plant(base.path(), &[(b"c00007", b"{\"secret"), (b"f00007", b"1e400"), (b"u00007\0n", b"short")]);
        let storage = open(base.path()).await.unwrap();
        let check = |mut streamed: Vec<Result<Key>>| {
            let error: Error = streamed.pop().unwrap().unwrap_err();
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::Corrupt, Outcome::NotApplied));
            assert!(!format!("{error:?}").contains("secret"));
            assert!(streamed.into_iter().map(Result::unwrap).eq(keys[..7].iter().cloned()));
            ListOptions::default().with_after(error.key().unwrap().clone())
        };
        let all = ListOptions::default;
        let after = check(storage.stream_credentials(all()).map_ok(|(key, _)| key).collect().await);
        assert!(keys_of(storage.stream_credentials(after)).await == keys[8..]);
        let after = check(storage.stream_configs(all()).map_ok(|(key, _)| key).collect().await);
        assert!(keys_of(storage.stream_configs(after)).await == keys[8..]);
        let after = check(storage.stream_usage(all()).map_ok(|(key, _)| key).collect().await);
        assert!(keys_of(storage.stream_usage(after)).await == keys[8..]);
        // A limit ends before it.
        assert_eq!(keys_of(storage.stream_usage(all().with_limit(7))).await.len(), 7);
        let found = storage.get_usages(&[named(7), named(8)]).await.unwrap();
        assert_eq!((found.values.len(), found.failures[0].error.kind()), (1, ErrorKind::Corrupt));
        assert_eq!(storage.get_counter("00007", "n").await.unwrap_err().kind(), ErrorKind::Corrupt);
        let found = storage.get_configs(&[named(7), named(8)]).await.unwrap();
        assert_eq!((found.values.len(), found.failures[0].error.kind()), (1, ErrorKind::Corrupt));
        // A reset deletes it as any other record.
        assert_eq!(storage.reset_usage_prefix("0000").await.unwrap(), 10);
        keys.drain(..10);
        assert!(keys_of(storage.stream_usage(all())).await == keys);
    }
}

/// What two writes of one commit have changed is never seen in parts, in any mode.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_of_reads_see_one_state() {
    for mode in [Sharing::Exclusive, Sharing::MultiWriter] {
        let base = TempDir::new().unwrap();
        let storage = shared(base.path(), mode).await.unwrap();
        let reader = match mode {
            Sharing::Exclusive => storage.clone(),
            _ => reading(base.path(), mode).await.unwrap(),
        };
        let (few, many): (Vec<Key>, Vec<Key>) = ((0..2).map(named).collect(), (0..150).map(named).collect());
        let write = async |n: i64| {
            let counts: Vec<_> = many.iter().map(|key| Increment::new(key, key, 1)).collect();
            storage.increment_many(&counts).await.unwrap().complete().unwrap();
            let values: Vec<_> = many.iter().map(|key| (key.clone(), json!(n))).collect();
            assert_eq!(storage.set_configs(values).await.unwrap().complete().unwrap(), 150);
        };
        write(0).await;
        let ends = AtomicBool::new(false);
        let writes = async {
            for n in 1..60 {
                write(n).await;
            }
            ends.store(true, Ordering::SeqCst);
        };
        let reads = async {
            let mut rounds = 0;
            while !ends.load(Ordering::SeqCst) {
                for keys in [&few, &many] {
                    let found = reader.get_usages(keys).await.unwrap().complete().unwrap();
                    let mut counts = found.iter().map(|(key, record)| record.get(key.as_str()).unwrap());
                    let first = counts.next().unwrap();
                    assert!(counts.all(|count| count == first), "torn");
                    assert!(reader.get_counter("00001", "00001").await.unwrap() >= first);
                    let found = reader.get_configs(keys).await.unwrap().complete().unwrap();
                    let mut values = found.values();
                    let first = values.next().unwrap();
                    assert!(values.all(|value| value == first), "torn");
                }
                rounds += 1;
                tokio::task::yield_now().await;
            }
            rounds
        };
        let ((), rounds) = tokio::join!(writes, reads);
        assert!(rounds > 10, "{rounds}");
    }
}

#[tokio::test]
async fn a_counter_is_read_alone() {
    let base = TempDir::new().unwrap();
    let storage = open(base.path()).await.unwrap();
    assert_eq!(storage.get_counter("a", "n").await.unwrap(), 0);
    storage.increment_usage("a", "n", i64::MIN).await.unwrap();
    storage.increment_usage("a/n", "n", 5).await.unwrap();
    let counters = [("a", "n", i64::MIN), ("a/n", "n", 5), ("a", "m", 0), ("a/", "n", 0)];
    for (key, field, count) in counters {
        assert_eq!(storage.get_counter(key, field).await.unwrap(), count);
    }
    storage.reset_usage("a").await.unwrap();
    assert_eq!(storage.get_counter("a", "n").await.unwrap(), 0);
}

/// More records and counters than one commit deletes, beside keys that are near the prefix.
#[tokio::test]
async fn a_reset_by_prefix_deletes_the_records_with_it() {
    let base = TempDir::new().unwrap();
    let storage = open(base.path()).await.unwrap();
    let beside = ["A/", "a", "a.", "a0", "b"].map(key);
    let mut counts: Vec<_> = beside.iter().map(|key| Increment::new(key, key, 1)).collect();
    for n in 0..2_500 {
        let name = key(&format!("a/{n:04}"));
        let fields = if n % 500 == 499 { 1_200 } else { 1 + n % 2 };
        counts.extend((0..fields).map(|field| Increment::new(&name, &named(field), 1)));
    }
    storage.increment_many(&counts).await.unwrap().complete().unwrap();
    assert_eq!(storage.reset_usage_prefix("a/x").await.unwrap(), 0);
    assert_eq!(storage.reset_usage_prefix("a/0499").await.unwrap(), 1);
    assert_eq!(storage.reset_usage_prefix("a/").await.unwrap(), 2_499);
    assert!(storage.list_usage().await.unwrap().keys().eq(&beside));
    assert_eq!(storage.stats().await.unwrap().usage_record_count, 5);
    assert!(storage.backend().check().await.unwrap().is_sound());
    assert_eq!(storage.reset_usage_prefix("a").await.unwrap(), 3);
    let reader = reading(base.path(), Sharing::MultiWriter).await.unwrap();
    for prefix in ["b", "none"] {
        let error = reader.reset_usage_prefix(prefix).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Denied, Outcome::NotApplied));
    }
    assert_eq!(storage.get_counter("b", "b").await.unwrap(), 1);
}

/// Each record that is made is deleted by one reset or is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_by_prefix_counts_what_it_deletes_beside_increments() {
    let base = TempDir::new().unwrap();
    let storages = [open(base.path()).await.unwrap(), open(base.path()).await.unwrap()];
    let ends = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let (storage, ends) = (storages[task % 2].clone(), ends.clone());
            tokio::spawn(async move {
                let mut made = 0;
                while !ends.load(Ordering::SeqCst) {
                    let name = named(fastrand::usize(..1_500));
                    let counts: Vec<_> = (0..20)
                        .map(|n| Increment::new(&key(&format!("p/{n}/{}", name.as_str())), &name, 1))
                        .collect();
                    let totals = storage.increment_many(&counts).await.unwrap();
                    made += totals.totals.iter().filter(|total| **total == Some(1)).count() as u64;
                }
                made
            })
        })
        .collect();
    let (mut deleted, mut resets) = (0, 0);
    for round in 0.. {
        let some = storages[round % 2].reset_usage_prefix("p/").await.unwrap();
        deleted += some;
        resets += u32::from(some > 0);
        if resets == 30 {
            break;
        }
        assert!(round < 10_000);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    ends.store(true, Ordering::SeqCst);
    let made: u64 = join_all(tasks).await.into_iter().map(Result::unwrap).sum();
    let left = storages[0].list_usage().await.unwrap().len() as u64;
    assert_eq!(made, deleted + left);
    assert!(storages[1].backend().check().await.unwrap().is_sound());
}
