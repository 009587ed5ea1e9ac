//! Transactions that mean it.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use gateway_storage::{
    ConfigValue, ErrorKind, Increment, Key, MongoDb, Outcome, Storage, Transaction,
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
async fn a_standalone_server_says_at_once_that_it_has_none() -> Result {
    let storage = open(&servers::mongodb_alone()).await;
    let error = storage.begin().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unsupported, Outcome::NotApplied));
    assert!(error.to_string().contains("replica set"), "{error}");
    storage.close().await
}

/// A transaction that has set a value. One before it, which is rolled back in the background, may hold the value for a while.
async fn writer_of(storage: &Storage<MongoDb>, key: &Key, value: &ConfigValue) -> Result<MongoDbTransaction> {
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
async fn what_the_server_rolled_back_is_never_ok() -> Result {
    let url = servers::mongodb();
    let storage = open(&url).await;
    let (a, one) = (key("a"), config(json!(1)));
    storage.set_config(&a, json!(0)).await?;

    // A conflict at the write: the transaction is over, whatever comes after.
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

    // A call of it was cut off.
    let mut tx = storage.begin().await?;
    drop(futures_util::FutureExt::now_or_never(tx.set_config(&a, &one)));
    let error = tx.commit().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));

    // Its last handle is dropped: it is soon in nobody's way.
    let tx = writer_of(&storage, &a, &one).await?;
    drop(tx);
    writer_of(&storage, &a, &config(json!(6))).await?.commit().await?;

    assert_eq!(storage.get_config(&a).await?.value(), &json!(6), "nothing else of all this was applied");
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_waits_for_a_transaction_that_is_in_its_way() -> Result {
    let storage = open(&servers::mongodb()).await;
    let a = key("a");
    storage.set_config(&a, json!(0)).await?;
    let mut tx = storage.begin().await?;
    tx.set_config(&a, &config(json!(1))).await?;
    let hurried = storage.with_deadline(Duration::from_millis(200));
    let error = hurried.set_config(&a, json!(2)).await.unwrap_err();
    // It was sent, so nobody can tell: it may still be applied when the transaction ends.
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
async fn transfers_whose_commit_replies_are_lost_are_told_truly() -> Result {
    // A member tells its clients the proxy's address, so it must be there before there is a set.
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
    let told = transactions::bank(&direct, &through, transfers).await?;
    let lost = (proxy.lost.replies.load(Ordering::Relaxed), proxy.lost.requests.load(Ordering::Relaxed));
    println!(
        "{} done, {} not done, {} unknown; {} replies and {} commits were lost",
        told.done.len(),
        told.undone.len(),
        told.unknown.len(),
        lost.0,
        lost.1
    );
    assert!(lost.0 > 5 && lost.1 > 0 && told.done.len() > transfers / 2);
    assert_eq!(told.unknown, [] as [usize; 0], "the server knew, and was not asked");
    through.close().await?;
    direct.close().await
}

#[tokio::test]
async fn a_commit_that_too_few_have_is_unknown() -> Result {
    let url = servers::mongodb();
    let storage = open(&url).await;
    // More members than there are.
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
    assert_eq!(storage.list_configs().await?.len(), 2, "they were done");
    demanding.close().await?;
    storage.close().await
}

#[tokio::test]
async fn a_transaction_that_is_held_while_its_store_closes_holds_nothing() -> Result {
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
