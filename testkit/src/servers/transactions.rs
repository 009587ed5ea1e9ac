//! Runs transactions under load, on any backend that has them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use gateway_storage::{
    ConfigStore, ConfigValue, Error, ErrorKind, Key, Outcome, Result, Storage, Transactional, transact,
};
use serde_json::{Value, json};

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn config(value: Value) -> ConfigValue {
    ConfigValue::new(value).unwrap()
}

/// Retries until there is no conflict. Returns the number of attempts.
async fn write_all<B: Transactional>(storage: &Storage<B>, keys: &[Key], value: &Value) -> usize {
    let mut tries = 0;
    loop {
        let result: Result<()> = transact!(storage, |tx| {
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

/// Each of `writers` writes its keys, all at once, `rounds` times, while others read: no reader sees a part
/// of a round.
pub async fn readers_see_all_of_a_round_or_nothing<B: Transactional + ConfigStore>(
    storage: &Storage<B>,
    writers: usize,
    rounds: usize,
) -> Result<()> {
    const KEYS: usize = 25;
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
    Ok(())
}

/// A conflict ends the transaction on the server, also if the block catches it. So the block runs again,
/// whether it returns `Ok` or an error of its own.
pub async fn a_caught_conflict_runs_the_block_again<B: Transactional + ConfigStore>(
    storage: &Storage<B>,
) -> Result<()> {
    #[derive(Debug)]
    struct Own;

    impl From<Error> for Own {
        fn from(_: Error) -> Self {
            Self
        }
    }

    for is_ok in [true, false] {
        storage.set_config_as("caught", &0).await?;
        let mut runs = 0;
        let result = transact!(storage, |tx| -> Result<(), Own> {
            runs += 1;
            let found: u32 = tx.get_config_as("caught").await?;
            if runs == 1 {
                storage.set_config_as("caught", &10).await?;
            }
            let result = tx.set_config_as("caught", &(found + 1)).await;
            assert_eq!(result.is_err(), runs == 1);
            if is_ok || runs > 1 { Ok(()) } else { Err(Own) }
        });
        result.expect("the second run succeeds");
        assert_eq!((runs, storage.get_config_as::<u32>("caught").await?), (2, 11));
    }
    storage.delete_config("caught").await
}

const ACCOUNTS: usize = 100;

/// Balances and a record of each transfer, changed together.
async fn transfer<B: Transactional + ConfigStore>(storage: &Storage<B>, number: usize) -> Result<()> {
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

/// The transfers by the outcome that was reported.
#[derive(Default)]
pub struct Transfers {
    /// Committed.
    pub done: Vec<usize>,
    /// Not applied.
    pub undone: Vec<usize>,
    /// Committed or not.
    pub unknown: Vec<usize>,
}

/// Creates accounts directly, moves money between them through a proxy that loses commits, and asserts that
/// no money is lost and that no report is false.
pub async fn bank<B: Transactional + ConfigStore>(
    direct: &Storage<B>,
    through: &Storage<B>,
    transfers: usize,
) -> Result<Transfers> {
    for account in 0..ACCOUNTS {
        direct.set_config(&key(&format!("account-{account}")), json!(1000)).await?;
    }
    let next = Arc::new(AtomicUsize::new(0));
    let tellers: Vec<_> = (0..4)
        .map(|_| {
            let (storage, next) = (through.clone(), next.clone());
            tokio::spawn(async move {
                let mut told = Transfers::default();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= transfers {
                        return told;
                    }
                    loop {
                        match transfer(&storage, number).await {
                            Ok(()) => told.done.push(number),
                            Err(error) if error.kind() == ErrorKind::Conflict => {
                                assert_eq!(error.outcome(), Outcome::NotApplied);
                                tokio::time::sleep(Duration::from_micros(fastrand::u64(..3000))).await;
                                continue;
                            }
                            Err(error) if error.outcome() == Outcome::NotApplied => {
                                assert!(error.is_retryable(), "{error:?}");
                                told.undone.push(number);
                            }
                            Err(_) => told.unknown.push(number),
                        }
                        break;
                    }
                }
            })
        })
        .collect();
    let mut told = Transfers::default();
    for teller in tellers {
        let of_one = teller.await.unwrap();
        told.done.extend(of_one.done);
        told.undone.extend(of_one.undone);
        told.unknown.extend(of_one.unknown);
    }
    let stored = direct.list_configs().await?;
    let total: i64 = (0..ACCOUNTS).map(|n| stored[&key(&format!("account-{n}"))].as_i64().unwrap()).sum();
    assert_eq!(total, 1000 * ACCOUNTS as i64);
    for number in &told.done {
        assert!(stored.contains_key(&key(&format!("transfer-{number}"))), "a false commit was reported");
    }
    for number in &told.undone {
        assert!(!stored.contains_key(&key(&format!("transfer-{number}"))), "a false abort was reported");
    }
    Ok(told)
}
