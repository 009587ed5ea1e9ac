//! Transactions.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use gateway_storage::{
    ConfigValue, ErrorKind, Increment, Key, MongoDb, Outcome, Storage, StorageTransaction,
    mongodb::MongoDbTransaction,
};
use mongodb::bson::doc;
use serde_json::json;
use tokio::runtime::Handle;

use super::{
    Result, config, key, open, raw, rounds,
    servers::{
        self,
        commits::{Protocol, Proxy},
        mongodb::ReplicaSet,
        transactions,
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_see_all_of_a_round_or_nothing() -> Result {
    let storage = open(&servers::mongodb()).await;
    transactions::readers_see_all_of_a_round_or_nothing(&storage, 100, rounds(6)).await?;
    storage.close().await
}

#[tokio::test]
async fn a_caught_conflict_runs_the_block_again() -> Result {
    let storage = open(&servers::mongodb()).await;
    transactions::a_caught_conflict_runs_the_block_again(&storage).await?;
    storage.close().await
}

#[tokio::test]
async fn a_standalone_server_has_no_transactions() -> Result {
    let storage = open(&servers::mongodb_alone()).await;
    let error = storage.begin().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unsupported, Outcome::NotApplied));
    assert!(error.to_string().contains("replica set"), "{error}");
    storage.close().await
}

/// Begins a transaction that sets a value. A rollback in the background may still hold the value, so
/// conflicts are retried.
async fn writer_of(
    storage: &Storage<MongoDb>,
    key: &Key,
    value: &ConfigValue,
) -> Result<StorageTransaction<MongoDbTransaction>> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let mut tx = storage.begin().await?;
        match tx.set_config(key, value).await {
            Err(error) if error.kind() == ErrorKind::Conflict && Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            result => return result.map(|()| tx),
        }
    }
}

#[tokio::test]
async fn a_rolled_back_transaction_never_commits() -> Result {
    // A server of its own: ending all sessions would end those of other tests.
    let servers = ReplicaSet::start(1);
    let url = servers.url("sessions");
    let storage = open(&url).await;
    let (a, one) = (key("a"), config(json!(1)));
    storage.set_config(&a, json!(0)).await?;

    // A conflict at the write ends the transaction.
    let mut tx = storage.begin().await?;
    tx.get_config(&a).await?;
    storage.set_config(&a, json!(5)).await?;
    let conflict = tx.set_config(&a, &one).await.unwrap_err();
    assert_eq!((conflict.kind(), conflict.code()), (ErrorKind::Conflict, Some("112")));
    assert!(conflict.is_retryable() && conflict.outcome() == Outcome::NotApplied);
    assert_eq!(tx.get_config(&a).await.unwrap_err().kind(), ErrorKind::Conflict);
    let error = tx.commit().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Conflict, Outcome::NotApplied));

    // The server ends it.
    let admin = raw(&url).await.client().database("admin");
    let mut tx = storage.begin().await?;
    tx.set_config(&a, &one).await?;
    admin.run_command(doc! { "killAllSessions": [] }).await.unwrap();
    let error = tx.commit().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Conflict, Outcome::NotApplied), "{error:?}");

    // A dropped call ends it.
    let mut tx = storage.begin().await?;
    drop(futures_util::FutureExt::now_or_never(tx.set_config(&a, &one)));
    let error = tx.commit().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));

    // Dropping it rolls it back, so another transaction can soon write.
    let tx = writer_of(&storage, &a, &one).await?;
    drop(tx);
    writer_of(&storage, &a, &config(json!(6))).await?.commit().await?;

    assert_eq!(storage.get_config(&a).await?.value(), &json!(6), "only the last transaction was applied");
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_waits_for_a_transaction_on_its_document() -> Result {
    let storage = open(&servers::mongodb()).await;
    let a = key("a");
    storage.set_config(&a, json!(0)).await?;
    let mut tx = storage.begin().await?;
    tx.set_config(&a, &config(json!(1))).await?;
    let hurried = storage.with_deadline(Duration::from_millis(200));
    let error = hurried.set_config(&a, json!(2)).await.unwrap_err();
    // It was sent, and may still be applied when the transaction ends.
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown));
    let write = tokio::spawn({
        let storage = storage.clone();
        async move { storage.set_config("a", json!(3)).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    tx.rollback().await?;
    write.await.unwrap()?;
    let value = storage.get_config(&a).await?;
    assert!([json!(2), json!(3)].contains(value.value()), "{:?}", value.value());
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn transfers_with_lost_commit_replies_have_the_right_outcome() -> Result {
    // Members report the proxy's address to clients, so the proxy must exist before the replica set.
    let made = tokio::task::spawn_blocking(|| {
        let started = std::sync::OnceLock::new();
        let set = ReplicaSet::known_as(1, |server| {
            let proxy = Handle::current().block_on(Proxy::start(Protocol::MongoDb, server.port, 5, 2));
            format!("127.0.0.1:{}", started.get_or_init(|| proxy).port)
        });
        (set, started.into_inner().unwrap())
    });
    let (set, proxy) = made.await.unwrap();
    let direct = open(&format!("mongodb://{}/bank?directConnection=true", set.members[0].addr())).await;
    let through = open(&format!("mongodb://127.0.0.1:{}/bank?replicaSet=rs0", proxy.port)).await;
    let transfers = rounds(40) * 10;
    let outcomes = transactions::bank(&direct, &through, transfers).await?;
    let lost = (proxy.lost.replies.load(Ordering::Relaxed), proxy.lost.requests.load(Ordering::Relaxed));
    println!(
        "{} done, {} not done, {} unknown; {} replies and {} commits were lost",
        outcomes.done.len(),
        outcomes.undone.len(),
        outcomes.unknown.len(),
        lost.0,
        lost.1
    );
    assert!(lost.0 > 5 && lost.1 > 0 && outcomes.done.len() > transfers / 2);
    assert_eq!(outcomes.unknown, [] as [usize; 0], "sending the commit again would have settled these");
    through.close().await?;
    direct.close().await
}

#[tokio::test]
async fn a_commit_with_too_few_acknowledgements_is_unknown() -> Result {
    let url = servers::mongodb();
    let storage = open(&url).await;
    // It demands more members than the replica set has.
    let demanding = open(&format!("{url}&w=3&create=false")).await;
    let mut tx = demanding.begin().await?;
    tx.set_config(&key("a"), &config(json!(1))).await?;
    let error = tx.commit().await.unwrap_err();
    assert_eq!((error.outcome(), error.code()), (Outcome::Unknown, Some("100")), "{error:?}");
    let error = demanding.set_config("b", json!(1)).await.unwrap_err();
    assert_eq!((error.outcome(), error.code()), (Outcome::Unknown, Some("100")), "{error:?}");
    let error =
        demanding.increment_many(&[Increment::new(&key("a"), &key("n"), 1)]).await?.complete().unwrap_err();
    assert_eq!((error.outcome(), error.code()), (Outcome::Unknown, Some("100")), "{error:?}");
    assert_eq!(storage.list_configs().await?.len(), 2, "the writes were applied");
    demanding.close().await?;
    storage.close().await
}

#[tokio::test]
async fn closing_the_store_rolls_back_open_transactions() -> Result {
    let url = servers::mongodb();
    let (storage, other) = (open(&url).await, open(&url).await);
    let a = key("a");
    let mut tx = storage.begin().await?;
    tx.set_config(&a, &config(json!(1))).await?;
    storage.close().await?;
    other.with_deadline(Duration::from_secs(3)).set_config(&a, json!(2)).await?;
    assert_eq!(tx.commit().await.unwrap_err().kind(), ErrorKind::Closed);
    other.close().await
}

#[tokio::test]
async fn a_transaction_outlives_the_pool_that_it_began_on() -> Result {
    let storage = open(&servers::mongodb()).await;
    let (a, b) = (key("a"), key("b"));
    storage.set_credential(&a, json!({})).await?;
    storage.set_config(&a, json!(0)).await?;
    let mut tx = storage.begin().await?;
    tx.set_config(&a, &config(json!(1))).await?;
    let mut dropped = storage.begin().await?;
    dropped.set_config(&b, &config(json!(1))).await?;
    let mut records = Box::pin(storage.export());
    records.next().await.unwrap()?;
    storage.resize_pool(3).await?;
    drop(dropped);
    tx.get_config(&a).await?;
    tx.commit().await?;
    assert_eq!(storage.get_config(&a).await?.value(), &json!(1));
    assert_eq!(records.count().await, 1, "an export goes on, too");
    storage.delete_credentials(&[a]).await?.complete()?;
    storage.close().await
}
