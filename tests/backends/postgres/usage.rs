//! Counters, budgets and streams.

use std::time::Duration;

use gateway_storage::{ErrorKind, Increment, Key, Outcome, usage::Within};

use super::{Result, key, open, raw, schema, servers};
use crate::counters;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_and_streams_directly_and_through_a_pooler() -> Result {
    for url in [servers::postgres(), servers::pgbouncer()] {
        let storage = open(&url).await.with_deadline(Duration::from_secs(60));
        counters::batches_are_those_of_memory(&storage, 40).await;
        storage.reset_usage_prefix("b").await?;
        counters::each_total_is_returned_once(&[storage.clone(), open(&url).await], 25).await;
        counters::a_budget_holds(&[storage.clone(), open(&url).await]).await;
        storage.reset_usage_prefix("b").await?;
        storage.reset_usage_prefix("hot").await?;
        counters::streams_cross_pages(&storage).await;
        storage.close().await?;
    }
    for url in [servers::postgres(), servers::pgbouncer()] {
        let storage = open(&url).await;
        counters::prefixes_are_texts(&storage).await;
        storage.close().await?;
    }
    Ok(())
}

/// What another transaction does to the counter while the call waits for it, and the result of the call, which
/// adds 5 within 10. The second statement is the end of the transaction.
const CHANGES: [(Option<i64>, &str, &str, Within); 8] = [
    (Some(1), "UPDATE {u} SET count = 6", "COMMIT", Within::Refused(6)),
    (Some(1), "UPDATE {u} SET count = 5", "COMMIT", Within::Counted(10)),
    (Some(1), "UPDATE {u} SET count = 6", "ROLLBACK", Within::Counted(6)),
    (Some(5), "DELETE FROM {u}", "COMMIT", Within::Counted(5)),
    (Some(5), "DELETE FROM {u}; INSERT INTO {u} VALUES ('a', 'n', 6)", "COMMIT", Within::Refused(6)),
    (None, "INSERT INTO {u} VALUES ('a', 'n', 6)", "COMMIT", Within::Refused(6)),
    (None, "INSERT INTO {u} VALUES ('a', 'n', 5)", "COMMIT", Within::Counted(10)),
    (None, "INSERT INTO {u} VALUES ('a', 'n', 6)", "ROLLBACK", Within::Counted(5)),
];

#[tokio::test]
async fn a_budget_is_compared_with_the_newest_total() -> Result {
    let url = servers::postgres();
    let (storage, other, table) = (open(&url).await, raw(&url).await, format!("{}.usage", schema(&url)));
    for (before, change, end, result) in CHANGES {
        if let Some(before) = before {
            storage.increment_usage("a", "n", before).await?;
        }
        other.batch_execute(&format!("BEGIN; {}", change.replace("{u}", &table))).await.unwrap();
        let waiting = storage.clone();
        let call = tokio::spawn(async move { waiting.increment_within("a", "n", 5, 10).await });
        until_a_call_waits(&other).await;
        assert!(!call.is_finished());
        other.batch_execute(end).await.unwrap();
        assert_eq!(call.await.unwrap()?, result, "{before:?} {change} {end}");
        assert_eq!(storage.get_counter("a", "n").await?, result.total(), "{before:?} {change} {end}");
        storage.reset_usage("a").await?;
    }
    storage.close().await
}

async fn until_a_call_waits(other: &tokio_postgres::Client) {
    let waiting =
        "SELECT 1 FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))";
    while other.query(waiting, &[]).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_refusal_waits_for_no_lock_and_writes_nothing() -> Result {
    let url = servers::postgres();
    let (storage, other, table) = (open(&url).await, raw(&url).await, format!("{}.usage", schema(&url)));
    storage.increment_usage("a", "n", 6).await?;
    let row = format!("SELECT xmin::text, xmax::text, ctid::text FROM {table} WHERE key = 'a'");
    let columns = async || {
        let row = other.query_one(&row, &[]).await.unwrap();
        [0, 1, 2].map(|at| row.get::<_, String>(at))
    };
    let before = columns().await;
    assert_eq!(storage.increment_within("a", "n", 5, 10).await?, Within::Refused(6));
    assert_eq!(storage.increment_within("a", "n", i64::MAX, i64::MIN).await?, Within::Refused(6));
    // The columns of the system show a lock, too.
    assert_eq!(columns().await, before);
    other.batch_execute(&format!("BEGIN; SELECT FROM {table} FOR UPDATE")).await.unwrap();
    let quick = storage.with_deadline(Duration::from_secs(2));
    assert_eq!(quick.increment_within("a", "n", 5, 10).await?, Within::Refused(6));
    let error = quick.increment_within("a", "n", 4, 10).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied), "{error:?}");
    assert_eq!(error.key(), Some(&key("a")));
    other.batch_execute("ROLLBACK").await.unwrap();
    storage.close().await
}

#[tokio::test]
async fn a_reset_by_prefix_goes_on_where_the_last_one_ended() -> Result {
    let url = servers::postgres();
    let storage = open(&url).await.with_deadline(Duration::from_secs(60));
    let (other, table) = (raw(&url).await, format!("{}.usage", schema(&url)));
    // A record of 12,000 counters is in the way of the chunks of ten thousand.
    let steps: Vec<_> = (0..30_000)
        .map(|n| {
            let record = if (5_000..17_000).contains(&n) { 5_000 } else { n };
            Increment::new(&key(&format!("old {record:05}")), &key(&format!("f{n}")), 1)
        })
        .chain([Increment::new(&key("new"), &key("n"), 1)])
        .collect();
    storage.increment_many(&steps).await?.complete()?;
    let records = 5_000 + 1 + 13_000;
    assert_eq!(storage.list_usage().await?.len(), records + 1);
    for (locked, outcome, left) in [
        // In the first chunk, and then in the last.
        ("old 00007", Outcome::NotApplied, records),
        ("old 29999", Outcome::Unknown, 3_000),
    ] {
        let lock = format!("BEGIN; SELECT FROM {table} WHERE key = '{locked}' FOR UPDATE");
        other.batch_execute(&lock).await.unwrap();
        let quick = storage.with_deadline(Duration::from_secs(3));
        let error = quick.reset_usage_prefix("old").await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, outcome), "{error:?}");
        other.batch_execute("ROLLBACK").await.unwrap();
        let found: Vec<Key> = storage.list_usage().await?.into_keys().collect();
        assert_eq!(found.len(), left + 1, "{locked}");
    }
    assert_eq!(storage.reset_usage_prefix("old").await?, 3_000);
    assert!(storage.list_usage().await?.into_keys().eq([key("new")]));
    storage.close().await
}
