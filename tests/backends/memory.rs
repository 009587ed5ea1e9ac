//! The cost of calls, which `Memory` promises beyond the contract, and how `Storage::import` splits a stream.

use std::{
    pin::pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, stream};
use gateway_storage::{
    Backend, BatchReport, Error, ErrorKind, Exportable, IMPORT_CHUNK, Increment, Key, Memory, Outcome,
    Record, Result, Storage,
    wrap::{BackendWrapper, ExportableWrapper, Wrapped},
};
use serde_json::json;

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

/// The result of a call of `Memory`, which never waits.
fn now<T>(call: impl Future<Output = T>) -> T {
    call.now_or_never().expect("a call of `Memory` never waits")
}

const STORED: usize = 10_000;

fn filled() -> Storage<Memory> {
    let storage = now(Storage::<Memory>::open("memory:")).unwrap();
    for n in 0..STORED {
        now(storage.set_credential(format!("{n}"), json!({}))).unwrap();
        now(storage.increment_usage(format!("{n}"), "n", i64::MAX)).unwrap();
    }
    storage
}

/// Asserts that the data is not copied, which would take thousands of allocations.
fn copies_nothing(what: &str, work: impl FnOnce()) {
    let counted = allocation_counter::measure(work);
    assert!(counted.count_total < 200 && counted.bytes_total < 100_000, "{what}: {counted:?}");
}

#[test]
fn a_commit_does_not_copy_the_store() {
    let storage = filled();
    copies_nothing("a transaction that writes", || {
        let mut tx = now(storage.begin()).unwrap();
        now(tx.get_credential("1")).unwrap();
        now(tx.set_credential("1", json!({ "n": 1 }))).unwrap();
        now(tx.commit()).unwrap();
    });
    // From here on another transaction holds a snapshot.
    let other = now(storage.begin()).unwrap();
    copies_nothing("a transaction that only read", || {
        let mut tx = now(storage.begin()).unwrap();
        now(tx.get_credential("1")).unwrap();
        now(tx.commit()).unwrap();
    });
    let mut late = now(storage.begin()).unwrap();
    now(late.set_credential("1", json!({ "n": 2 }))).unwrap();
    now(storage.set_credential("1", json!({ "n": 3 }))).unwrap();
    let _later = now(storage.begin()).unwrap();
    copies_nothing("a transaction that conflicts", || {
        assert_eq!(now(late.commit()).unwrap_err().kind(), ErrorKind::Conflict);
    });
    now(other.rollback()).unwrap();
    assert_eq!(now(storage.get_credential("1")).unwrap().get("n"), Some(&json!(3)));
}

#[test]
fn a_failed_change_does_not_copy_a_snapshot() {
    let storage = filled();
    let exported = storage.export();
    let _snapshot = now(storage.begin()).unwrap();
    copies_nothing("changes that fail", || {
        now(storage.delete_credential("missing")).unwrap_err();
        now(storage.delete_config("missing")).unwrap_err();
        now(storage.reset_usage("missing")).unwrap_err();
        now(storage.increment_usage("1", "n", 1)).unwrap_err();
        assert_eq!(now(storage.delete_credentials(&[key("missing")])).unwrap().succeeded, 0);
        let over = Increment::new(&key("1"), &key("n"), 1);
        assert_eq!(now(storage.increment_many(&[over])).unwrap().totals, [None]);
        assert_eq!(
            now(storage.set_credentials(Vec::<(Key, serde_json::Value)>::new())).unwrap().succeeded,
            0
        );
        assert_eq!(now(storage.backend().import(&[])).unwrap().succeeded, 0);
    });
    drop(exported);
}

#[test]
fn an_export_does_not_copy_the_store_and_is_a_snapshot() {
    let storage = filled();
    let mut exported = pin!(storage.export());
    copies_nothing("the first record of an export", || {
        assert!(now(exported.next()).unwrap().is_ok());
    });
    now(storage.delete_credential("9999")).unwrap();
    now(storage.set_config("new", json!(1))).unwrap();
    // An export yields to other tasks now and then, so it needs a runtime.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let rest: Vec<_> = runtime.block_on(exported.collect());
    assert_eq!(rest.len() + 1, 2 * STORED);
}

/// A scan of the whole cache, at each of these calls, would take hours.
#[test]
fn a_full_cache_is_not_scanned_by_each_call() {
    const CACHED: usize = 100_000;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let storage = now(Storage::<Memory>::open("memory:")).unwrap();
    let begun = Instant::now();
    for n in 0..3 * CACHED {
        now(storage.set_cache(format!("{}", n % CACHED), [1], Duration::from_secs(3600))).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(120), "only {n} values in two minutes");
    }
}

/// Records the size of each import: its records and bytes.
#[derive(Clone, Default)]
struct ImportSizes(Arc<Mutex<Vec<(usize, usize)>>>);

impl<B: Backend> BackendWrapper<B> for ImportSizes {}

impl<B: Exportable> ExportableWrapper<B> for ImportSizes {
    async fn import(&self, inner: &B, records: &[Record]) -> Result<BatchReport> {
        self.0.lock().unwrap().push((records.len(), records.iter().map(Record::size).sum()));
        inner.import(records).await
    }
}

fn config(n: usize, bytes: usize) -> Result<Record> {
    Ok(Record::Config { key: key(&n.to_string()), value: json!("x".repeat(bytes)).try_into()? })
}

async fn import_sizes() -> Storage<Wrapped<ImportSizes, Memory>> {
    let memory = Storage::<Memory>::open("memory:").await.unwrap().backend().clone();
    Storage::new(Wrapped::new(ImportSizes::default(), memory))
}

#[tokio::test]
async fn an_import_is_split_by_bytes_as_well_as_by_records() {
    let storage = import_sizes().await;
    let large = 1_000_000;
    let records = (0..20).map(|n| config(n, large)).chain((20..1500).map(|n| config(n, 1)));
    let report = storage.import(stream::iter(records)).await.unwrap();
    assert_eq!((report.succeeded, report.failures.len()), (1500, 0));
    let imports = storage.backend().parts().0.0.lock().unwrap().clone();
    assert!(imports.iter().all(|(records, _)| (1..=IMPORT_CHUNK).contains(records)), "{imports:?}");
    // 4 MiB, and the record that exceeds them.
    assert!(imports.iter().all(|(_, bytes)| *bytes < (4 << 20) + large + 100), "{imports:?}");
    assert!(imports.len() <= 8, "not one import per record: {imports:?}");
    assert_eq!(imports.iter().map(|(records, _)| records).sum::<usize>(), 1500);
}

#[tokio::test]
async fn records_before_an_error_of_the_stream_are_imported() {
    for before in [1, IMPORT_CHUNK - 1, IMPORT_CHUNK, IMPORT_CHUNK + 1] {
        let storage = import_sizes().await;
        let lost = stream::iter([Err(Error::new(ErrorKind::Unavailable, "the stream is lost"))]);
        let error =
            storage.import(stream::iter((0..before).map(|n| config(n, 1))).chain(lost)).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::Unknown));
        assert_eq!(storage.export().count().await, before);
    }
    let storage = import_sizes().await;
    let lost = Error::new(ErrorKind::Unavailable, "the stream is lost");
    let error = storage.import(stream::iter([Err(lost)])).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
    assert!(storage.backend().parts().0.0.lock().unwrap().is_empty(), "no record came before the error");
}
