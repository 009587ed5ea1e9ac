//! Isolation and the outcome of transactions.

use std::{sync::atomic::Ordering, time::Duration};

use gateway_storage::{ErrorKind, Key, Outcome, Postgres, Storage, Transaction};
use serde_json::json;

use super::{
    Result, config, key, open, raw, rounds,
    servers::{
        self,
        commits::{Protocol, Proxy},
        postgres::Server,
        transactions,
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_see_all_of_a_round_or_nothing() -> Result {
    let storage = open(&servers::postgres()).await;
    transactions::readers_see_all_of_a_round_or_nothing(&storage, 100, rounds(25)).await?;
    storage.close().await
}

#[tokio::test]
async fn a_caught_conflict_runs_the_block_again() -> Result {
    let storage = open(&servers::postgres()).await;
    transactions::a_caught_conflict_runs_the_block_again(&storage).await?;
    storage.close().await
}

/// Two doctors are on call, and each leaves if the other stays. Returns in how many of `rounds` both left.
async fn write_skews(storage: &Storage<Postgres>, rounds: usize) -> Result<usize> {
    let mut skews = 0;
    for round in 0..rounds {
        let doctors = [key("alice"), key("bob")];
        for doctor in &doctors {
            storage.set_config(doctor, json!(true)).await?;
        }
        let (mut first, mut second) = (storage.begin().await?, storage.begin().await?);
        for (tx, other) in [(&mut first, &doctors[1]), (&mut second, &doctors[0])] {
            assert_eq!(tx.get_config(other).await?.value(), &json!(true));
        }
        async fn leave<T: Transaction>(mut tx: T, doctor: &Key) -> Result {
            tx.set_config(doctor, &config(json!(false))).await?;
            tx.commit().await
        }
        // In turn, and concurrently.
        let results = if round % 2 == 0 {
            [leave(first, &doctors[0]).await, leave(second, &doctors[1]).await]
        } else {
            tokio::join!(leave(first, &doctors[0]), leave(second, &doctors[1])).into()
        };
        let winners = results.iter().filter(|result| result.is_ok()).count();
        assert!(winners > 0, "both failed");
        for error in results.iter().filter_map(|result| result.as_ref().err()) {
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::Conflict, Outcome::NotApplied));
            assert!(error.is_retryable() && error.code() == Some("40001"), "{error:?}");
        }
        skews += usize::from(winners == 2);
    }
    Ok(skews)
}

#[tokio::test]
async fn write_skew_is_a_conflict_unless_the_isolation_is_weaker() -> Result {
    let url = servers::postgres();
    let storage = open(&url).await;
    assert_eq!(write_skews(&storage, 50).await?, 0);
    storage.close().await?;
    let weaker = open(&format!("{url}&isolation=repeatable_read")).await;
    assert_eq!(write_skews(&weaker, 4).await?, 4, "the test can't detect write skew");
    weaker.close().await
}

#[tokio::test]
async fn deadlocks_are_conflicts() -> Result {
    let url = servers::postgres();
    let storage = open(&format!("{url}&isolation=repeatable_read")).await;
    let keys = [key("left"), key("right")];
    let (mut first, mut second) = (storage.begin().await?, storage.begin().await?);
    first.set_config(&keys[0], &config(json!(1))).await?;
    second.set_config(&keys[1], &config(json!(2))).await?;
    let (one, two) = (config(json!(1)), config(json!(2)));
    let (first_result, second_result) =
        tokio::join!(first.set_config(&keys[1], &one), second.set_config(&keys[0], &two));
    // The server rolls one of them back; the other finds its row unchanged.
    let error = [first_result.err(), second_result.err()].into_iter().flatten().next().expect("a deadlock");
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Conflict, Outcome::NotApplied));
    assert_eq!(error.code(), Some("40P01"));
    drop((first, second));
    storage.close().await
}

#[tokio::test]
async fn a_transaction_that_the_server_rolled_back_is_never_ok() -> Result {
    let url = servers::postgres();
    let storage = open(&format!("{url}&pool_size=2")).await;
    let (a, one) = (key("a"), config(json!(1)));
    storage.set_config(&a, json!(0)).await?;

    // A conflict at a write: every later call fails.
    let mut tx = storage.begin().await?;
    tx.get_config(&a).await?;
    storage.set_config(&a, json!(5)).await?;
    let conflict = tx.set_config(&a, &one).await.unwrap_err();
    assert_eq!((conflict.kind(), conflict.code()), (ErrorKind::Conflict, Some("40001")));
    assert_eq!(tx.get_config(&a).await.unwrap_err().kind(), ErrorKind::Conflict);
    let error = tx.commit().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Conflict, Outcome::NotApplied));

    // The server terminates its connection.
    let administrator = raw(&url).await;
    let mut tx = storage.begin().await?;
    tx.set_config(&a, &one).await?;
    let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE state = 'idle in transaction' AND query LIKE $1";
    let own = format!("%{}%", super::schema(&url));
    assert_eq!(administrator.query(terminate, &[&own]).await.unwrap().len(), 1);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let error = tx.commit().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied), "{error:?}");

    // It was idle for too long.
    let short = open(&format!("{url}&idle_in_transaction_session_timeout=100ms")).await;
    let mut tx = short.begin().await?;
    tx.set_config(&a, &one).await?;
    tokio::time::sleep(Duration::from_millis(400)).await;
    let error = tx.commit().await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotApplied, "{error:?}");
    short.close().await?;

    // One of its calls is dropped.
    let mut tx = storage.begin().await?;
    tx.set_config(&a, &one).await?;
    drop(futures_util::FutureExt::now_or_never(tx.set_config(&a, &one)));
    let error = tx.commit().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));

    assert_eq!(storage.get_config(&a).await?.value(), &json!(5), "a failed transaction was applied");
    let pool = storage.pool_stats().await?;
    assert!(pool.open <= 2 && pool.waiting == 0, "{pool:?}");
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_whose_commit_replies_are_lost_have_true_outcomes() -> Result {
    let server = Server::start(&[]);
    let proxy = Proxy::start(Protocol::Postgres, server.port, 5, 2).await;
    let direct = open(&server.url()).await;
    let through = open(&server.url().replace(&server.port.to_string(), &proxy.port.to_string())).await;
    let transfers = rounds(80) * 10;
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
    assert!(
        lost.0 > 5 && lost.1 > 0 && outcomes.undone.len() >= lost.1 && outcomes.done.len() > transfers / 2
    );
    assert_eq!(outcomes.unknown, [] as [usize; 0], "the server knew the outcome");
    through.close().await?;
    direct.close().await
}
