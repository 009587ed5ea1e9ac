//! Updates lose no change, and an error says whether the change is stored.

use std::time::Duration;

use gateway_storage::{
    Error, ErrorKind, Memory, Outcome, Result, Storage,
    layer::{Count, Fault, Retry},
    revision::{Condition, Conditional, Revision},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use testkit::servers;
use tokio::task::JoinSet;

#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Counted {
    n: u64,
}

async fn count_up<B: Conditional>(storage: &Storage<B>) -> Result<Counted> {
    let next = |counted: Counted| async move {
        tokio::task::yield_now().await;
        Ok::<_, Error>(Counted { n: counted.n + 1 })
    };
    storage.update_credential_as("a", next).await
}

async fn once_more(n: u64) -> Result<u64> {
    tokio::task::yield_now().await;
    Ok(n + 1)
}

/// 64 tasks update one credential and one config value. `UPDATES=1000000` makes a million updates of each
/// instead of a few.
async fn lose_nothing<B: Conditional>(storage: Storage<B>) {
    const TASKS: u64 = 64;
    let updates = std::env::var("UPDATES").map_or(192, |number| number.parse().expect("UPDATES is a number"));
    storage.set_credential("a", json!({ "n": 0, "kept": "x" })).await.unwrap();
    storage.set_config("c", json!(0)).await.unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let storage = storage.with_deadline(Duration::from_secs(600));
        tasks.spawn(async move {
            for _ in 0..updates / TASKS {
                count_up(&storage).await.unwrap();
                storage.update_config_as("c", once_more).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    let stored = json!({ "n": updates / TASKS * TASKS, "kept": "x" }).try_into().unwrap();
    assert_eq!(storage.get_credential("a").await.unwrap(), stored);
    assert_eq!(storage.get_config_as::<u64>("c").await.unwrap(), updates / TASKS * TASKS);
}

macro_rules! lose_nothing {
    ($($feature:literal $name:ident: $backend:ty, $url:expr;)*) => { $(
        #[cfg(feature = $feature)]
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let folder = tempfile::tempdir().unwrap();
            let url: fn(&std::path::Path) -> String = $url;
            lose_nothing(Storage::<$backend>::open(&*url(folder.path())).await.unwrap()).await;
        }
    )* };
}

lose_nothing! {
    "memory" concurrent_updates_on_memory_lose_nothing: Memory, |_| "memory:".into();
    "file" concurrent_updates_on_file_lose_nothing: gateway_storage::File, |at| format!("file:{}/data", at.display());
    "git" concurrent_updates_on_git_lose_nothing: gateway_storage::Git, |at| format!("git:{}/data", at.display());
    "redis" concurrent_updates_on_redis_lose_nothing: gateway_storage::Redis, |_| servers::redis();
    "postgres" concurrent_updates_on_postgres_lose_nothing: gateway_storage::Postgres, |_| servers::postgres();
    "mongodb" concurrent_updates_on_mongodb_lose_nothing: gateway_storage::MongoDb, |_| servers::mongodb();
}

/// Requests and replies are lost below `Retry`, and others write the same credential.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_outcome_of_an_update_is_true() -> Result<()> {
    let bare = Storage::<Memory>::open("memory:").await?;
    bare.set_credential("a", json!({ "n": 0 })).await?;
    let fault = Fault::seeded(18).errors(0.05).lost_requests(0.1).lost_replies(0.1);
    let storage =
        bare.clone().layer(fault).layer(Retry::new().pauses(Default::default(), Default::default()));
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let storage = storage.clone();
            tokio::spawn(async move {
                let (mut stored, mut unknown) = (0, 0);
                for _ in 0..2_500 {
                    match count_up(&storage).await {
                        Ok(_) => stored += 1,
                        Err(error) if error.outcome() == Outcome::Unknown => unknown += 1,
                        Err(_) => {}
                    }
                }
                (stored, unknown)
            })
        })
        .collect();
    let (mut stored, mut unknown) = (0, 0);
    for task in tasks {
        let (more_stored, more_unknown) = task.await.unwrap();
        (stored, unknown) = (stored + more_stored, unknown + more_unknown);
    }
    let Counted { n } = bare.get_credential_as("a").await?;
    assert!((stored..=stored + unknown).contains(&n), "{stored} stored, {unknown} unknown, counted {n}");
    assert!(stored > 5_000 && unknown > 0, "{stored} stored, {unknown} unknown");
    Ok(())
}

#[tokio::test]
async fn a_conflict_is_not_repeated() -> Result<()> {
    let count = Count::default();
    let storage = Storage::<Memory>::open("memory:").await?.layer(count.clone()).layer(Retry::new());
    storage.set_credential("a", json!({ "n": 0 })).await?;
    let stale = Condition::Unchanged(Revision::of(b"stale"));
    let error = storage.set_credential_if("a", json!({ "n": 1 }), stale).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Conflict, Outcome::NotApplied));
    assert_eq!(count.of("set_if"), 1);
    Ok(())
}

#[tokio::test]
async fn an_update_of_a_config_replaces_the_whole_value() -> Result<()> {
    let count = Count::default();
    let storage = Storage::<Memory>::open("memory:").await?.layer(count.clone());
    let same = |value: Value| async { Ok::<_, Error>(value) };
    let missing = storage.update_config("c", same).await.unwrap_err();
    assert_eq!((missing.kind(), missing.key().map(|key| key.as_str())), (ErrorKind::NotFound, Some("c")));

    storage.set_config("c", json!({ "n": 1, "other": true })).await?;
    assert_eq!(storage.update_config("c", same).await?.value(), &json!({ "n": 1, "other": true }));
    assert_eq!(count.of("set_if"), 0, "nothing has changed");
    let next = |counted: Counted| async move { Ok::<_, Error>(Counted { n: counted.n + 1 }) };
    assert_eq!(storage.update_config_as("c", next).await?, Counted { n: 2 });
    assert_eq!(storage.get_config("c").await?.value(), &json!({ "n": 2 }), "`Counted` has no other field");

    // Another writer comes between the first reading and the write.
    let mut others = 0;
    let raced = |value: Value| {
        others += 1;
        let (storage, is_first) = (&storage, others == 1);
        async move {
            if is_first {
                storage.set_config("c", json!(["theirs"])).await?;
            }
            Ok::<_, Error>(json!([value, "mine"]))
        }
    };
    assert_eq!(storage.update_config("c", raced).await?.value(), &json!([["theirs"], "mine"]));

    let error = storage.update_config_as("c", next).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidValue, "an array is no `Counted`");
    let refuse = |_: Value| async { Err::<Value, _>(Error::new(ErrorKind::Denied, "no")) };
    assert_eq!(storage.update_config("c", refuse).await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(storage.get_config("c").await?.value(), &json!([["theirs"], "mine"]));
    Ok(())
}

#[tokio::test]
async fn the_error_of_the_change_ends_an_update() -> Result<()> {
    #[derive(Debug)]
    enum Failed {
        Mine,
        Storage(Error),
    }
    impl From<Error> for Failed {
        fn from(error: Error) -> Self {
            Self::Storage(error)
        }
    }
    let storage = Storage::<Memory>::open("memory:").await?;
    let refuse = |_: Map<String, Value>| async { Err(Failed::Mine) };
    let missing = storage.update_credential("a", refuse).await;
    assert!(matches!(missing, Err(Failed::Storage(error)) if error.kind() == ErrorKind::NotFound));
    storage.set_credential("a", json!({ "n": 1 })).await?;
    assert!(matches!(storage.update_credential("a", refuse).await, Err(Failed::Mine)));
    assert_eq!(storage.get_credential("a").await?, json!({ "n": 1 }).try_into()?);
    Ok(())
}
