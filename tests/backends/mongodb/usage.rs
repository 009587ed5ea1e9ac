//! Counters, budgets and streams.

use std::time::Duration;

use gateway_storage::{ErrorKind, Increment, Outcome, usage::Within};
use mongodb::bson::{Bson, Document, doc};

use super::{
    Result, documents, key, open, raw,
    servers::{self, mongodb::Server, router::Router},
};
use crate::counters;

/// A replica set, a router before one, and a server without transactions.
async fn setups() -> [String; 3] {
    let router = Router::before(servers::mongodb_set().members[0].addr()).await;
    let router = format!("mongodb://{}/{}", router.addr, servers::database());
    [servers::mongodb(), router, servers::mongodb_alone()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_of_few_and_of_many_records() -> Result {
    for url in setups().await {
        let storage = open(&url).await.with_deadline(Duration::from_secs(60));
        for records in [7, 60] {
            counters::batches_are_those_of_memory(&storage, records).await;
            storage.reset_usage_prefix("b").await?;
        }
        storage.close().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn totals_and_budgets_are_exact_concurrently() -> Result {
    for url in setups().await {
        let [one, two] = [open(&url).await, open(&url).await];
        let storages = [one, two].map(|storage| storage.with_deadline(Duration::from_secs(60)));
        for records in [3, 40] {
            counters::each_total_is_returned_once(&storages, records).await;
            storages[0].reset_usage_prefix("hot").await?;
        }
        counters::a_budget_holds(&storages).await;
        for storage in storages {
            storage.close().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn streams_and_prefixes() -> Result {
    for url in setups().await {
        let storage = open(&url).await.with_deadline(Duration::from_secs(60));
        counters::streams_cross_pages(&storage).await;
        storage.close().await?;
    }
    for url in setups().await {
        let storage = open(&url).await;
        counters::prefixes_are_texts(&storage).await;
        storage.close().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_refusal_writes_nothing() -> Result {
    let url = servers::mongodb();
    let (storage, database) = (open(&url).await, raw(&url).await);
    storage.increment_usage("a", "n.$%", 6).await?;
    let log = database.client().database("local").collection::<Document>("oplog.rs");
    let namespace = format!("{}.usage", database.name());
    let writes = async || log.count_documents(doc! { "ns": &namespace }).await.unwrap();
    let before = writes().await;
    assert_eq!(storage.increment_within("a", "n.$%", 5, 10).await?, Within::Refused(6));
    assert_eq!(storage.increment_within("a", "n.$%", i64::MAX, i64::MIN).await?, Within::Refused(6));
    assert_eq!(storage.increment_within("a", "other", 2, 1).await?, Within::Refused(0));
    assert_eq!(storage.increment_within("b", "n", 2, 1).await?, Within::Refused(0));
    assert_eq!(writes().await, before);
    let stored = documents(&url, "usage").await.find_one(doc! {}).await.unwrap();
    assert_eq!(stored, Some(doc! { "_id": "a", "counts": { "n%2E%24%25": 6_i64 } }));
    assert_eq!(storage.increment_within("a", "n.$%", 4, 10).await?, Within::Counted(10));
    assert_eq!(writes().await, before + 1);
    storage.close().await
}

#[tokio::test]
async fn counters_of_other_programs_are_counted_or_corrupt() -> Result {
    let url = servers::mongodb();
    let (storage, usage) = (open(&url).await, documents(&url, "usage").await);
    let counts = doc! { "small": 7, "text": "7", "half": 7.5, "none": Bson::Null };
    let document = doc! { "_id": "a", "counts": counts };
    usage.insert_one(&document).await.unwrap();
    for field in ["text", "half", "none"] {
        for limit in [i64::MIN, 7, i64::MAX] {
            let error = storage.increment_within("a", field, 1, limit).await.unwrap_err();
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::Corrupt, Outcome::NotApplied), "{field}");
            assert_eq!(error.key(), Some(&key("a")));
        }
        assert_eq!(storage.get_counter("a", field).await.unwrap_err().kind(), ErrorKind::Corrupt);
    }
    assert_eq!(storage.increment_within("a", "small", 1, 7).await?, Within::Refused(7));
    assert_eq!(usage.find_one(doc! {}).await.unwrap(), Some(document));
    // The sum does not fit into an Int32.
    let most = i64::from(i32::MAX);
    assert_eq!(storage.increment_within("a", "small", most, most + 7).await?, Within::Counted(most + 7));
    assert_eq!(storage.get_counter("a", "small").await?, most + 7);
    storage.close().await
}

#[tokio::test]
async fn a_batch_waits_for_a_transaction_that_holds_a_record() -> Result {
    let url = servers::mongodb();
    let (storage, database) = (open(&url).await, raw(&url).await);
    let steps: Vec<_> = (0..100).map(|n| Increment::new(&key(&format!("{n}")), &key("n"), 1)).collect();
    storage.increment_many(&steps).await?.complete()?;
    let mut held = database.client().start_session().await.unwrap();
    held.start_transaction().await.unwrap();
    let usage = database.collection::<Document>("usage");
    let add = usage.update_one(doc! { "_id": "42" }, doc! { "$inc": { "counts.n": 10_i64 } });
    add.session(&mut held).await.unwrap();
    let waiting = storage.clone();
    let call = tokio::spawn(async move { waiting.increment_many(&steps).await });
    // The other records are counted without it.
    while storage.get_counter("41", "n").await? < 2 || storage.get_counter("43", "n").await? < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!call.is_finished());
    held.commit_transaction().await.unwrap();
    let mut expected = vec![2; 100];
    expected[42] = 12;
    assert_eq!(call.await.unwrap()?.complete()?, expected);
    storage.close().await
}

#[tokio::test]
async fn counters_that_do_not_fit_fail_without_the_others() -> Result {
    let url = servers::mongodb();
    let storage = open(&url).await.with_deadline(Duration::from_secs(60));
    let field = |n: usize| key(&format!("{n:0255}"));
    // Room for about a hundred counters more.
    let counts: Document = (0..63_200).map(|n| (field(n).as_str().to_owned(), 1_i64.into())).collect();
    documents(&url, "usage").await.insert_one(doc! { "_id": "big", "counts": counts }).await.unwrap();
    for others in [3, 60] {
        let step = |n: usize| Increment::new(&key(&format!("other {others} {n}")), &key("n"), 1);
        let big = (0..400).map(|n| Increment::new(&key("big"), &field(90_000 + others * 1_000 + n), 1));
        let steps: Vec<_> = (0..others).map(step).chain(big).collect();
        let before = storage.get_usage("big").await?.len();
        let found = storage.increment_many(&steps).await?;
        assert_eq!(found.totals[..others], vec![Some(1); others]);
        let counted = found.totals.iter().flatten().count() - others;
        assert_eq!(storage.get_usage("big").await?.len(), before + counted);
        assert_eq!(found.failures.len(), 400 - counted);
        for failure in &found.failures {
            let error = &failure.error;
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::TooLarge, Outcome::NotApplied));
        }
        assert!(!found.failures.is_empty());
    }
    storage.close().await
}

#[tokio::test]
async fn a_reset_by_prefix_that_was_interrupted_is_unknown() -> Result {
    let server = Server::start(&["--setParameter", "enableTestCommands=1"]);
    let storage = open(&server.url("reset")).await;
    storage.increment_usage("old 1", "n", 1).await?;
    let interrupt = doc! { "configureFailPoint": "failCommand", "mode": { "times": 1 },
    "data": { "failCommands": ["delete"], "errorCode": 11601 } };
    server.ask("admin", interrupt);
    let error = storage.reset_usage_prefix("old").await.unwrap_err();
    assert_eq!((error.outcome(), error.code()), (Outcome::Unknown, Some("11601")));
    assert_eq!(storage.reset_usage_prefix("old").await?, 1);
    storage.close().await
}
