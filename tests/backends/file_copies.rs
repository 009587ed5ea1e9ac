//! Copies of a File store while it is used: backups, compactions, and the check of what they copied.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt, TryStreamExt};
use gateway_storage::{
    Credential, ErrorKind, File, FileOptions, Key, Outcome, Record, Sharing, Storage, Verify,
    lease::{Claim, Holder},
    plan::{ApplyOptions, Plan},
};
use serde_json::json;
use tempfile::TempDir;

const MODES: [Sharing; 3] = [Sharing::Exclusive, Sharing::SingleWriter, Sharing::MultiWriter];

async fn open(path: &Path, shared: Sharing) -> Storage<File> {
    Storage::open(FileOptions::new(path).with_shared(shared)).await.unwrap()
}

async fn records(storage: &Storage<File>) -> Vec<Record> {
    storage.export().try_collect().await.unwrap()
}

async fn fill(storage: &Storage<File>, count: usize) {
    let fillers = (0..count).map(|n| (format!("filler-{n}"), json!({ "n": n, "text": "x".repeat(600) })));
    storage.set_credentials(fillers).await.unwrap().complete().unwrap();
}

/// Changes everything that a store has, in four tasks, until it is told to end.
fn load(storage: &Storage<File>, ends: &Arc<AtomicBool>) -> Vec<tokio::task::JoinHandle<u64>> {
    let task = |task: u64| {
        let (storage, ends) = (storage.clone(), ends.clone());
        async move {
            let ids: Vec<_> = (0..5).map(|n| Key::new(&format!("batch-{task}-{n}")).unwrap()).collect();
            let mut step = 0;
            while !ends.load(Ordering::SeqCst) {
                step += 1;
                let credential = Credential::try_from(json!({ "step": step })).unwrap();
                let batch: Vec<_> = ids.iter().map(|id| (id.clone(), credential.clone())).collect();
                storage.set_credentials(&batch).await.unwrap().complete().unwrap();
                let plan = json!([
                    { "set": format!("one-{task}"), "value": step },
                    { "set": format!("other-{task}"), "value": step },
                ]);
                let plan = Plan::from_json(plan.to_string()).unwrap();
                // Those of every other plan end within the test.
                let ttl = Duration::from_millis(if step % 2 == 0 { 20 } else { 60_000 });
                let options = ApplyOptions::default().with_ttl(ttl);
                storage.apply_plan(format!("plan-{task}-{step}"), &plan, &options).await.unwrap();
                assert_eq!(storage.increment_usage("count", format!("task-{task}"), 1).await.unwrap(), step);
                storage.increment_usage(format!("mortal-{task}"), "n", 1).await.unwrap();
                storage.reset_usage(format!("mortal-{task}")).await.unwrap();
                let lease =
                    storage.claim_lease(format!("lease-{task}"), &Holder::random(), TTL).await.unwrap();
                let Claim::Yours(lease) = lease else { panic!("no other has the lease") };
                if step % 3 > 0 {
                    storage.release_lease(&lease, Duration::ZERO).await.unwrap();
                } else {
                    storage.release_lease(&lease, Duration::from_millis(1)).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
            u64::try_from(step).unwrap()
        }
    };
    (0..4).map(|number| tokio::spawn(task(number))).collect()
}

const TTL: Duration = Duration::from_secs(60);

/// Every batch and every plan is in the store whole or not at all.
async fn assert_whole(storage: &Storage<File>) {
    let configs: BTreeMap<String, i64> = storage
        .list_configs()
        .await
        .unwrap()
        .into_iter()
        .map(|(key, value)| (key.as_str().to_owned(), value.value().as_i64().unwrap()))
        .collect();
    for task in 0..4 {
        let ids: Vec<_> = (0..5).map(|n| Key::new(&format!("batch-{task}-{n}")).unwrap()).collect();
        let found = storage.get_credentials(&ids).await.unwrap();
        let steps: Vec<_> =
            found.values.values().map(|credential| credential.get("step").cloned().unwrap()).collect();
        assert!(steps.is_empty() || (steps.len() == 5 && steps.iter().all(|step| *step == steps[0])));
        assert_eq!(configs.get(&format!("one-{task}")), configs.get(&format!("other-{task}")));
        let step = steps.first().and_then(|step| step.as_i64()).unwrap_or(0);
        // The plan follows the batch, and the counter the plan.
        let plan = configs.get(&format!("one-{task}")).copied().unwrap_or(0);
        assert!(plan == step || plan == step - 1, "task {task}: batch {step}, plan {plan}");
    }
    let report = storage.backend().check().await.unwrap();
    assert!(report.is_sound(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_compaction_under_load_loses_nothing_and_no_reader_misses_a_key() {
    for shared in MODES {
        let base = TempDir::new().unwrap();
        let storage = open(base.path(), shared).await;
        fill(&storage, 1000).await;
        let ends = Arc::new(AtomicBool::new(false));
        let tasks = load(&storage, &ends);
        let reader = tokio::spawn({
            let (storage, ends) = (storage.clone(), ends.clone());
            async move {
                let (mut random, mut reads) = (fastrand::Rng::new(), 0);
                while !ends.load(Ordering::SeqCst) {
                    let n = random.usize(..1000);
                    let filler = storage.get_credential(format!("filler-{n}")).await.unwrap();
                    assert_eq!(filler.get("n").unwrap(), n);
                    reads += 1;
                    if reads % 100 == 0 {
                        assert_eq!(storage.list_credentials().await.unwrap().len() % 5, 0, "a torn batch");
                        tokio::task::yield_now().await;
                    }
                }
                reads
            }
        });
        // It is read to its end while the file that it reads is replaced.
        let mut export = Box::pin(storage.export());
        let first = export.next().await.unwrap().unwrap();
        for _ in 0..5 {
            storage.backend().compact().await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(matches!(first, Record::Credential { .. }));
        let rest: Vec<Record> = export.try_collect().await.unwrap();
        assert!(rest.len() >= 999, "{}", rest.len());
        ends.store(true, Ordering::SeqCst);
        let mut counts = Vec::new();
        for task in tasks {
            counts.push(task.await.unwrap() as i64);
        }
        assert!(reader.await.unwrap() > 0);
        let before = (records(&storage).await, storage.list_leases().await.unwrap().len());
        storage.close().await.unwrap();
        let storage = open(base.path(), shared).await;
        assert_eq!((records(&storage).await, storage.list_leases().await.unwrap().len()), before);
        for (task, count) in counts.into_iter().enumerate() {
            let usage = storage.get_usage("count").await.unwrap();
            assert_eq!(usage.get(&format!("task-{task}")), Some(count), "an increment is lost");
        }
        assert_whole(&storage).await;
        let left: Vec<_> =
            fs::read_dir(base.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name != "store.redb.new"), "{left:?}");
        let mode = fs::metadata(base.path().join("store.redb")).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_compaction_at_a_time() {
    let base = TempDir::new().unwrap();
    let storage = open(base.path(), Sharing::MultiWriter).await;
    fill(&storage, 2000).await;
    let (one, two) = tokio::join!(storage.backend().compact(), storage.backend().compact());
    let refused = [one, two].into_iter().filter_map(Result::err).collect::<Vec<_>>();
    assert_eq!(refused.len(), 1, "one is refused");
    assert_eq!((refused[0].kind(), refused[0].outcome()), (ErrorKind::Busy, Outcome::NotApplied));
    storage.backend().compact().await.unwrap();
}

/// In a shared mode the file is replaced under handles that read and write it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn other_handles_go_on_with_the_compacted_file() {
    for (shared, read_only) in
        [(Sharing::SingleWriter, true), (Sharing::MultiWriter, true), (Sharing::MultiWriter, false)]
    {
        let base = TempDir::new().unwrap();
        let storage = open(base.path(), shared).await;
        fill(&storage, 300).await;
        let options = FileOptions::new(base.path()).with_shared(shared).with_read_only(read_only);
        let other = Storage::<File>::open(options).await.unwrap();
        for round in 0..10 {
            assert_eq!(other.get_credential("filler-7").await.unwrap().get("n").unwrap(), 7);
            // It reads all the time, so also between the last commit in the old file and the rename.
            let ends = Arc::new(AtomicBool::new(false));
            let reads = tokio::spawn({
                let (other, ends) = (other.clone(), ends.clone());
                async move {
                    while !ends.load(Ordering::SeqCst) {
                        other.get_credential("filler-7").await.unwrap();
                        tokio::task::yield_now().await;
                    }
                }
            });
            storage.backend().compact().await.unwrap();
            ends.store(true, Ordering::SeqCst);
            reads.await.unwrap();
            storage.set_config("a", json!("after")).await.unwrap();
            assert_eq!(other.get_config("a").await.unwrap().value(), &json!("after"));
            if round % 2 == 0 {
                // Two compactions while the other did nothing.
                storage.backend().compact().await.unwrap();
            }
            storage.set_config("a", json!(round)).await.unwrap();
            assert_eq!(other.get_config("a").await.unwrap().value(), &json!(round));
            other.health().await.unwrap();
            assert_eq!(other.list_credentials().await.unwrap().len(), 300);
            if !read_only {
                other.set_config("b", json!(round)).await.unwrap();
                assert_eq!(storage.get_config("b").await.unwrap().value(), &json!(round));
                other.backend().compact().await.unwrap();
                other.set_config("b", json!(-round)).await.unwrap();
                assert_eq!(storage.get_config("b").await.unwrap().value(), &json!(-round));
            }
        }
        // A copy of the store that is moved into its place is another store.
        let moved = base.path().join("moved");
        storage.backend().backup(&moved).await.unwrap();
        storage.backend().compact().await.unwrap();
        storage.set_config("a", json!("old")).await.unwrap();
        assert_eq!(other.get_config("a").await.unwrap().value(), &json!("old"));
        fs::rename(moved.join("store.redb"), base.path().join("store.redb")).unwrap();
        for handle in [&storage, &other] {
            let error = handle.health().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert!(error.to_string().contains("was replaced"), "{error}");
            assert_eq!(handle.get_config("a").await.unwrap().value(), &json!("old"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_file_that_is_mostly_dead_is_compacted_by_itself() {
    let base = TempDir::new().unwrap();
    let storage = open(base.path(), Sharing::MultiWriter).await;
    storage.set_config("kept", json!(1)).await.unwrap();
    for n in 0..80 {
        storage.set_config(format!("k{n}"), json!("x".repeat(1_000_000))).await.unwrap();
    }
    let size = || fs::metadata(base.path().join("store.redb")).unwrap().len();
    assert!(size() > 64 << 20);
    for n in 0..80 {
        storage.delete_config(format!("k{n}")).await.unwrap();
    }
    let mut waits = 0;
    while size() > 1 << 20 {
        waits += 1;
        assert!(waits < 600, "the file still has {} bytes", size());
        storage.set_config("tick", json!(waits)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(storage.get_config("kept").await.unwrap().value(), &json!(1));
    storage.set_config("tick", json!(0)).await.unwrap();
    storage.close().await.unwrap();
}

/// A table of a later version would not be in the copy.
#[tokio::test]
async fn a_store_with_tables_of_a_later_version_is_not_copied() {
    let base = TempDir::new().unwrap();
    let path = base.path().join("store");
    open(&path, Sharing::Exclusive).await.close().await.unwrap();
    let database = redb::Database::open(path.join("store.redb")).unwrap();
    let write = database.begin_write().unwrap();
    let later = redb::TableDefinition::<&[u8], &[u8]>::new("later");
    write.open_table(later).unwrap().insert(&b"a"[..], &b"b"[..]).unwrap();
    write.commit().unwrap();
    drop(database);
    let storage = open(&path, Sharing::Exclusive).await;
    let copy = base.path().join("copy");
    for error in
        [storage.backend().compact().await.unwrap_err(), storage.backend().backup(&copy).await.unwrap_err()]
    {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("the table `later`"), "{error}");
    }
    assert!(!copy.exists());
    storage.set_config("a", json!(1)).await.unwrap();
    storage.close().await.unwrap();
    let left: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name != "store.redb.new"), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_backup_is_one_state_of_a_store_that_is_written_meanwhile() {
    for shared in MODES {
        let base = TempDir::new().unwrap();
        let storage = open(&base.path().join("store"), shared).await;
        fill(&storage, 1000).await;
        let ends = Arc::new(AtomicBool::new(false));
        let tasks = load(&storage, &ends);
        for round in 0..3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let begun = SystemTime::now();
            let path = base.path().join(format!("new/copy-{round}"));
            let report = storage.backend().backup(&path).await.unwrap();
            assert!(report.is_recorded && report.records > 1000 && report.bytes > 600_000, "{report:?}");
            assert_eq!(report.path, path);
            let last = storage.stats().await.unwrap().last_backup.unwrap();
            assert!(last + Duration::from_millis(1) >= begun, "{last:?}");
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&path), mode(&path.join("store.redb"))), (0o700, 0o600));

            // To restore it is to open it.
            let copy = open(&path, shared).await;
            assert_whole(&copy).await;
            assert_eq!(copy.get_credential("filler-7").await.unwrap().get("n").unwrap(), 7);
            copy.set_config("written", json!(1)).await.unwrap();
            copy.close().await.unwrap();
        }
        ends.store(true, Ordering::SeqCst);
        for task in tasks {
            assert!(task.await.unwrap() > 0);
        }
        // Without writers it is the store.
        let path = base.path().join("last");
        storage.backend().backup(&path).await.unwrap();
        let last = storage.stats().await.unwrap().last_backup;
        let copy = open(&path, shared).await;
        assert_eq!(records(&copy).await, records(&storage).await);
        assert_eq!(copy.list_leases().await.unwrap().len(), storage.list_leases().await.unwrap().len());
        storage.close().await.unwrap();
        let storage = open(&base.path().join("store"), shared).await;
        assert_eq!(storage.stats().await.unwrap().last_backup, last, "the store has the time");
    }
}

#[tokio::test]
async fn a_refused_backup_leaves_nothing() {
    let base = TempDir::new().unwrap();
    let storage = open(&base.path().join("store"), Sharing::MultiWriter).await;
    fill(&storage, 10).await;
    let file = base.path().join("file");
    fs::write(&file, "mine").unwrap();
    let others = base.path().join("others");
    fs::create_dir(&others).unwrap();
    fs::write(others.join("mine"), "mine").unwrap();
    let other = base.path().join("other");
    open(&other, Sharing::Exclusive).await.close().await.unwrap();
    for (path, why) in [
        (base.path().join("store"), "has the store itself; name an empty or a new directory"),
        (file.clone(), "is not a directory"),
        (others.clone(), "has other files and no store; name an empty or a new directory"),
        (other.clone(), "has a store; name an empty or a new directory"),
    ] {
        let error = storage.backend().backup(&path).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.outcome()),
            (ErrorKind::InvalidValue, Outcome::NotApplied),
            "{error}"
        );
        assert!(error.to_string().ends_with(why), "{error}");
        assert!(!path.join("store.redb.new").exists());
    }
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    assert_eq!(fs::read_dir(&others).unwrap().count(), 1);
    assert_eq!(storage.stats().await.unwrap().last_backup, None);
    storage.set_config("a", json!(1)).await.unwrap();
    storage.close().await.unwrap();

    // A handle that only reads makes a backup, and can't note it.
    let options = FileOptions::new(base.path().join("store")).with_read_only(true);
    let storage = Storage::<File>::open(options).await.unwrap();
    let report = storage.backend().backup(base.path().join("copy")).await.unwrap();
    assert!(!report.is_recorded);
    assert_eq!(storage.stats().await.unwrap().last_backup, None);
    let copy = open(&base.path().join("copy"), Sharing::MultiWriter).await;
    assert_eq!(records(&copy).await, records(&storage).await);
}

#[tokio::test]
async fn a_dropped_backup_leaves_nothing() {
    let base = TempDir::new().unwrap();
    let storage = open(&base.path().join("store"), Sharing::MultiWriter).await;
    fill(&storage, 20_000).await;
    let path = base.path().join("new/copy");
    {
        let mut backup = std::pin::pin!(storage.backend().backup(&path));
        while !path.join("store.redb.new").exists() {
            assert!(futures_util::poll!(backup.as_mut()).is_pending());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    for _ in 0..1000 {
        if !base.path().join("new").exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!base.path().join("new").exists(), "the copy was given up");
    storage.backend().backup(&path).await.unwrap();
}

#[tokio::test]
async fn a_check_finds_unreadable_records_and_wrong_numbers() {
    let base = TempDir::new().unwrap();
    let storage = open(base.path(), Sharing::Exclusive).await;
    fill(&storage, 30).await;
    storage.set_config("a", json!(1)).await.unwrap();
    storage.increment_usage("u", "n", 1).await.unwrap();
    storage.increment_usage("u", "m", 1).await.unwrap();
    let report = storage.backend().check().await.unwrap();
    assert!(report.is_sound() && report.checksums_verified, "{report:?}");
    let count = |kind| report.records[kind].count;
    assert_eq!([count("credentials"), count("configs"), count("counters")], [30, 1, 2]);
    assert!(report.allocated_bytes > report.stored_bytes && report.stored_bytes > 30 * 600);
    storage.close().await.unwrap();

    let database = redb::Database::open(base.path().join("store.redb")).unwrap();
    let write = database.begin_write().unwrap();
    let table = redb::TableDefinition::<&[u8], &[u8]>::new("records");
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    write.open_table(table).unwrap().insert(&b"cfiller-3"[..], &b"{"[..]).unwrap();
    write.open_table(table).unwrap().insert(&b"uu\0n"[..], &b"1"[..]).unwrap();
    write.open_table(table).unwrap().insert(&b"?"[..], &b"1"[..]).unwrap();
    write.open_table(meta).unwrap().insert("configs", 7).unwrap();
    write.commit().unwrap();
    drop(database);
    let options = FileOptions::new(base.path()).with_verify(Verify::Unclean);
    let storage = Storage::<File>::open(options).await.unwrap();
    let report = storage.backend().check().await.unwrap();
    assert!(!report.is_sound() && !report.checksums_verified);
    let unreadable = |kind| {
        let records = &report.records[kind];
        (records.unreadable, records.unreadable_keys.iter().map(|key| key.as_str()).collect::<Vec<_>>())
    };
    assert_eq!(unreadable("credentials"), (1, vec!["filler-3"]));
    assert_eq!(unreadable("counters"), (1, vec!["u"]));
    assert_eq!(unreadable("unknown"), (1, vec![]));
    assert_eq!(unreadable("configs"), (0, vec![]));
    let wrong: Vec<_> =
        report.miscounts.iter().map(|wrong| (wrong.name, wrong.stored, wrong.found)).collect();
    assert!(wrong.contains(&("configs", 7, 1)), "{wrong:?}");
    assert!(wrong.iter().any(|(name, ..)| *name == "stored_bytes"), "{wrong:?}");
    assert!(!format!("{report:?}").contains("xxx"), "no value is in the report");
}
