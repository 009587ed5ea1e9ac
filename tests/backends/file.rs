//! The File backend's own guarantees: what it opens, what it refuses, and what it leaves unchanged.

use std::{
    fs::{self, Permissions},
    future::{Future, poll_fn},
    hint::black_box,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    pin::pin,
    process::Command,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt};
use gateway_storage::{
    Credential, CredentialStore, Error, ErrorKind, Exportable, File, FileOptions, Increment, Key, Outcome,
    Record, Sharing, Storage,
    plan::{ApplyOptions, Plan},
};
use serde_json::json;
use tempfile::TempDir;

pub(crate) async fn open(path: impl Into<PathBuf>) -> Result<Storage<File>, Error> {
    Storage::open(FileOptions::new(path)).await
}

pub(crate) async fn exclusive(path: impl Into<PathBuf>) -> Result<Storage<File>, Error> {
    shared(path, Sharing::Exclusive).await
}

pub(crate) async fn shared(path: impl Into<PathBuf>, shared: Sharing) -> Result<Storage<File>, Error> {
    Storage::open(FileOptions::new(path).with_shared(shared)).await
}

pub(crate) async fn reading(path: impl Into<PathBuf>, shared: Sharing) -> Result<Storage<File>, Error> {
    Storage::open(FileOptions::new(path).with_shared(shared).with_read_only(true)).await
}

pub(crate) async fn refused(path: impl Into<PathBuf>) -> (ErrorKind, String) {
    let error = open(path).await.expect_err("the store should be refused");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    (error.kind(), error.to_string())
}

pub(crate) fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Every file in a directory, with its content.
pub(crate) fn contents(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path))
        } else {
            found.push((path.clone(), fs::read(path).unwrap()))
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_missing_directory_and_an_empty_one_become_stores() {
    let base = TempDir::new().unwrap();
    let empty = base.path().join("empty");
    fs::create_dir(&empty).unwrap();
    for path in [empty, base.path().join("missing/below/missing")] {
        let storage = open(&path).await.unwrap();
        storage.set_config("a", json!(1)).await.unwrap();
        storage.close().await.unwrap();
        assert_eq!(open(&path).await.unwrap().get_config("a").await.unwrap().value(), &json!(1));
    }
}

#[tokio::test]
async fn a_missing_store_is_not_found_unless_it_may_be_created() {
    let base = TempDir::new().unwrap();
    let missing = base.path().join("missing");
    for path in [missing.clone(), base.path().to_owned()] {
        let mut config = FileOptions::new(path);
        config.create = false;
        let error = Storage::<File>::open(config).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().starts_with("there is no store in "), "{error}");
    }
    assert!(!missing.exists());
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_directory_with_other_files_is_unchanged() {
    let base = TempDir::new().unwrap();
    fs::create_dir(base.path().join("credentials")).unwrap();
    fs::write(base.path().join("store.redb.new"), "not empty").unwrap();
    fs::write(base.path().join("credentials/a.json"), "{}").unwrap();
    fs::set_permissions(base.path(), Permissions::from_mode(0o755)).unwrap();
    let before = contents(base.path());
    let (kind, message) = refused(base.path()).await;
    assert_eq!(kind, ErrorKind::InvalidValue);
    assert!(message.ends_with("has other files and no store; name an empty or a new directory"), "{message}");
    assert_eq!(contents(base.path()), before);
    assert_eq!(mode(base.path()), 0o755);
}

#[tokio::test]
async fn a_store_is_opened_for_reading_without_a_change() {
    let base = TempDir::new().unwrap();
    let path = base.path().join("store");
    let read_only = || reading(&path, Sharing::Exclusive);
    assert_eq!(read_only().await.unwrap_err().kind(), ErrorKind::NotFound);
    let storage = exclusive(&path).await.unwrap();
    storage.set_config("a", json!(1)).await.unwrap();
    assert_eq!(read_only().await.unwrap_err().kind(), ErrorKind::Busy, "it is being written");
    let unclean = base.path().join("unclean");
    fs::create_dir(&unclean).unwrap();
    fs::copy(path.join("store.redb"), unclean.join("store.redb")).unwrap();
    storage.close().await.unwrap();

    fs::set_permissions(&path, Permissions::from_mode(0o500)).unwrap();
    fs::set_permissions(path.join("store.redb"), Permissions::from_mode(0o400)).unwrap();
    let before = contents(&path);
    let (one, two) = (read_only().await.unwrap(), read_only().await.expect("readers share a store"));
    assert_eq!(one.get_config("a").await.unwrap().value(), &json!(1));
    assert_eq!(two.export().count().await, 1);
    two.health().await.unwrap();
    let error = one.set_config("a", json!(2)).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Denied, Outcome::NotApplied));
    assert_eq!(one.backend().compact().await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(one.stats().await.unwrap().details["read_only"], json!(true));
    one.clone().close().await.unwrap();
    for error in [one.get_config("a").await.unwrap_err(), one.set_config("a", json!(2)).await.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Closed);
    }
    assert_eq!(one.health().await.unwrap_err().kind(), ErrorKind::Closed);
    one.close().await.expect("closing again is fine");
    assert_eq!(contents(&path), before);
    fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(path.join("store.redb"), Permissions::from_mode(0o600)).unwrap();
    for mode in [Sharing::Exclusive, Sharing::SingleWriter, Sharing::MultiWriter] {
        assert_eq!(shared(&path, mode).await.unwrap_err().kind(), ErrorKind::Busy, "one is reading");
    }
    fs::rename(&path, base.path().join("moved")).unwrap();
    assert_eq!(two.health().await.unwrap_err().kind(), ErrorKind::Unavailable);
    drop(two);

    let before = contents(&unclean);
    for mode in [Sharing::Exclusive, Sharing::SingleWriter, Sharing::MultiWriter] {
        let error = reading(&unclean, mode).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, false));
        assert!(error.to_string().contains("copy the directory to a writable location"), "{error}");
    }
    assert_eq!(contents(&unclean), before);
    assert_eq!(open(&unclean).await.unwrap().get_config("a").await.unwrap().value(), &json!(1));
}

#[tokio::test]
async fn opening_waits_for_a_store_that_is_open_elsewhere() {
    let base = TempDir::new().unwrap();
    let storage = exclusive(base.path()).await.unwrap();
    let waiting = |wait| Storage::<File>::open(FileOptions::new(base.path()).with_wait(wait));
    let begun = Instant::now();
    let error = waiting(Duration::from_millis(120)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(begun.elapsed() >= Duration::from_millis(120));
    // A dropped `open` does not open the store later.
    assert!(tokio::time::timeout(Duration::from_millis(60), waiting(Duration::from_secs(60))).await.is_err());
    let (opened, ()) = tokio::join!(waiting(Duration::from_secs(60)), async {
        tokio::time::sleep(Duration::from_millis(120)).await;
        storage.close().await.unwrap();
    });
    opened.unwrap().set_config("a", json!(1)).await.unwrap();
}

#[tokio::test]
async fn a_plain_file_is_unchanged() {
    let base = TempDir::new().unwrap();
    let file = base.path().join("file");
    fs::write(&file, "mine").unwrap();
    let (kind, message) = refused(&file).await;
    assert_eq!(kind, ErrorKind::InvalidValue);
    assert!(message.ends_with("is not a directory"), "{message}");
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

#[tokio::test]
async fn symbolic_links_are_not_followed() {
    let base = TempDir::new().unwrap();
    let (real, link) = (base.path().join("real"), base.path().join("link"));
    open(&real).await.unwrap().close().await.unwrap();
    symlink(&real, &link).unwrap();
    for link in [link.clone(), link.join("")] {
        let (kind, message) = refused(&link).await;
        assert_eq!(kind, ErrorKind::InvalidValue);
        assert!(message.ends_with("is a symbolic link; name the directory itself"), "{message}");
    }

    let victim = base.path().join("victim");
    fs::rename(real.join("store.redb"), &victim).unwrap();
    symlink(&victim, real.join("store.redb")).unwrap();
    let before = fs::read(&victim).unwrap();
    let (kind, message) = refused(&real).await;
    assert_eq!(kind, ErrorKind::InvalidValue);
    assert!(message.ends_with("is a symbolic link; a store's file is never one"), "{message}");
    assert_eq!(fs::read(&victim).unwrap(), before);
}

#[tokio::test]
async fn an_unfinished_store_is_created_again() {
    let base = TempDir::new().unwrap();
    fs::write(base.path().join("store.redb.new"), "half").unwrap();
    open(base.path()).await.unwrap().set_config("a", json!(1)).await.unwrap();
    assert!(!base.path().join("store.redb.new").exists());
}

/// Plans and their audit belong to this store only.
#[tokio::test]
async fn plans_are_not_exported() {
    let base = TempDir::new().unwrap();
    let storage = open(base.path()).await.unwrap();
    let plan = Plan::from_json(r#"[{"set":"a","value":1}]"#).unwrap();
    storage.apply_plan("k", &plan, &ApplyOptions::default()).await.unwrap();
    let exported: Vec<_> = StreamExt::collect(storage.export()).await;
    assert_eq!(exported.len(), 1, "the config value, and nothing else");
}

#[tokio::test]
async fn damage_is_corrupt_and_is_not_repaired() {
    let base = TempDir::new().unwrap();
    let file = base.path().join("store.redb");
    let storage = open(base.path()).await.unwrap();
    storage.set_config("a", json!(1)).await.unwrap();
    storage.close().await.unwrap();
    let whole = fs::read(&file).unwrap();
    for damaged in
        [Vec::new(), b"not a database at all".to_vec(), vec![0; 1 << 16], whole[..whole.len() / 2].to_vec()]
    {
        fs::write(&file, &damaged).unwrap();
        let (kind, message) = refused(base.path()).await;
        assert_eq!(kind, ErrorKind::Corrupt, "{message}");
        assert_eq!(fs::read(&file).unwrap(), damaged, "a damaged file is evidence and is unchanged");
    }
    fs::write(&file, &whole).unwrap();
    assert_eq!(open(base.path()).await.unwrap().get_config("a").await.unwrap().value(), &json!(1));
}

/// Writes raw records into the store's file, as an earlier version did, which did not count them.
pub(crate) fn plant(base: &Path, records: &[(&[u8], &[u8])]) {
    const RECORDS: redb::TableDefinition<'_, &[u8], &[u8]> = redb::TableDefinition::new("records");
    let database = redb::Database::open(base.join("store.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut table = transaction.open_table(RECORDS).unwrap();
        for (name, bytes) in records {
            table.insert(name, bytes).unwrap();
        }
        let meta = redb::TableDefinition::<&str, u64>::new("meta");
        transaction.open_table(meta).unwrap().insert("format", 2).unwrap();
    }
    transaction.commit().unwrap();
}

#[tokio::test]
async fn an_export_of_many_pieces_ends_with_its_first_unreadable_record() {
    let base = TempDir::new().unwrap();
    let storage = open(base.path()).await.unwrap();
    let many: Vec<_> = (0..2000).map(|n| (format!("{n:04}"), json!({ "n": n }))).collect();
    assert!(storage.set_credentials(many).await.unwrap().is_complete());
    storage.close().await.unwrap();
    plant(base.path(), &[(b"c0000a", b"{"), (b"c1000a", b"{")]);
    let storage = open(base.path()).await.unwrap();
    let mut exported: Vec<_> = storage.export().collect().await;
    let error = exported.pop().unwrap().unwrap_err();
    assert_eq!((error.kind(), error.key().map(Key::as_str)), (ErrorKind::Corrupt, Some("0000a")));
    assert_eq!(exported.len(), 2000);
    assert!(exported.into_iter().enumerate().all(|(n, record)| {
        matches!(record.unwrap(), Record::Credential { id, .. } if id.as_str() == format!("{n:04}"))
    }));
}

#[tokio::test]
async fn an_unreadable_record_affects_only_its_key() {
    let base = TempDir::new().unwrap();
    let storage = open(base.path()).await.unwrap();
    storage.set_credential("a", json!({ "token": 1 })).await.unwrap();
    storage.set_config("a", json!(1)).await.unwrap();
    storage.increment_usage("a", "n", 1).await.unwrap();
    storage.close().await.unwrap();
    let (name, key) = (|text: &str| text.as_bytes().to_vec(), |text: &str| Key::new(text).unwrap());
    plant(
        base.path(),
        &[
            (&name("cbad"), b"{\"secret\": 18446744073709551617}"),
            (&name("fbad"), b"1e400"),
            (&name("pbad"), b"{}"),
            (&name("ubad\0n"), b"short"),
            (&[&b"a"[..], &7_u64.to_be_bytes()].concat(), b"secret"),
        ],
    );

    let storage = open(base.path()).await.unwrap();
    let corrupt = |error: Error| {
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Corrupt, Outcome::NotApplied), "{error}");
        assert!(!format!("{error:?}").contains("secret"));
        error.key().cloned()
    };
    // Readable records are unchanged.
    assert_eq!(storage.get_credential("a").await.unwrap().get("token"), Some(&json!(1)));
    assert_eq!(storage.get_config("a").await.unwrap().value(), &json!(1));
    assert_eq!(storage.get_usage("a").await.unwrap().get("n"), Some(1));
    assert_eq!(storage.list_credentials().await.unwrap(), [key("a"), key("bad")]);
    // Unreadable ones are errors, never a value and never missing.
    assert_eq!(corrupt(storage.get_credential("bad").await.unwrap_err()), Some(key("bad")));
    let found = storage.get_credentials(&[key("bad"), key("a"), key("none")]).await.unwrap();
    let kinds: Vec<_> = found.failures.iter().map(|failure| (failure.index, failure.error.kind())).collect();
    assert_eq!(kinds, [(0, ErrorKind::Corrupt), (2, ErrorKind::NotFound)]);
    assert_eq!(corrupt(storage.get_config("bad").await.unwrap_err()), Some(key("bad")));
    corrupt(storage.list_configs().await.unwrap_err());
    corrupt(storage.get_usage("bad").await.unwrap_err());
    corrupt(storage.list_usage().await.unwrap_err());
    corrupt(storage.increment_usage("bad", "n", 1).await.unwrap_err());
    assert_eq!(storage.increment_usage("bad", "other", 1).await.unwrap(), 1);
    let exported: Vec<_> = storage.export().collect().await;
    assert_eq!(exported.len(), 5, "three readable records, a counter beside a damaged one, and an error");
    assert!(exported[..4].iter().all(Result::is_ok));
    corrupt(exported.into_iter().last().unwrap().unwrap_err());
    // A plan neither replaces a value that it can't restore nor takes a key that is in use.
    let options = ApplyOptions::default();
    let touching = Plan::from_json(r#"[{"set":"bad","value":1,"expect_absent":true}]"#).unwrap();
    let elsewhere = Plan::from_json(r#"[{"set":"b","value":1}]"#).unwrap();
    corrupt(storage.apply_plan("new", &touching, &options).await.unwrap_err());
    corrupt(storage.apply_plan("bad", &elsewhere, &options).await.unwrap_err());
    corrupt(storage.rollback_plan("bad", &Default::default()).await.unwrap_err());
    storage.apply_plan("new", &elsewhere, &options).await.unwrap();
    let audit: Vec<_> = storage.audit_plans(Default::default()).collect().await;
    assert!(audit.len() == 2 && audit[0].is_ok() && audit[1].is_err());
    let stats = storage.stats().await.unwrap();
    assert_eq!((stats.credential_count, stats.config_count), (2, 3));

    // Writing and deleting repair it permanently.
    storage.set_credential("bad", json!({})).await.unwrap();
    storage.delete_config("bad").await.unwrap();
    storage.reset_usage("bad").await.unwrap();
    for after in ["open", "opened again"] {
        let storage = if after == "open" { storage.clone() } else { open(base.path()).await.unwrap() };
        storage.get_credential("bad").await.unwrap();
        for error in
            [storage.get_config("bad").await.unwrap_err(), storage.get_usage("bad").await.unwrap_err()]
        {
            assert_eq!(error.kind(), ErrorKind::NotFound, "{after}");
        }
        assert_eq!(storage.list_configs().await.unwrap().len(), 2);
        assert!(storage.export().all(|record| async move { record.is_ok() }).await);
        storage.close().await.unwrap();
    }
}

#[tokio::test]
async fn only_its_owner_can_access_the_store() {
    let base = TempDir::new().unwrap();
    let path = base.path().join("store");
    open(&path).await.unwrap().close().await.unwrap();
    assert_eq!((mode(&path), mode(&path.join("store.redb"))), (0o700, 0o600));

    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(path.join("store.redb"), Permissions::from_mode(0o644)).unwrap();
    open(&path).await.unwrap().close().await.unwrap();
    assert_eq!((mode(&path), mode(&path.join("store.redb"))), (0o700, 0o600));
}

#[tokio::test]
async fn hostile_ids_do_not_escape_the_directory() {
    let base = TempDir::new().unwrap();
    fs::write(base.path().join("victim.json"), "{}").unwrap();
    let path = base.path().join("store");
    let storage = open(&path).await.unwrap();
    let long = "x".repeat(255);
    let ids = ["../../escape", "../victim", "a/b", "CON", "con", ".", "..", "%2e", "*", "/etc/passwd", &long];
    for id in ids {
        storage.set_credential(id, json!({ "id": id })).await.unwrap();
    }
    storage.close().await.unwrap();

    let storage = open(&path).await.unwrap();
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    let listed = storage.list_credentials().await.unwrap();
    assert_eq!(listed.iter().map(Key::as_str).collect::<Vec<_>>(), sorted);
    for id in ids {
        assert_eq!(storage.get_credential(id).await.unwrap().get("id"), Some(&json!(id)));
        storage.delete_credential(id).await.unwrap();
    }
    storage.close().await.unwrap();
    let names: Vec<_> = contents(base.path()).into_iter().map(|(path, _)| path).collect();
    let expected = [path.join("store.redb"), path.join("store.reserve"), base.path().join("victim.json")];
    assert_eq!(names, expected);
}

#[tokio::test]
async fn a_deleted_credential_does_not_come_back() {
    let base = TempDir::new().unwrap();
    let storage = open(base.path()).await.unwrap();
    let ids = ["a", "b", "c"].map(|id| Key::new(id).unwrap());
    for id in &ids {
        storage.set_credential(id, json!({ "n": 1 })).await.unwrap();
    }
    storage.delete_credential("a").await.unwrap();
    let report = storage.delete_credentials(&ids).await.unwrap();
    assert_eq!((report.succeeded, report.failures.len(), report.failures[0].index), (2, 1, 0));
    drop(storage);
    assert_eq!(open(base.path()).await.unwrap().list_credentials().await.unwrap(), []);
}

#[tokio::test]
async fn the_file_shrinks_when_it_is_compacted() {
    let base = TempDir::new().unwrap();
    let storage = open(base.path()).await.unwrap();
    let big = json!({ "text": "x".repeat(100_000) });
    let ids: Vec<Key> = (0..100).map(|n| Key::new(&format!("id-{n}")).unwrap()).collect();
    for id in &ids {
        storage.set_credential(id, big.clone()).await.unwrap();
    }
    assert!(storage.delete_credentials(&ids[1..]).await.unwrap().is_complete());
    let saved = storage.backend().compact().await.unwrap();
    assert!(saved > 1 << 20, "only {saved} bytes");
    storage.close().await.unwrap();
    let storage = open(base.path()).await.unwrap();
    assert_eq!(storage.get_credential(&ids[0]).await.unwrap(), big.try_into().unwrap());
    assert_eq!(storage.backend().list_credentials().await.unwrap(), ids[..1]);
}

#[tokio::test]
async fn a_path_that_is_not_unicode_is_a_path() {
    use std::os::unix::ffi::OsStrExt;

    let base = TempDir::new().unwrap();
    let storage = open(base.path().join(std::ffi::OsStr::from_bytes(b"n\xff"))).await.unwrap();
    let stats = storage.stats().await.unwrap();
    assert!(stats.healthy && stats.total_size > Some(0));
}

/// Writes to a removed file would be lost when it is closed.
#[tokio::test]
async fn the_next_write_and_health_detect_a_removed_or_replaced_directory() {
    for replaced in [false, true] {
        for asks in ["a write", "health", "a compaction"] {
            let base = TempDir::new().unwrap();
            let path = base.path().join("store");
            let storage = open(&path).await.unwrap();
            storage.set_config("a", json!(1)).await.unwrap();
            storage.health().await.unwrap();
            if replaced {
                let old = base.path().join("old");
                fs::rename(&path, &old).unwrap();
                let copied = Command::new("cp").arg("-a").args([&old, &path]).status().unwrap();
                assert!(copied.success());
            } else {
                fs::remove_dir_all(&path).unwrap();
            }
            let error = match asks {
                "a write" => storage.set_config("a", json!(2)).await.unwrap_err(),
                "health" => storage.health().await.unwrap_err(),
                _ => storage.backend().compact().await.unwrap_err(),
            };
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
            assert!(!error.is_retryable(), "an operator must act");
            assert!(error.to_string().contains("open it again"), "{error}");
            storage.set_config("b", json!(1)).await.unwrap_err();
            storage.health().await.unwrap_err();
            assert!(!storage.stats().await.unwrap().healthy);
            assert_eq!(storage.get_config("a").await.unwrap().value(), &json!(1), "reads go on");
            storage.close().await.unwrap();
            if replaced {
                assert_eq!(open(&path).await.unwrap().get_config("a").await.unwrap().value(), &json!(1));
            }
        }
    }
}

/// The duration of the longest poll of a call, and of the whole call. During a poll its thread does nothing
/// else.
async fn polled<T>(call: impl Future<Output = T>) -> (Duration, Duration) {
    let (mut call, mut longest, begun) = (pin!(call), Duration::ZERO, Instant::now());
    let done = poll_fn(|context| {
        let polled = Instant::now();
        let state = call.as_mut().poll(context);
        longest = longest.max(polled.elapsed());
        state
    });
    drop(black_box(done.await));
    (longest, begun.elapsed())
}

/// Asserts that the longest poll of a call takes less than a quarter of `whole`, or else of the call's own
/// duration. One of twenty attempts is enough, because another process may interrupt the thread.
async fn leaves_room<F: Future>(what: &str, whole: Option<Duration>, call: impl Fn() -> F) {
    let mut seen = Vec::new();
    for _ in 0..20 {
        let (longest, all) = polled(call()).await;
        if longest * 4 < whole.unwrap_or(all) {
            return;
        }
        seen.push((longest, all));
    }
    panic!("{what} keeps its thread: {seen:?}, {whole:?}");
}

#[tokio::test]
async fn large_calls_do_not_block_the_thread() {
    const MANY: usize = 100_000;
    let base = TempDir::new().unwrap();
    let mut config = FileOptions::new(base.path());
    config.deadline = Duration::from_secs(120);
    let storage = Storage::<File>::open(config).await.unwrap();
    let key = |n: usize| Key::new(&format!("key {n}")).unwrap();
    let credentials: Vec<(Key, Credential)> =
        (0..MANY).map(|n| (key(n), json!({ "token": "x".repeat(50), "n": n }).try_into().unwrap())).collect();
    let ids: Vec<Key> = credentials.iter().map(|(id, _)| id.clone()).collect();
    let mut records: Vec<Record> = ids
        .iter()
        .map(|key| Record::Config { key: key.clone(), value: json!(1).try_into().unwrap() })
        .collect();
    let field = key(0);
    records.extend(ids.iter().map(|key| Record::Usage { key: key.clone(), field: field.clone(), count: 1 }));
    assert!(storage.set_credentials(&credentials).await.unwrap().is_complete());
    assert!(storage.backend().import(&records).await.unwrap().is_complete());
    let wide = key(MANY);
    let increments: Vec<Increment> = ids.iter().map(|id| Increment::new(&wide, id, 1)).collect();
    assert!(storage.increment_many(&increments).await.unwrap().is_complete());

    leaves_room("list_credentials", None, || storage.list_credentials()).await;
    leaves_room("list_configs", None, || storage.list_configs()).await;
    leaves_room("list_usage", None, || storage.list_usage()).await;
    leaves_room("get_usage", None, || storage.get_usage(&wide)).await;
    leaves_room("get_credentials", None, || storage.get_credentials(&ids)).await;
    leaves_room("export", None, || storage.export().collect::<Vec<_>>()).await;

    // The committer's time does not count, so writes are compared with the encoding alone.
    let whole = |encode: &dyn Fn()| {
        let begun = Instant::now();
        encode();
        begun.elapsed()
    };
    let encoding =
        whole(&|| credentials.iter().for_each(|(_, credential)| drop(black_box(credential.to_json()))));
    leaves_room("set_credentials", Some(encoding), || storage.set_credentials(&credentials)).await;
    let records: Vec<Record> = credentials
        .iter()
        .map(|(id, credential)| Record::Credential { id: id.clone(), credential: credential.clone() })
        .collect();
    leaves_room("import", Some(encoding), || storage.backend().import(&records)).await;
    let copying = whole(&|| drop(black_box(increments.to_vec())));
    leaves_room("increment_many", Some(copying), || storage.increment_many(&increments)).await;
    storage.close().await.unwrap();
}

/// Calls with few records do not switch threads.
#[tokio::test]
async fn small_calls_are_answered_directly() {
    let base = TempDir::new().unwrap();
    let storage = open(base.path()).await.unwrap();
    storage.set_credential("a", json!({})).await.unwrap();
    storage.set_config("a", json!(1)).await.unwrap();
    storage.increment_usage("a", "n", 1).await.unwrap();
    let ids = [Key::new("a").unwrap()];
    assert_eq!(storage.list_credentials().now_or_never().unwrap().unwrap().len(), 1);
    assert_eq!(storage.list_configs().now_or_never().unwrap().unwrap().len(), 1);
    assert_eq!(storage.list_usage().now_or_never().unwrap().unwrap().len(), 1);
    assert_eq!(storage.get_usage("a").now_or_never().unwrap().unwrap().len(), 1);
    assert_eq!(storage.get_credentials(&ids).now_or_never().unwrap().unwrap().values.len(), 1);
}
