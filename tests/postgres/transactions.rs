//! Transactions that mean it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use gateway_storage::{
    ConfigStore, ErrorKind, Key, Outcome, Postgres, Storage, Transaction, Transactional, transact,
};
use serde_json::{Value, json};

use crate::{Result, config, key, open, proxy::Proxy, raw, rounds, servers, servers::postgres::Server};

/// Tries until it is not a conflict.
async fn write_all(storage: &Storage<Postgres>, keys: &[Key], value: &Value) -> usize {
    let mut tries = 0;
    loop {
        let result: Result = transact!(storage, |tx| {
            tries += 1;
            for key in keys {
                tx.set_config(key, &config(value.clone())).await?;
            }
            Ok(())
        });
        match result {
            Ok(()) => return tries,
            Err(error) => {
                assert_eq!((error.kind(), error.outcome()), (ErrorKind::Conflict, Outcome::NotApplied));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_see_all_of_a_round_or_nothing() -> Result {
    const KEYS: usize = 25;
    let (writers, rounds) = (100, rounds(25));
    let storage = open(&servers::postgres()).await;
    let written: Vec<_> = (0..writers)
        .map(|writer| {
            let storage = storage.clone().with_deadline(Duration::from_secs(60));
            tokio::spawn(async move {
                let keys: Vec<Key> = (0..KEYS).map(|n| key(&format!("{writer:03}-{n:02}"))).collect();
                let mut tries = 0;
                for round in 0..rounds {
                    tries += write_all(&storage, &keys, &json!([writer, round])).await;
                }
                tries
            })
        })
        .collect();
    let running = Arc::new(AtomicBool::new(true));
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (storage, running) =
                (storage.clone().with_deadline(Duration::from_secs(60)), running.clone());
            tokio::spawn(async move {
                let mut looks = 0;
                while running.load(Ordering::Relaxed) {
                    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
                    for value in storage.list_configs().await.unwrap().into_values() {
                        *seen.entry(value.to_json()).or_default() += 1;
                    }
                    assert!(seen.values().all(|count| *count == KEYS), "a round was seen in part: {seen:?}");
                    looks += 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                looks
            })
        })
        .collect();
    let mut tries = 0;
    for task in written {
        tries += task.await.unwrap();
    }
    running.store(false, Ordering::Relaxed);
    let mut looks = 0;
    for task in readers {
        looks += task.await.unwrap();
    }
    assert!(looks > 4, "the readers saw nothing");
    assert_eq!(storage.list_configs().await?.len(), writers * KEYS);
    println!("{looks} looks at {} transactions, which took {tries} tries", writers * rounds);
    storage.close().await
}

/// Two doctors are on call and each goes home if the other one stays. How many of `rounds` left nobody.
async fn skew(storage: &Storage<Postgres>, rounds: usize) -> Result<usize> {
    let mut left_alone = 0;
    for round in 0..rounds {
        let doctors = [key("alice"), key("bob")];
        for doctor in &doctors {
            storage.set_config(doctor, json!(true)).await?;
        }
        let (mut first, mut second) = (storage.begin().await?, storage.begin().await?);
        for (tx, other) in [(&mut first, &doctors[1]), (&mut second, &doctors[0])] {
            assert_eq!(tx.get_config(other).await?.value(), &json!(true));
        }
        async fn leave<T: Transaction>(mut tx: T, who: &Key) -> Result {
            tx.set_config(who, &config(json!(false))).await?;
            tx.commit().await
        }
        // One after the other, and both at once.
        let results = if round % 2 == 0 {
            [leave(first, &doctors[0]).await, leave(second, &doctors[1]).await]
        } else {
            tokio::join!(leave(first, &doctors[0]), leave(second, &doctors[1])).into()
        };
        let winners = results.iter().filter(|result| result.is_ok()).count();
        assert!(winners > 0, "nobody won");
        for error in results.iter().filter_map(|result| result.as_ref().err()) {
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::Conflict, Outcome::NotApplied));
            assert!(error.is_retryable() && error.code() == Some("40001"), "{error:?}");
        }
        left_alone += usize::from(winners == 2);
    }
    Ok(left_alone)
}

#[tokio::test]
async fn write_skew_has_exactly_one_winner_unless_asked_otherwise() -> Result {
    let url = servers::postgres();
    let storage = open(&url).await;
    assert_eq!(skew(&storage, 50).await?, 0);
    storage.close().await?;
    let weaker = open(&format!("{url}&isolation=repeatable_read")).await;
    assert_eq!(skew(&weaker, 4).await?, 4, "this test would not notice");
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
    // The one that is chosen says so; the other one finds that its row was not changed after all.
    let error = [first_result.err(), second_result.err()].into_iter().flatten().next().expect("a deadlock");
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Conflict, Outcome::NotApplied));
    assert_eq!(error.code(), Some("40P01"));
    drop((first, second));
    storage.close().await
}

#[tokio::test]
async fn what_the_server_rolled_back_is_never_ok() -> Result {
    let url = servers::postgres();
    let storage = open(&format!("{url}&pool_size=2")).await;
    let (a, one) = (key("a"), config(json!(1)));
    storage.set_config(&a, json!(0)).await?;

    // A conflict at the write: the transaction is over, whatever comes after.
    let mut tx = storage.begin().await?;
    tx.get_config(&a).await?;
    storage.set_config(&a, json!(5)).await?;
    let conflict = tx.set_config(&a, &one).await.unwrap_err();
    assert_eq!((conflict.kind(), conflict.code()), (ErrorKind::Conflict, Some("40001")));
    assert_eq!(tx.get_config(&a).await.unwrap_err().kind(), ErrorKind::Conflict);
    let error = tx.commit().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Conflict, Outcome::NotApplied));

    // Its connection is ended from outside.
    let administrator = raw(&url).await;
    let mut tx = storage.begin().await?;
    tx.set_config(&a, &one).await?;
    let ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE state = 'idle in transaction' AND query LIKE $1";
    let own = format!("%{}%", crate::schema(&url));
    assert_eq!(administrator.query(ended, &[&own]).await.unwrap().len(), 1);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let error = tx.commit().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied), "{error:?}");

    // It was idle for too long.
    let impatient = open(&format!("{url}&idle_in_transaction_session_timeout=100ms")).await;
    let mut tx = impatient.begin().await?;
    tx.set_config(&a, &one).await?;
    tokio::time::sleep(Duration::from_millis(400)).await;
    let error = tx.commit().await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotApplied, "{error:?}");
    impatient.close().await?;

    // A call of it was cut off.
    let mut tx = storage.begin().await?;
    tx.set_config(&a, &one).await?;
    drop(futures_util::FutureExt::now_or_never(tx.set_config(&a, &one)));
    let error = tx.commit().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));

    assert_eq!(storage.get_config(&a).await?.value(), &json!(5), "nothing of all this was applied");
    let pool = storage.pool_stats().await?;
    assert!(pool.open <= 2 && pool.waiting == 0, "{pool:?}");
    storage.close().await
}

const ACCOUNTS: usize = 100;

/// Balances and a record of each transfer, changed together.
async fn transfer<B: Transactional + ConfigStore>(storage: &Storage<B>, number: usize) -> Result {
    let (from, to) = (fastrand::usize(..ACCOUNTS), fastrand::usize(..ACCOUNTS));
    let (from, to) = (key(&format!("account-{from}")), key(&format!("account-{to}")));
    let (record, amount) = (key(&format!("transfer-{number}")), fastrand::i64(1..100));
    let mut tx = storage.begin().await?;
    let work = async {
        for (account, change) in [(&from, -amount), (&to, amount)] {
            let balance = tx.get_config(account).await?.as_i64().unwrap();
            tx.set_config(account, &config(json!(balance + change))).await?;
        }
        tx.set_config(&record, &config(json!(amount))).await
    };
    match work.await {
        Ok(()) => tx.commit().await,
        Err(error) => Err(error),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_whose_commit_replies_are_lost_are_told_truly() -> Result {
    let server = Server::start(&[]);
    let proxy = Proxy::start(server.port, 5, 2).await;
    let direct = open(&server.url()).await;
    for account in 0..ACCOUNTS {
        direct.set_config(&key(&format!("account-{account}")), json!(1000)).await?;
    }
    let through = open(&server.url().replace(&server.port.to_string(), &proxy.port.to_string())).await;
    let (next, transfers) = (Arc::new(AtomicUsize::new(0)), rounds(80) * 10);
    let tellers: Vec<_> = (0..4)
        .map(|_| {
            let (storage, next) = (through.clone(), next.clone());
            tokio::spawn(async move {
                let (mut done, mut undone, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= transfers {
                        return (done, undone, unknown);
                    }
                    loop {
                        match transfer(&storage, number).await {
                            Ok(()) => done.push(number),
                            Err(error) if error.kind() == ErrorKind::Conflict => {
                                assert_eq!(error.outcome(), Outcome::NotApplied);
                                tokio::time::sleep(Duration::from_micros(fastrand::u64(..3000))).await;
                                continue;
                            }
                            Err(error) if error.outcome() == Outcome::NotApplied => {
                                assert!(error.is_retryable(), "{error:?}");
                                undone.push(number);
                            }
                            Err(_) => unknown.push(number),
                        }
                        break;
                    }
                }
            })
        })
        .collect();
    let (mut done, mut undone, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    for teller in tellers {
        let (of_done, of_undone, of_unknown) = teller.await.unwrap();
        done.extend(of_done);
        undone.extend(of_undone);
        unknown.extend(of_unknown);
    }
    let stored = direct.list_configs().await?;
    let total: i64 = (0..ACCOUNTS).map(|n| stored[&key(&format!("account-{n}"))].as_i64().unwrap()).sum();
    assert_eq!(total, 1000 * ACCOUNTS as i64);
    for number in &done {
        assert!(stored.contains_key(&key(&format!("transfer-{number}"))), "a false commit was reported");
    }
    for number in &undone {
        assert!(!stored.contains_key(&key(&format!("transfer-{number}"))), "a false abort was reported");
    }
    let lost = (proxy.lost.replies.load(Ordering::Relaxed), proxy.lost.requests.load(Ordering::Relaxed));
    println!(
        "{} done, {} not done, {} unknown; {} replies and {} commits were lost",
        done.len(),
        undone.len(),
        unknown.len(),
        lost.0,
        lost.1
    );
    assert!(lost.0 > 5 && lost.1 > 0 && undone.len() >= lost.1 && done.len() > transfers / 2);
    assert_eq!(unknown, [] as [usize; 0], "the server knew, and was not asked");
    through.close().await?;
    direct.close().await
}
