//! Interrupted and concurrent calls, and the errors that they return.

use std::time::Duration;

use futures_util::StreamExt;
use gateway_storage::{
    Credential, ErrorKind, Increment, Key, Outcome, Postgres, Record, Storage,
    layer::{Count, Limit, Retry, Stack, Timeout},
};
use serde_json::json;

use super::{Result, config, key, open, raw, rounds, schema, servers};

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
                    let timeout = Duration::from_micros(fastrand::u64(..1500));
                    // Each kind of call is dropped at a random point.
                    let call = async {
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
                    drop(tokio::time::timeout(timeout, call).await);
                    assert_eq!(
                        storage.get_config(&own).await.unwrap().value(),
                        &json!(n),
                        "the reply of another call"
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

/// The keys in random order.
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
    assert_eq!(counted, 200 * (rounds(8) as i64) * 3, "an increment of a batch is missing");
    storage.close().await
}

/// `tests/canary.rs` looks for secrets in all errors.
#[tokio::test]
async fn errors_of_damaged_records_and_unreachable_servers_hold_no_secret() -> Result {
    const SECRET: &str = "s3cret-7f3a";
    let url = servers::postgres();
    let storage = open(&url).await;
    let damage = format!("INSERT INTO {0}.credentials VALUES ('damaged', '[\"{SECRET}\"]')", schema(&url));
    raw(&url).await.batch_execute(&damage).await.unwrap();
    let error = storage.get_credential("damaged").await.unwrap_err();
    assert_eq!((error.kind(), error.key()), (ErrorKind::Corrupt, Some(&key("damaged"))));
    assert!(!format!("{error:?}").contains(SECRET));
    storage.close().await?;

    let unreachable = format!("postgres://tester:{SECRET}@127.0.0.1:1/{SECRET}");
    let error = Storage::<Postgres>::open(unreachable.as_str()).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
    assert_eq!(error.code(), Some("os error 111"));
    assert!(!format!("{error:?}").contains(SECRET));
    Ok(())
}

/// The pages of an export are limited in bytes, so that its memory does not grow with the store.
#[test]
fn an_export_of_large_values_uses_little_memory() {
    const LARGE: usize = 60;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let storage = runtime.block_on(async { open(&servers::postgres()).await });
    let text = "x".repeat(1_000_000);
    runtime.block_on(async {
        for n in 0..LARGE {
            storage.set_credential(&key(&format!("{n:03}")), json!({ "a": text })).await.unwrap();
            storage.set_config(&key(&format!("{n:03}")), json!(text)).await.unwrap();
            let few: Vec<(Key, Credential)> = (0..20)
                .map(|small| (key(&format!("{n:03} {small:02}")), json!({ "n": small }).try_into().unwrap()))
                .collect();
            assert!(storage.set_credentials(&few).await.unwrap().failures.is_empty());
        }
    });
    let mut keys = Vec::new();
    let memory = allocation_counter::measure(|| {
        runtime.block_on(async {
            let mut records = std::pin::pin!(storage.export());
            while let Some(record) = records.next().await {
                let record = record.unwrap();
                keys.push((record.kind(), record.key().clone()));
            }
        });
    });
    assert_eq!(keys.len(), LARGE * 22);
    assert!(keys.is_sorted());
    // The replies, their values and the records of one page at a time.
    assert!(memory.bytes_max < 30 << 20, "{} bytes", memory.bytes_max);
}

/// The server reports the outcome, whether its own timeout or our cancel request ends the wait.
#[tokio::test]
async fn under_layers_a_write_that_waited_for_a_lock_was_not_applied() -> Result {
    for (options, code) in [("&lock_timeout=2s&statement_timeout=3s&deadline=4s", "55P03"), ("", "57014")] {
        let url = format!("{}{options}", servers::postgres());
        let (bare, calls) = (open(&url).await, Count::default());
        // Prepares the statement, which would wait for the lock, too.
        bare.increment_usage("a", "n", 1).await?;
        let other = raw(&url).await;
        let lock = format!("BEGIN; LOCK TABLE \"{}\".usage IN ACCESS EXCLUSIVE MODE", schema(&url));
        other.batch_execute(&lock).await.unwrap();

        let stack = Stack::new()
            .limit(Limit::new(64))
            .retry(Retry::new())
            .timeout(Timeout::new(Duration::from_secs(5)))
            .instrument(bare.backend());
        let layered = bare.layer(calls.clone()).layer(stack);
        let started = std::time::Instant::now();
        let error = layered.increment_usage("a", "n", 1).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Busy | ErrorKind::Timeout), "{error:?}");
        assert_eq!((error.outcome(), error.code()), (Outcome::NotApplied, Some(code)), "{error:?}");
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert_eq!(calls.of("increment_usage"), 1, "a second attempt has no time");

        other.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(layered.increment_usage("a", "n", 1).await?, 2);
        layered.close().await?;
    }
    Ok(())
}

/// A call that waits for a connection ends before the timeout of the layer.
#[tokio::test]
async fn under_layers_a_write_without_a_connection_was_not_applied() -> Result {
    let bare = open(&format!("{}&pool_size=1", servers::postgres())).await;
    let layered = bare.clone().layer(Timeout::new(Duration::from_millis(400)));
    layered.increment_usage("a", "n", 1).await?;
    let held = bare.begin().await?;
    let error = layered.increment_usage("a", "n", 1).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied), "{error:?}");
    held.rollback().await?;
    assert_eq!(layered.increment_usage("a", "n", 1).await?, 2);
    bare.close().await
}
