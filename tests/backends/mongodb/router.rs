//! Batches and increments behind a router to shards (mongos).

use std::time::Duration;

use gateway_storage::{ErrorKind, Exportable, Increment, Outcome, Record};
use mongodb::bson::doc;

use super::{
    Result, documents, key, open,
    servers::{self, router::Router},
};

#[tokio::test]
async fn items_that_a_shard_may_have_applied_are_unknown() -> Result {
    let set = servers::mongodb_set();
    let router = Router::before(set.members[0].addr()).await;
    let database = servers::database();
    let storage = open(&format!("mongodb://{}/{database}", router.addr)).await;
    assert_eq!(storage.stats().await?.details["topology"], "sharded");
    for (round, code) in [50, 6, 89, 11602, 112].into_iter().enumerate() {
        let counted = round as i64 + 1;
        let counter = |n| Record::Usage { key: key(&format!("{n}")), field: key("n"), count: counted };
        let counters: Vec<_> = (0..300).map(counter).collect();
        router.lose_updates(code);
        let result = storage.backend().import(&counters).await;
        router.lose_updates(0);
        // A batch whose items all failed with the same retryable error is one error.
        let errors = match result {
            Err(error) => vec![error],
            Ok(report) => {
                assert_eq!((report.succeeded, report.failures.len()), (0, counters.len()));
                report.failures.into_iter().map(|failure| failure.error).collect()
            }
        };
        for error in errors {
            assert_eq!(
                (error.outcome(), error.code()),
                (Outcome::Unknown, Some(&*code.to_string())),
                "{error:?}"
            );
        }
        // The shard has applied all of them.
        let stored = storage.list_usage().await?;
        assert_eq!(stored.len(), counters.len());
        assert!(stored.values().all(|record| record.get("n") == Some(counted)));
    }
    storage.close().await
}

#[tokio::test]
async fn increments_that_a_shard_may_have_applied_are_not_committed() -> Result {
    let set = servers::mongodb_set();
    let router = Router::before(set.members[0].addr()).await;
    let storage = open(&format!("mongodb://{}/{}", router.addr, servers::database())).await;
    let steps: Vec<_> = (0..300).map(|n| Increment::new(&key(&format!("{n}")), &key("n"), 1)).collect();
    for code in [50, 6, 11602] {
        router.lose_updates(code);
        let error = storage.increment_many(&steps).await.unwrap_err();
        router.lose_updates(0);
        assert_eq!((error.outcome(), error.code()), (Outcome::NotApplied, Some(&*code.to_string())));
        assert_eq!(storage.list_usage().await?.len(), 0);
    }
    assert_eq!(storage.increment_many(&steps).await?.complete()?, vec![1; 300]);
    storage.close().await
}

#[tokio::test]
async fn items_that_are_refused_themselves_are_not_applied() -> Result {
    let set = servers::mongodb_set();
    let router = Router::before(set.members[0].addr()).await;
    let url = format!("mongodb://{}/{}", router.addr, servers::database());
    let storage = open(&url).await.with_deadline(Duration::from_secs(5));
    let text = doc! { "_id": "text", "counts": { "n": "text" } };
    documents(&url, "usage").await.insert_one(text).await.unwrap();
    storage.increment_usage("full", "n", i64::MAX).await?;
    // Single commands, and then transactions.
    for (round, others) in [(1, 0), (2, 100)] {
        let others: Vec<String> = (0..others).map(|n| format!("other {n}")).collect();
        let records = ["text", "full", "good"].into_iter().chain(others.iter().map(String::as_str));
        let steps: Vec<_> = records.map(|record| Increment::new(&key(record), &key("n"), 1)).collect();
        let report = storage.increment_many(&steps).await?;
        let found: Vec<_> =
            report.failures.iter().map(|failure| (failure.key.as_str(), failure.error.kind())).collect();
        assert_eq!(found, [("text", ErrorKind::Corrupt), ("full", ErrorKind::Overflow)]);
        assert!(report.failures.iter().all(|failure| failure.error.outcome() == Outcome::NotApplied));
        assert_eq!(report.totals[..3], [None, None, Some(round)]);
        assert_eq!(report.totals[3..], vec![Some(1); others.len()]);
        assert_eq!(storage.get_usage("good").await?.get("n"), Some(round));
    }
    storage.close().await
}
