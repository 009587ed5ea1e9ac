//! A store of an earlier format that is killed while it is opened, which upgrades it.

use std::{fs, path::Path, time::Duration};

use gateway_storage::{File, Storage};
use redb::{ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};

use crate::{plans::rounds, report, run_and_kill, runtime};

const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const COUNT: u64 = 50_000;

/// Opens the store, which upgrades it.
pub(crate) fn opener(url: &str) {
    runtime().block_on(async {
        report("opening");
        let storage = Storage::<File>::open(url).await.unwrap();
        report("open");
        std::thread::sleep(Duration::from_secs(600));
        drop(storage);
    });
}

/// A store of format 2: half of its records are credentials, and the others are config values and counters.
fn make(file: &Path) {
    let database = redb::Database::create(file).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut records = transaction.open_table(RECORDS).unwrap();
        for n in 0..COUNT {
            let (name, value) = match n % 4 {
                0 | 1 => (format!("cid-{n}"), format!(r#"{{"n":{n}}}"#).into_bytes()),
                2 => (format!("fkey-{n}"), n.to_string().into_bytes()),
                _ => (format!("uuser-{}\0{n}", n / 8), n.to_be_bytes().to_vec()),
            };
            records.insert(name.as_bytes(), value.as_slice()).unwrap();
        }
        transaction.open_table(META).unwrap().insert("format", 2).unwrap();
    }
    transaction.commit().unwrap();
}

pub(crate) fn killed() {
    let folder = tempfile::TempDir::new().unwrap();
    let (whole, path) = (folder.path().join("whole.redb"), folder.path().join("store"));
    make(&whole);
    fs::create_dir(&path).unwrap();
    let file = path.join("store.redb");
    let (runtime, rounds) = (runtime(), rounds(20));
    let url = format!("file:{}", path.display());
    let (mut before, mut after) = (0, 0);
    for round in 0..rounds {
        // Half are killed at the beginning of the upgrade, and half within the time that all of it takes.
        let longest = if round % 2 == 0 { 20_000 } else { 200_000 };
        fs::copy(&whole, &file).unwrap();
        run_and_kill(&["--open", &url], Duration::from_micros(longest * ((round * 617 + 300) % 1000) / 1000));
        let database = redb::Database::open(&file).expect("the engine opens it");
        let read = database.begin_read().unwrap();
        assert_eq!(read.open_table(RECORDS).unwrap().len().unwrap(), COUNT, "no record is lost");
        let meta = read.open_table(META).unwrap();
        match meta.get("format").unwrap().unwrap().value() {
            2 => {
                before += 1;
                assert_eq!(meta.len().unwrap(), 1, "it is upgraded in part");
            }
            3 => after += 1,
            other => panic!("format {other}"),
        }
        drop((meta, read, database));
        runtime.block_on(async {
            let storage = Storage::<File>::open(url.as_str()).await.expect("it opens after a kill");
            let stats = storage.stats().await.unwrap();
            let counts = (stats.credential_count, stats.config_count, stats.usage_record_count);
            assert_eq!(counts, (COUNT / 2, COUNT / 4, COUNT / 8));
            assert_eq!(stats.details["format_version"], 3);
            storage.close().await.unwrap();
        });
    }
    println!("{rounds} kills: {before} before the upgrade was committed, {after} after it");
    assert!(before > 0, "no kill came before the end of the upgrade");
}
