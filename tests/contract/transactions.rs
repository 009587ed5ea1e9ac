//! The transaction of a `Storage`, and when `transact!` runs its block again.

use std::time::Duration;

use gateway_storage::{
    Error, ErrorKind, Key, Memory, Outcome, Result, Storage, StorageTransaction, TRANSACTION_ATTEMPTS,
    TransactOptions, Transaction, Transactional,
    layer::{Count, Fault, Layered},
    transact,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

/// An application's error. That of the storage is dropped, so that no repetition can depend on it.
#[derive(Debug, PartialEq)]
enum Own {
    Storage,
    Stop,
}

impl From<Error> for Own {
    fn from(_: Error) -> Self {
        Self::Storage
    }
}

async fn memory() -> Storage<Memory> {
    Storage::open("memory:").await.unwrap()
}

/// The first `failing` calls of this operation fail with a conflict.
async fn conflicting(operation: &'static str, failing: u64) -> Storage<Layered<Fault, Memory>> {
    let fault = Fault::seeded(1).errors(1.0).kind(ErrorKind::Conflict);
    memory().await.layer(fault.on([operation]).calls(..=failing))
}

async fn is_stored<B: gateway_storage::ConfigStore>(storage: &Storage<B>) -> bool {
    storage.get_config("k").await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_conflict_of_the_transaction_is_repeated_whatever_the_block_returns() {
    let storage = conflicting("transaction_set_config", 2).await;
    let mut runs = 0;
    let stored: Result<u32, Own> = transact!(&storage, |tx| -> Result<u32, Own> {
        runs += 1;
        tx.set_config("k", json!(1)).await?;
        Ok(runs)
    });
    assert_eq!(stored, Ok(3));

    let storage = conflicting("transaction_get_config", 2).await;
    let mut runs = 0;
    let stopped = transact!(&storage, |tx| -> Result<(), Own> {
        runs += 1;
        match tx.get_config("k").await {
            Err(error) if error.kind() == ErrorKind::NotFound => tx.set_config("k", json!(1)).await?,
            _ => return Err(Own::Stop),
        }
        Ok(())
    });
    assert_eq!((stopped, runs), (Ok(()), 3));
    assert!(is_stored(&storage).await);

    for operation in ["begin", "commit"] {
        let storage = conflicting(operation, 2).await;
        let (mut runs, begun) = (0, Instant::now());
        transact!(&storage, |tx| {
            runs += 1;
            tx.set_config("k", json!(1)).await
        })
        .unwrap();
        assert_eq!(runs, if operation == "begin" { 1 } else { 3 });
        assert!(begun.elapsed() > Duration::from_millis(5), "a pause: {:?}", begun.elapsed());
        assert!(is_stored(&storage).await);
    }
}

#[tokio::test]
async fn a_real_conflict_is_repeated_and_sees_the_new_value() {
    let storage = memory().await;
    let mut runs = 0;
    let found = transact!(&storage, |tx| {
        runs += 1;
        let found: u32 = tx.get_config_or("k", 0).await?;
        if runs == 1 {
            storage.set_config_as("k", &7).await?;
        }
        tx.set_config_as("k", &(found + 1)).await?;
        Ok(found)
    });
    assert_eq!((found.unwrap(), runs), (7, 2));
    assert_eq!(storage.get_config_as::<u32>("k").await.unwrap(), 8);
}

#[tokio::test]
async fn an_error_of_the_application_is_not_repeated() {
    let storage = memory().await;
    let conflict = || Error::new(ErrorKind::Conflict, "the application's own");
    assert!(conflict().is_retryable() && conflict().outcome() == Outcome::NotApplied);

    let mut runs = 0;
    let result: Result<()> = transact!(&storage, |tx| {
        runs += 1;
        tx.set_config("k", json!(1)).await?;
        Err(conflict())
    });
    assert_eq!((result.unwrap_err().to_string(), runs), ("the application's own".into(), 1));

    let mut runs = 0;
    let result = transact!(&storage, |_tx| -> Result<(), Own> {
        runs += 1;
        Err(Own::Stop)
    });
    assert_eq!((result, runs), (Err(Own::Stop), 1));
    assert!(!is_stored(&storage).await, "it was rolled back");

    // The key and the value are checked before the call.
    let mut runs = 0;
    let result = transact!(&storage, |tx| {
        runs += 1;
        tx.set_config("", json!(1)).await
    });
    assert_eq!((result.unwrap_err().kind(), runs), (ErrorKind::InvalidKey, 1));
}

#[tokio::test]
async fn a_conflict_of_another_storage_is_not_repeated() {
    let (storage, other) = (memory().await, conflicting("set_config", 1).await);
    let mut runs = 0;
    let result: Result<()> = transact!(&storage, |tx| {
        runs += 1;
        tx.set_config("k", json!(1)).await?;
        other.set_config("k", json!(1)).await
    });
    assert_eq!((result.unwrap_err().kind(), runs), (ErrorKind::Conflict, 1));
    assert!(!is_stored(&storage).await && !is_stored(&other).await);

    let other = conflicting("commit", 1).await;
    let (mut runs, mut inner_runs) = (0, 0);
    let once = TransactOptions::default().with_attempts(1);
    let result: Result<()> = transact!(&storage, |tx| {
        runs += 1;
        tx.set_config("k", json!(1)).await?;
        transact!(&other, once, |tx| {
            inner_runs += 1;
            tx.set_config("k", json!(1)).await
        })
    });
    assert_eq!((result.unwrap_err().kind(), runs, inner_runs), (ErrorKind::Conflict, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn only_a_failure_that_can_pass_and_changed_nothing_is_repeated() {
    let runs_with = async |fault: Fault, operation| {
        let storage = memory().await.layer(fault.on([operation]));
        let mut runs = 0;
        let result = transact!(&storage, |tx| {
            runs += 1;
            tx.set_config("k", json!(1)).await
        });
        result.unwrap_err();
        runs
    };
    for operation in ["transaction_set_config", "commit"] {
        for kind in ErrorKind::ALL {
            let repeated = matches!(kind, ErrorKind::Conflict | ErrorKind::Unavailable);
            let expected = if repeated { TRANSACTION_ATTEMPTS } else { 1 };
            let runs = runs_with(Fault::seeded(1).errors(1.0).kind(kind), operation).await;
            assert_eq!(runs, expected, "{operation} {kind}");
        }
    }
    assert_eq!(runs_with(Fault::seeded(1).lost_replies(1.0), "commit").await, 1, "it may be applied");
}

#[tokio::test]
async fn after_a_caught_error_the_commit_or_the_next_call_decides() {
    // `Memory` goes on after an injected error, so the commit succeeds.
    let storage = conflicting("transaction_get_config", 1).await;
    let mut runs = 0;
    transact!(&storage, |tx| {
        runs += 1;
        tx.set_config("k", json!(1)).await?;
        drop(tx.get_config("k").await);
        Ok(())
    })
    .unwrap();
    assert_eq!(runs, 1);
    assert!(is_stored(&storage).await);

    // A call after it succeeds, so the error that ends the block is the application's.
    let storage = conflicting("transaction_get_config", 1).await;
    let mut runs = 0;
    let result = transact!(&storage, |tx| -> Result<(), Own> {
        runs += 1;
        drop(tx.get_config("k").await);
        tx.set_config("k", json!(1)).await?;
        Err(Own::Stop)
    });
    assert_eq!((result, runs), (Err(Own::Stop), 1));
}

/// A mistake of the caller after a conflict that the block ignored: a new attempt would make it again.
#[tokio::test(start_paused = true)]
async fn a_mistake_is_not_repeated() {
    use ErrorKind::{InvalidKey, InvalidValue};
    let pairs_as_keys = std::collections::BTreeMap::from([((1, 2), 3)]);
    for (mistake, kind) in [InvalidKey; 7].into_iter().chain([InvalidValue; 3]).enumerate() {
        let storage = conflicting("transaction_get_config", 1).await;
        let mut runs = 0;
        let result = transact!(&storage, |tx| {
            runs += 1;
            drop(tx.get_config("k").await);
            match mistake {
                0 => tx.get_credential("").await.map(drop),
                1 => tx.set_credential("", json!({})).await,
                2 => tx.delete_credential("").await,
                3 => tx.update_credential("", |fields| async { Ok::<_, Error>(fields) }).await.map(drop),
                4 => tx.get_config("").await.map(drop),
                5 => tx.set_config("", json!(1)).await,
                6 => tx.delete_config("").await,
                7 => tx.set_credential("a", json!(1)).await,
                8 => tx.set_credential_as("a", &pairs_as_keys).await,
                _ => tx.set_config_as("k", &pairs_as_keys).await,
            }
        });
        assert_eq!((result.unwrap_err().kind(), runs), (kind, 1), "{mistake}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_attempts_and_their_time_are_limited() {
    let refusing = |count: &Count| {
        let fault = Fault::seeded(1).errors(1.0).kind(ErrorKind::Conflict).on(["transaction_set_config"]);
        let count = count.clone();
        async move { memory().await.layer(count).layer(fault) }
    };
    for (attempts, begun) in [(0, 1), (1, 1), (3, 3)] {
        let count = Count::default();
        let storage = refusing(&count).await;
        let options = TransactOptions::default().with_attempts(attempts);
        transact!(&storage, options, |tx| tx.set_config("k", json!(1)).await).unwrap_err();
        assert_eq!([count.of("begin"), count.of("rollback")], [begun, begun]);
    }

    let many = TransactOptions::default().with_attempts(u32::MAX);
    for (options, limit) in [(many, SECOND * 2), (many.with_time(SECOND), SECOND)] {
        let count = Count::default();
        let storage = refusing(&count).await.with_deadline(SECOND * 2);
        let begun = Instant::now();
        let error = transact!(&storage, options, |tx| tx.set_config("k", json!(1)).await).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        let took = begun.elapsed();
        assert!(took <= limit && took > limit - Duration::from_millis(250), "{took:?}");
        assert!(count.of("begin") > 4, "{}", count.of("begin"));
    }

    let fault = Fault::seeded(1).errors(1.0).on(["begin"]);
    let count = Count::default();
    let storage = memory().await.layer(fault).layer(count.clone());
    let error = transact!(&storage, |tx| tx.set_config("k", json!(1)).await).unwrap_err();
    assert_eq!((error.kind(), count.of("begin")), (ErrorKind::Unavailable, TRANSACTION_ATTEMPTS.into()));
}

/// Code that is generic over the transaction, or calls the one inside, can be part of a block.
#[tokio::test]
async fn calls_through_the_trait_are_tracked_and_others_can_be() {
    async fn set<T: Transaction>(tx: &mut T) -> Result<()> {
        tx.set_config(&Key::new("k")?, &json!(1).try_into()?).await
    }
    for (way, expected) in [("trait", 2), ("inner", 1), ("tracked", 2)] {
        let storage = conflicting("transaction_set_config", 1).await;
        let mut runs = 0;
        let result = transact!(&storage, |tx| -> Result<(), Own> {
            runs += 1;
            match way {
                "trait" => set(tx).await?,
                "inner" => set(tx.inner_mut()).await?,
                _ => {
                    let result = set(tx.inner_mut()).await;
                    tx.track(result)?;
                }
            }
            Ok(())
        });
        assert_eq!((result.is_ok(), runs), (expected == 2, expected), "{way}");
    }
}

#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Account {
    project: String,
}

/// Generic over the backend and spawned: every future must be `Send`, for each type of key.
async fn work<B: Transactional>(storage: Storage<B>, name: String, key: Key) -> Result<()> {
    tokio::spawn(async move {
        transact!(&storage, |tx| -> Result<(), Own> {
            tx.set_credential("a", json!({ "project": "p", "token": "x" })).await?;
            tx.set_credential_as(&name, &Account { project: "q".into() }).await?;
            let stored = tx.get_credential(name.as_str()).await?;
            tx.set_credential(&key, &stored).await?;
            assert_eq!(tx.get_credential_as::<Account>(key.clone()).await?.project, "q");
            tx.delete_credential(&name).await?;
            assert_eq!(tx.get_credential(&name).await.unwrap_err().kind(), ErrorKind::NotFound);
            let rename = |account: Account| async move {
                tokio::task::yield_now().await;
                Ok::<_, Error>(Account { project: account.project + "!" })
            };
            assert_eq!(tx.update_credential_as("a", rename).await?.project, "p!");
            let mark = |mut fields: serde_json::Map<_, _>| async {
                fields.insert("marked".into(), true.into());
                Ok::<_, Error>(fields)
            };
            tx.update_credential(&key, mark).await?;

            tx.set_config(&name, json!([1])).await?;
            assert_eq!(tx.get_config(&name).await?.to_json(), "[1]");
            tx.set_config_as(&key, "text").await?;
            assert_eq!(tx.get_config_as::<String>(key.as_str()).await?, "text");
            assert_eq!(tx.get_config_or("missing", 5).await?, 5);
            let error = tx.get_config_or(&key, 5).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidValue, "a default is not for a wrong type");
            tx.delete_config(name.clone()).await?;
            Ok(())
        })
        .expect("no conflict");
        let mut tx: StorageTransaction<B::Transaction> = storage.begin().await?;
        tx.set_config("dropped", json!(1)).await?;
        tx.rollback().await?;
        let mut inner = storage.begin().await?.into_inner();
        inner.set_config(&key, &json!("inner").try_into()?).await?;
        inner.commit().await
    })
    .await
    .expect("no panic")
}

#[tokio::test]
async fn its_methods_take_what_those_of_the_storage_take() {
    let (name, key) = ("b".to_owned(), Key::new("c").unwrap());
    let storage = memory().await;
    work(storage.clone(), name.clone(), key.clone()).await.unwrap();
    assert_eq!(storage.get_credential("a").await.unwrap().to_json(), r#"{"project":"p!","token":"x"}"#);
    assert_eq!(storage.get_credential("c").await.unwrap().to_json(), r#"{"marked":true,"project":"q"}"#);
    let configs = storage.list_configs().await.unwrap();
    assert_eq!(configs.into_iter().collect::<Vec<_>>(), [(key.clone(), json!("inner").try_into().unwrap())]);
    work(memory().await.instrumented(), name, key).await.unwrap();
}

#[tokio::test]
async fn an_update_is_one_read_and_at_most_one_write() {
    let count = Count::default();
    let storage = memory().await.layer(count.clone());
    storage.set_credential("a", json!({ "project": "p" })).await.unwrap();
    let mut tx = storage.begin().await.unwrap();
    tx.update_credential_as("a", |account: Account| async { Ok::<_, Error>(account) }).await.unwrap();
    let calls = || ["transaction_get_credential", "transaction_set_credential"].map(|name| count.of(name));
    assert_eq!(calls(), [1, 0], "nothing changed");
    let other = |_: Account| async { Ok::<_, Error>(Account { project: "q".into() }) };
    tx.update_credential_as("a", other).await.unwrap();
    assert_eq!(calls(), [2, 1]);
    let stop = |_: Account| async { Err::<Account, _>(Own::Stop) };
    assert_eq!(tx.update_credential_as("a", stop).await, Err(Own::Stop));
    assert_eq!(calls(), [3, 1]);
}
