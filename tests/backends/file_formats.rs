//! The formats of a File store: older ones, a newer one, and other databases.

use std::{fs, path::Path, time::Duration};

use futures_util::StreamExt;
use gateway_storage::{
    ErrorKind, File, FileOptions, Sharing, Storage,
    lease::{Claim, Holder},
    plan::{Applied, ApplyOptions, Plan},
};
use serde_json::json;
use tempfile::TempDir;

use super::file::{contents, mode, open, reading, refused};

/// A store from before plans.
#[tokio::test]
async fn an_older_format_becomes_this_one() {
    let base = TempDir::new().unwrap();
    let storage = open(base.path()).await.unwrap();
    storage.set_config("a", json!(1)).await.unwrap();
    storage.close().await.unwrap();
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    let database = || redb::Database::open(base.path().join("store.redb")).unwrap();
    let older = database();
    let write = older.begin_write().unwrap();
    write.open_table(meta).unwrap().insert("format", 1).unwrap();
    write.commit().unwrap();
    drop(older);

    let storage = open(base.path()).await.unwrap();
    assert_eq!(storage.get_config("a").await.unwrap().value(), &json!(1));
    let plan = Plan::from_json(r#"[{"delete":"a"}]"#).unwrap();
    storage.apply_plan("k", &plan, &ApplyOptions::default()).await.unwrap();
    storage.close().await.unwrap();
    let newer = database();
    let read = redb::ReadableDatabase::begin_read(&newer).unwrap();
    assert_eq!(read.open_table(meta).unwrap().get("format").unwrap().unwrap().value(), 3);
}

const META: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
const EXPIRIES: redb::TableDefinition<'_, (i64, &str), ()> = redb::TableDefinition::new("plan_expiries");

/// The numbers of the table `meta`, and the times and keys of plans that will expire.
type Numbers = (Vec<(String, u64)>, Vec<(i64, String)>);

/// The numbers about a closed store, and when its plans expire.
fn numbers(base: &Path) -> Numbers {
    let database = redb::Database::open(base.join("store.redb")).unwrap();
    let read = redb::ReadableDatabase::begin_read(&database).unwrap();
    let meta = read.open_table(META).unwrap();
    let numbers = redb::ReadableTable::iter(&meta).unwrap().map(|number| {
        let (name, number) = number.unwrap();
        (name.value().to_owned(), number.value())
    });
    let numbers = numbers.filter(|(name, number)| name != "commits" && *number > 0).collect();
    let expiries = read.open_table(EXPIRIES).unwrap();
    let expiries = redb::ReadableTable::iter(&expiries).unwrap().map(|expiry| {
        let expiry = expiry.unwrap().0;
        (expiry.value().0, expiry.value().1.to_owned())
    });
    (numbers, expiries.collect())
}

/// A store of the format before the numbers of records and the order in which plans expire.
#[tokio::test]
async fn a_store_without_numbers_is_counted() {
    let base = TempDir::new().unwrap();
    let storage = open(base.path()).await.unwrap();
    for n in 0..20 {
        storage.set_credential(format!("id-{n}"), json!({ "n": n })).await.unwrap();
        storage.increment_usage(format!("user-{}", n % 7), format!("field-{n}"), n).await.unwrap();
    }
    for n in 0..5 {
        let plan = Plan::from_json(format!(r#"[{{"set":"key-{n}","value":{n}}}]"#)).unwrap();
        let options = ApplyOptions::default().with_ttl(Duration::from_secs(3600 * (10 - n)));
        storage.apply_plan(format!("plan-{n}"), &plan, &options).await.unwrap();
    }
    let short = ApplyOptions::default().with_ttl(Duration::from_millis(1));
    let plan = Plan::from_json(r#"[{"set":"a","value":1}]"#).unwrap();
    storage.apply_plan("expired", &plan, &short).await.unwrap();
    storage.close().await.unwrap();
    let wanted = numbers(base.path());
    assert_eq!(wanted.1.len(), 6);

    let database = redb::Database::open(base.path().join("store.redb")).unwrap();
    let write = database.begin_write().unwrap();
    write.delete_table(EXPIRIES).unwrap();
    write.open_table(META).unwrap().retain(|name, _| name == "format").unwrap();
    write.open_table(META).unwrap().insert("format", 2).unwrap();
    write.commit().unwrap();
    drop(database);

    let before = contents(base.path());
    for mode in [Sharing::Exclusive, Sharing::SingleWriter, Sharing::MultiWriter] {
        let reader = reading(base.path(), mode).await.unwrap();
        let stats = reader.stats().await.unwrap();
        assert_eq!((stats.credential_count, stats.config_count, stats.usage_record_count), (20, 6, 7));
        assert_eq!(reader.list_credentials().await.unwrap().len(), 20);
        assert_eq!(reader.get_config("key-3").await.unwrap().value(), &json!(3));
        reader.close().await.unwrap();
    }
    assert_eq!(contents(base.path()), before, "reading it changes nothing");

    let storage = open(base.path()).await.unwrap();
    let stats = storage.stats().await.unwrap();
    assert_eq!((stats.credential_count, stats.config_count, stats.usage_record_count), (20, 6, 7));
    storage.close().await.unwrap();
    assert_eq!(numbers(base.path()), wanted);

    // The plan that has expired is forgotten with the next one, and the others are known.
    let storage = open(base.path()).await.unwrap();
    let options = ApplyOptions::default();
    storage.apply_plan("new", &plan, &options).await.unwrap();
    let known = Plan::from_json(r#"[{"set":"key-1","value":1}]"#).unwrap();
    assert_eq!(storage.apply_plan("plan-1", &known, &options).await.unwrap(), Applied::Replayed);
    storage.close().await.unwrap();
    let keys: Vec<_> = numbers(base.path()).1.into_iter().map(|(_, key)| key).collect();
    assert!(!keys.contains(&"expired".to_owned()) && keys.len() == 6, "{keys:?}");
}

/// A version without leases opens a store with some, as this version opens one with a table of a later one.
#[tokio::test]
async fn a_store_from_before_leases_gets_their_table_and_other_tables_stay() {
    let base = TempDir::new().unwrap();
    let storage = open(base.path()).await.unwrap();
    storage.set_config("a", json!(1)).await.unwrap();
    storage.close().await.unwrap();
    let tables = || {
        let database = redb::Database::open(base.path().join("store.redb")).unwrap();
        let read = redb::ReadableDatabase::begin_read(&database).unwrap();
        let mut names: Vec<_> =
            read.list_tables().unwrap().map(|table| redb::TableHandle::name(&table).to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(tables(), ["meta", "plan_expiries", "records"], "a store that has had no lease");
    let database = redb::Database::open(base.path().join("store.redb")).unwrap();
    let write = database.begin_write().unwrap();
    let later = redb::TableDefinition::<&[u8], &[u8]>::new("later");
    write.open_table(later).unwrap().insert(&b"a"[..], &b"b"[..]).unwrap();
    write.commit().unwrap();
    drop(database);

    let storage = open(base.path()).await.unwrap();
    assert!(storage.list_leases().await.unwrap().is_empty());
    let claim = storage.claim_lease("a", &Holder::random(), Duration::from_secs(60)).await.unwrap();
    storage.close().await.unwrap();
    assert_eq!(tables(), ["later", "leases", "meta", "plan_expiries", "records"]);

    let options = FileOptions::new(base.path()).with_read_only(true);
    let storage = Storage::<File>::open(options).await.unwrap();
    let states = storage.list_leases().await.unwrap();
    let Claim::Yours(lease) = claim else { panic!("no holder had the lease") };
    assert_eq!((states.len(), states[0].holder.as_ref()), (1, Some(lease.holder())));
    let renewed = storage.renew_lease(&lease, Duration::from_secs(60)).await;
    assert_eq!(renewed.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(StreamExt::count(storage.export()).await, 1, "leases are not exported");
}

#[tokio::test]
async fn a_newer_format_and_a_foreign_database_are_refused() {
    let base = TempDir::new().unwrap();
    let path = base.path().join("newer");
    open(&path).await.unwrap().close().await.unwrap();
    let database = redb::Database::open(path.join("store.redb")).unwrap();
    let write = database.begin_write().unwrap();
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    write.open_table(meta).unwrap().insert("format", 4).unwrap();
    write.commit().unwrap();
    drop(database);
    let (kind, message) = refused(&path).await;
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(message.ends_with("has format 4; this version reads formats up to 3"), "{message}");
    let database = redb::Database::open(path.join("store.redb")).unwrap();
    let format =
        redb::ReadableDatabase::begin_read(&database).unwrap().open_table(meta).unwrap().get("format");
    assert_eq!(format.unwrap().unwrap().value(), 4, "the newer version's file is unchanged");

    let path = base.path().join("foreign");
    fs::create_dir(&path).unwrap();
    drop(redb::Database::create(path.join("store.redb")).unwrap());
    let before = (contents(&path), mode(&path), mode(&path.join("store.redb")));
    let (kind, message) = refused(&path).await;
    assert_eq!((contents(&path), mode(&path), mode(&path.join("store.redb"))), before, "nothing is changed");
    assert_eq!(kind, ErrorKind::InvalidValue);
    assert!(message.ends_with("is a redb database, but not a store of this crate"), "{message}");
}
