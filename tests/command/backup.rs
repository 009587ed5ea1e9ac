//! `storage backup`, `compact` and `doctor --check`, beside a program that has the store open.

use gateway_storage::FileOptions;

use super::*;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn gateway(place: &Place) -> Storage<File> {
    Storage::open(FileOptions::new(place.path())).await.unwrap()
}

#[test]
fn a_backup_beside_a_gateway_is_a_store() {
    let (place, runtime) = (Place::new(), runtime());
    runtime.block_on(async {
        let gateway = gateway(&place).await;
        gateway.set_config("a", json!(1)).await.unwrap();
        gateway.set_credential("alice", json!({ "token": "t" })).await.unwrap();
        assert_eq!(gateway.stats().await.unwrap().last_backup, None);
        let copy = place.file("copies/first");
        let report = place.json(&["backup", copy.to_str().unwrap()]);
        assert_eq!((&report["records"], &report["is_recorded"]), (&json!(2), &json!(true)));
        assert_eq!(report["path"], copy.to_str().unwrap());
        assert!(gateway.stats().await.unwrap().last_backup.is_some(), "the gateway knows of it");
        gateway.set_config("a", json!(2)).await.unwrap();

        let url = format!("file:{}", copy.display());
        let restored = place.ok(&["--url", &url, "config", "get", "a"]);
        assert_eq!(restored, "1\n");
        assert!(place.ok(&["--url", &url, "credential", "get", "alice", "--reveal"]).contains("\"t\""));
        assert!(place.ok(&["stats"]).contains("last backup"));
        gateway.close().await.unwrap();
    });
}

#[test]
fn a_refused_backup_says_why() {
    let place = Place::new();
    place.ok(&["config", "set", "a", "1"]);
    fs::write(place.file("mine"), "mine").unwrap();
    let itself = place.path();
    for (target, why) in [
        (itself.to_str().unwrap(), "has the store itself"),
        (place.dir.path().to_str().unwrap(), "has other files and no store"),
        (place.file("mine").to_str().unwrap(), "is not a directory"),
    ] {
        let err = place.fails(2, &["backup", target]);
        assert!(err.contains(why), "{err}");
    }
    let err = place.fails(6, &["--url", "memory:", "backup", "copy"]);
    assert!(err.contains("`Memory` cannot be backed up as a directory; backends that can: `File`"), "{err}");
    assert!(!place.file("copy").exists());
}

#[test]
fn a_compaction_beside_a_gateway_shrinks_the_file_of_both() {
    let (place, runtime) = (Place::new(), runtime());
    runtime.block_on(async {
        let gateway = gateway(&place).await;
        for n in 0..40 {
            gateway.set_config(format!("k{n}"), json!("x".repeat(200_000))).await.unwrap();
        }
        for n in 1..40 {
            gateway.delete_config(format!("k{n}")).await.unwrap();
        }
        let size = || fs::metadata(place.path().join("store.redb")).unwrap().len();
        let before = size();
        let freed = place.json(&["compact"])["freed_bytes"].as_u64().unwrap();
        assert!(freed > 1 << 20 && before - size() == freed, "{before} {freed}");
        assert_eq!(gateway.list_configs().await.unwrap().len(), 1);
        gateway.set_config("after", json!(1)).await.unwrap();
        assert_eq!(place.ok(&["config", "get", "after"]), "1\n");
        place.ok(&["config", "set", "after", "2"]);
        assert_eq!(gateway.get_config("after").await.unwrap().value(), &json!(2));
        gateway.close().await.unwrap();
    });
    let err = place.fails(6, &["--url", "memory:", "compact"]);
    assert!(err.contains("`Memory` cannot be compacted; backends that can: `File`"), "{err}");
}

#[test]
fn a_check_says_what_is_damaged() {
    let place = Place::new();
    place.ok(&["credential", "set", "alice", r#"{"token":"secret"}"#]);
    place.ok(&["config", "set", "a", "1"]);
    let sound = place.json(&["doctor", "--check"]);
    assert_eq!((&sound["sound"], &sound["checksums"]), (&json!(true), &json!("verified")));
    assert_eq!(sound["records"]["credentials"]["count"], 1);
    let runtime = runtime();
    runtime.block_on(async {
        let gateway = gateway(&place).await;
        assert_eq!(place.json(&["doctor", "--check"])["checksums"], "not_verified");
        gateway.close().await.unwrap();
    });

    let file = place.path().join("store.redb");
    let database = redb::Database::open(&file).unwrap();
    let write = database.begin_write().unwrap();
    let records = redb::TableDefinition::<&[u8], &[u8]>::new("records");
    write.open_table(records).unwrap().insert(&b"calice"[..], &br#"["secret"]"#[..]).unwrap();
    write.commit().unwrap();
    drop(database);
    let ended = place.run(&["doctor", "--check"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.out.contains("1, of which 1 can't be read: alice"), "{}", ended.out);
    assert!(ended.err.contains("the store is damaged: 1 record can't be read"), "{}", ended.err);
    assert!(!format!("{}{}", ended.out, ended.err).contains("secret"));

    // A byte of a value, which no checksum of a record would find: there is none but the page's.
    place.ok(&["credential", "set", "alice", r#"{"token":"abcdefgh"}"#]);
    let mut bytes = fs::read(&file).unwrap();
    let places: Vec<usize> =
        bytes.windows(8).enumerate().filter(|(_, text)| text == b"abcdefgh").map(|(at, _)| at).collect();
    for at in places {
        bytes[at] = b'X';
    }
    fs::write(&file, &bytes).unwrap();
    let ended = place.run(&["--output", "json", "doctor", "--check"]);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    let report: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((&report["checksums"], &report["sound"]), (&json!("damaged"), &json!(false)));
    assert_eq!(fs::read(&file).unwrap(), bytes, "nothing is changed");

    let err = place.fails(6, &["--url", "memory:", "doctor", "--check"]);
    assert!(err.contains("`Memory` cannot be checked; backends that can: `File`"), "{err}");
}
