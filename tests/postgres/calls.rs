//! Calls that are cut off, that cross each other, and what is said of them.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use gateway_storage::{
    Credential, ErrorKind, Increment, Key, Outcome, Postgres, Record, Storage, Transaction,
};
use serde_json::json;

use crate::{Result, config, key, open, raw, rounds, servers};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_call_leaves_no_transaction_and_no_reply_behind() -> Result {
    let url = format!("{}&application_name=dropper-{}", servers::postgres(), std::process::id());
    let storage = open(&url).await;
    for n in 0..8 {
        storage.set_config(&key(&format!("k{n}")), json!(n)).await?;
    }
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let storage = storage.clone();
            tokio::spawn(async move {
                let own = key(&format!("k{n}"));
                for round in 0..rounds(60) {
                    let patience = Duration::from_micros(fastrand::u64(..1500));
                    // A call of each kind is dropped somewhere.
                    let cut = async {
                        match round % 4 {
                            0 => drop(storage.get_config(&own).await),
                            1 => drop(storage.increment_usage(&own, "n", 1).await),
                            2 => {
                                let mut tx = storage.begin().await.unwrap();
                                drop(tx.set_config(&own, &config(json!("torn"))).await);
                                drop(tx.get_config(&own).await);
                                drop(tx.rollback().await);
                            }
                            _ => {
                                let mut records = std::pin::pin!(storage.export());
                                while records.next().await.is_some() {}
                            }
                        }
                    };
                    drop(tokio::time::timeout(patience, cut).await);
                    assert_eq!(
                        storage.get_config(&own).await.unwrap().value(),
                        &json!(n),
                        "another one's reply"
                    );
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let administrator = raw(&url).await;
    let dirty = "SELECT state, query FROM pg_stat_activity WHERE application_name = $1 AND state <> 'idle'";
    let name = format!("dropper-{}", std::process::id());
    let mut tries = 0;
    loop {
        let found = administrator.query(dirty, &[&name]).await.unwrap();
        let Some(row) = found.first() else { break };
        tries += 1;
        assert!(tries < 40, "left behind: {} {}", row.get::<_, &str>(0), row.get::<_, &str>(1));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let pool = storage.pool_stats().await?;
    assert!(pool.open <= pool.max && pool.waiting == 0, "{pool:?}");
    storage.close().await
}

/// The other order in each task.
fn shuffled(keys: &[Key]) -> Vec<Key> {
    let mut keys = keys.to_vec();
    fastrand::shuffle(&mut keys);
    keys
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_over_the_same_rows_never_deadlock() -> Result {
    let storage = open(&servers::postgres()).await.with_deadline(Duration::from_secs(60));
    let keys: Vec<Key> = (0..200).map(|n| key(&format!("{n:03}"))).collect();
    let tasks: Vec<_> = (0..12)
        .map(|task| {
            let (storage, keys) = (storage.clone(), keys.clone());
            tokio::spawn(async move {
                for round in 0..rounds(8) {
                    let mixed = shuffled(&keys);
                    let fields: Credential = json!({ "task": task }).try_into().unwrap();
                    let items: Vec<_> = mixed.iter().map(|id| (id.clone(), fields.clone())).collect();
                    let failures = match (task + round) % 4 {
                        0 => storage.set_credentials(&items).await.unwrap().failures,
                        1 => storage.delete_credentials(&mixed).await.unwrap().failures,
                        2 => {
                            let step = |key: &Key| Increment::new(key, key, 1);
                            let steps: Vec<_> = mixed.iter().map(step).collect();
                            storage.increment_many(&steps).await.unwrap().failures
                        }
                        _ => {
                            let record = |id: &Key| {
                                Ok(Record::Credential { id: id.clone(), credential: fields.clone() })
                            };
                            let records: Vec<_> = mixed.iter().map(record).collect();
                            storage.import(futures_util::stream::iter(records)).await.unwrap().failures
                        }
                    };
                    for failure in failures {
                        assert_eq!(failure.error.kind(), ErrorKind::NotFound, "{:?}", failure.error);
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let counted: i64 = storage.list_usage().await?.values().flat_map(|of| of.iter()).map(|(_, n)| n).sum();
    assert_eq!(counted, 200 * (rounds(8) as i64) * 3, "every increment of every batch");
    storage.close().await
}

/// Part of every key and value of the test below, and of its password.
const SECRET: &str = "s3cret-7f3a";

struct Listener {
    lines: AtomicUsize,
    leaks: Mutex<Vec<String>>,
}

static LISTENER: Listener = Listener { lines: AtomicUsize::new(0), leaks: Mutex::new(Vec::new()) };

impl Listener {
    fn hear(&self, line: String) {
        self.lines.fetch_add(1, Ordering::Relaxed);
        if line.contains(SECRET) {
            self.leaks.lock().unwrap().push(line);
        }
    }
}

impl log::Log for Listener {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.hear(format!("{} {}", record.target(), record.args()));
    }

    fn flush(&self) {}
}

struct Lines;

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LISTENER.hear(String::from_utf8_lossy(bytes).into_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_secret_reaches_a_log_or_an_error() -> Result {
    log::set_logger(&LISTENER).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(|| Lines).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let url = servers::postgres();
    let login = url.replace("://tester@", &format!("://tester:{SECRET}@"));
    for login in [login.clone(), format!("{login}&pgbouncer=true")] {
        let storage = open(&login).await;
        let (id, value) = (key(&format!("id {SECRET}")), json!({ "token": SECRET }));
        let credential: Credential = value.clone().try_into()?;
        storage.set_credential(&id, &credential).await?;
        storage.set_credentials(&[(id.clone(), credential.clone())]).await?.complete()?;
        storage.get_credentials(std::slice::from_ref(&id)).await?.complete()?;
        storage.set_config(&id, value.clone()).await?;
        storage.reset_usage(&id).await.ok();
        storage.increment_usage(&id, &id, i64::MAX).await?;
        let mut errors = vec![storage.increment_usage(&id, &id, 1).await.unwrap_err()];
        let step = Increment::new(&id, &id, 1);
        errors.push(storage.increment_many(&[step]).await?.complete().unwrap_err());
        let mut tx = storage.begin().await?;
        tx.get_config(&id).await?;
        storage.set_config(&id, json!(SECRET)).await?;
        errors.push(tx.set_config(&id, &config(value)).await.unwrap_err());
        drop(tx);
        assert_eq!(storage.export().count().await, 3);
        for error in errors {
            let text = format!("{error} {error:?} {storage:?}");
            assert!(!text.contains(SECRET), "{text}");
        }
        storage.close().await?;
    }

    // Damage is told by its key, and not quoted.
    let storage = open(&url).await;
    let other = raw(&url).await;
    let damage =
        format!("INSERT INTO {0}.credentials VALUES ('damaged', '[\"{SECRET}\"]')", crate::schema(&url));
    log::set_max_level(log::LevelFilter::Off);
    other.batch_execute(&damage).await.unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let error = storage.get_credential("damaged").await.unwrap_err();
    assert_eq!((error.kind(), error.key()), (ErrorKind::Corrupt, Some(&key("damaged"))));
    assert!(!format!("{error:?}").contains(SECRET));
    storage.close().await?;

    let nobody = format!("postgres://tester:{SECRET}@127.0.0.1:1/{SECRET}");
    let error = Storage::<Postgres>::open(nobody.as_str()).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
    assert_eq!(error.code(), Some("os error 111"));
    assert!(!format!("{error:?}").contains(SECRET));
    log::set_max_level(log::LevelFilter::Off);
    assert!(LISTENER.lines.load(Ordering::Relaxed) > 100, "the driver logs, and this hears it");
    let leaks = LISTENER.leaks.lock().unwrap();
    assert!(leaks.is_empty(), "{leaks:?}");
    Ok(())
}
