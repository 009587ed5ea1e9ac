//! Concurrent and dropped calls, and the commands that calls send.

use std::time::Duration;

use futures_util::StreamExt;
use gateway_storage::{
    Credential, ErrorKind, Exportable, Increment, Key, Outcome, Record, list::ListOptions,
    revision::Condition,
};
use mongodb::bson::doc;
use serde_json::json;

use super::{
    Result, command_count, config, key, open, raw, rounds,
    servers::{
        self,
        mongodb::{ReplicaSet, Server},
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_upserts_succeed_and_make_one_document() -> Result {
    let url = servers::mongodb();
    let storage = open(&format!("{url}&maxPoolSize=64")).await.with_deadline(Duration::from_secs(60));
    for round in 0..rounds(30) {
        let tasks: Vec<_> = (0..64)
            .map(|task| {
                let storage = storage.clone();
                tokio::spawn(async move {
                    let new = |n: usize| key(&format!("{round}-{n}"));
                    let keys: Vec<Key> = (0..10).map(new).collect();
                    let credential: Credential = json!({ "task": task }).try_into().unwrap();
                    match task % 4 {
                        0 => {
                            for key in &keys {
                                storage.increment_usage(key, "n", 1).await.unwrap();
                            }
                        }
                        1 => {
                            let steps: Vec<_> =
                                keys.iter().map(|of| Increment::new(of, &key("n"), 1)).collect();
                            assert_eq!(
                                storage.increment_many(&steps).await.unwrap().complete().unwrap().len(),
                                10
                            );
                        }
                        2 => {
                            for key in &keys {
                                storage.set_credential(key, &credential).await.unwrap();
                            }
                        }
                        _ => {
                            let items: Vec<_> =
                                keys.iter().map(|id| (id.clone(), credential.clone())).collect();
                            assert_eq!(
                                storage.set_credentials(&items).await.unwrap().complete().unwrap(),
                                10
                            );
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    }
    let records = storage.list_usage().await?;
    assert_eq!(records.len(), 10 * rounds(30));
    assert!(records.values().all(|record| record.get("n") == Some(32)), "{records:?}");
    assert_eq!(storage.list_credentials().await?.len(), 10 * rounds(30));
    storage.close().await
}

#[tokio::test]
async fn one_command_per_operation_and_per_chunk() -> Result {
    let server = ReplicaSet::start(1);
    let url = server.url("counted");
    let storage = open(&url).await;
    let database = raw(&url).await;
    let (id, one) = (key("a"), config(json!(1)));
    let credential: Credential = json!({ "n": 1 }).try_into()?;
    let many: Vec<(Key, Credential)> =
        (0..2500).map(|n| (key(&format!("{n:04}")), credential.clone())).collect();
    let ids: Vec<Key> = many.iter().map(|(id, _)| id.clone()).collect();
    let steps: Vec<_> = ids.iter().map(|id| Increment::new(id, id, 1)).collect();
    let of_one_record: Vec<_> = (0..2500).map(|n| Increment::new(&id, &ids[n % 1000], n as i64)).collect();
    let configs: Vec<_> = ids.iter().map(|id| (id.clone(), one.clone())).collect();
    let some = ListOptions::default().with_limit(600);
    let few = ListOptions::default().with_prefix("2499");
    let records: Vec<_> =
        ids.iter().map(|key| Record::Usage { key: key.clone(), field: key.clone(), count: 1 }).collect();
    // The server looks up each new session: let it do so before the counts.
    storage.set_credentials(&many).await?.complete()?;
    storage.delete_credentials(&ids).await?.complete()?;
    storage.increment_many(&steps[..16]).await?.complete()?;
    // The background work of an idle replica set runs none of these.
    let commands =
        ["find", "update", "delete", "findAndModify", "getMore", "insert", "commitTransaction", "ping"];
    macro_rules! counted {
        ($($call:expr => [$($command:literal $count:literal),*];)*) => {$(
            let mut before = Vec::new();
            for command in commands {
                before.push(command_count(&database, command).await);
            }
            $call;
            let mut ran = Vec::new();
            for (command, before) in commands.iter().zip(before) {
                let count = command_count(&database, command).await - before;
                if count > 0 && *command != "getMore" {
                    ran.push((*command, count));
                }
            }
            let expected: &[(&str, i64)] = &[$(($command, $count)),*];
            assert_eq!(ran, expected, stringify!($call));
        )*};
    }
    #[expect(clippy::needless_late_init, reason = "the macro assigns it")]
    let revision;
    counted! {
        revision = storage.set_config_if(&id, &one, Condition::Absent).await? => ["findAndModify" 1];
        storage.get_config_with_revision(&id).await? => ["find" 1];
        storage.set_config_if(&id, &one, Condition::Unchanged(revision)).await? => ["findAndModify" 1];
        storage.set_config_if(&id, &one, Condition::Absent).await.unwrap_err() => ["findAndModify" 1];
        storage.delete_config_if(&id, revision).await? => ["findAndModify" 1];
        storage.set_credential(&id, &credential).await? => ["findAndModify" 1];
        storage.get_credential(&id).await? => ["find" 1];
        storage.delete_credential(&id).await? => ["findAndModify" 1];
        storage.set_config(&id, &one).await? => ["findAndModify" 1];
        storage.get_config(&id).await? => ["find" 1];
        storage.list_configs().await? => ["find" 1];
        storage.delete_config(&id).await? => ["findAndModify" 1];
        storage.increment_usage(&id, &id, 1).await? => ["findAndModify" 1];
        storage.get_usage(&id).await? => ["find" 1];
        storage.reset_usage(&id).await? => ["findAndModify" 1];
        storage.set_credentials(&many).await?.complete()? => ["update" 3];
        storage.get_credentials(&ids).await?.complete()? => ["find" 3];
        storage.list_credentials().await? => ["find" 1];
        // Three transactions of a look-up, a delete and a commit.
        storage.delete_credentials(&ids).await?.complete()? => ["find" 3, "delete" 3, "commitTransaction" 3];
        // Three transactions of an update, a look-up and a commit.
        storage.increment_many(&steps).await?.complete()? => ["find" 3, "update" 3, "commitTransaction" 3];
        storage.increment_many(&steps[..16]).await?.complete()? => ["findAndModify" 16];
        storage.increment_many(&of_one_record).await?.complete()? => ["findAndModify" 1];
        storage.increment_within(&id, &id, 1, 3).await? => ["findAndModify" 1];
        storage.increment_within(&id, &id, 3, 3).await? => ["findAndModify" 1];
        storage.increment_within("another", &id, 2, 1).await? => ["findAndModify" 1];
        storage.get_counter(&id, &id).await? => ["find" 1];
        storage.get_usages(&ids).await?.complete()? => ["find" 3];
        assert_eq!(storage.stream_usage(some.clone()).count().await, 600) => ["find" 3];
        assert_eq!(storage.stream_usage(few.clone()).count().await, 1) => ["find" 1];
        assert_eq!(storage.reset_usage_prefix("0").await?, 1000) => ["delete" 1];
        storage.set_configs(&configs).await?.complete()? => ["update" 3];
        storage.get_configs(&ids).await?.complete()? => ["find" 3];
        assert_eq!(storage.stream_configs(some.clone()).count().await, 600) => ["find" 3];
        assert_eq!(storage.stream_credentials(some.clone()).count().await, 0) => ["find" 1];
        storage.backend().import(&records).await?.complete()? => ["update" 3];
    }
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_calls_leave_no_open_transaction_and_no_stray_reply() -> Result {
    let url = servers::mongodb();
    let storage = open(&url).await;
    for n in 0..8 {
        storage.set_config(&key(&format!("k{n}")), json!(n)).await?;
    }
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let storage = storage.clone();
            tokio::spawn(async move {
                let own = key(&format!("k{n}"));
                for round in 0..rounds(60) {
                    let timeout = Duration::from_micros(fastrand::u64(..3000));
                    let call = async {
                        match round % 4 {
                            0 => drop(storage.get_config(&own).await),
                            1 => drop(storage.increment_usage(&own, "n", 1).await),
                            2 => {
                                let mut tx = storage.begin().await.unwrap();
                                drop(tx.set_config(&own, &config(json!("torn"))).await);
                                drop(tx.get_config(&own).await);
                                drop(tx.rollback().await);
                            }
                            _ => {
                                let mut records = std::pin::pin!(storage.export());
                                while records.next().await.is_some() {}
                            }
                        }
                    };
                    drop(tokio::time::timeout(timeout, call).await);
                    let found = storage.get_config(&own).await.unwrap();
                    assert_eq!(found.value(), &json!(n), "the reply to another call");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    // Every record can be written: no dropped transaction still holds it.
    for n in 0..8 {
        storage.set_config(&key(&format!("k{n}")), json!("free")).await?;
    }
    let pool = storage.pool_stats().await?;
    assert!(pool.open <= pool.max && pool.waiting == 0, "{pool:?}");
    storage.close().await
}

#[tokio::test]
async fn a_write_that_is_not_sent_before_its_deadline_is_not_applied() -> Result {
    let storage = open(&servers::mongodb()).await;
    let late = storage.with_deadline(Duration::ZERO);
    let error = late.set_config("a", json!(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied), "{error:?}");
    assert_eq!(storage.get_config("a").await.unwrap_err().kind(), ErrorKind::NotFound);
    storage.close().await
}

#[tokio::test]
async fn an_export_is_a_snapshot_of_its_first_poll() -> Result {
    let storage = open(&servers::mongodb()).await;
    let many: Vec<(Key, Credential)> =
        (0..1000).map(|n| (key(&format!("{n:04}")), json!({ "n": n }).try_into().unwrap())).collect();
    storage.set_credentials(&many).await?.complete()?;
    storage.set_config("later", json!("old")).await?;
    let mut records = std::pin::pin!(storage.export());
    let mut found = vec![records.next().await.unwrap()?];
    let ids: Vec<Key> = many.iter().map(|(id, _)| id.clone()).collect();
    storage.delete_credentials(&ids).await?.complete()?;
    storage.set_config("later", json!("new")).await?;
    while let Some(record) = records.next().await {
        found.push(record?);
    }
    assert_eq!(found.len(), 1001);
    assert_eq!(found[1000], Record::Config { key: key("later"), value: config(json!("old")) });
    storage.clone().close().await
}

#[tokio::test]
async fn a_batch_reports_what_it_applied_before_it_was_refused() -> Result {
    let server = Server::start(&["--setParameter", "enableTestCommands=1"]);
    let url = server.url("partly");
    let storage = open(&url).await;
    // The index refuses a second document with the same value as a duplicate, so it is sent again.
    let index = doc! { "createIndexes": "configs", "indexes": [{ "key": { "value": 1 }, "name": "n", "unique": true }] };
    server.ask("partly", index);
    let refuse = doc! { "configureFailPoint": "failCommand", "mode": { "skip": 1 },
    "data": { "failCommands": ["update"], "errorCode": 10107 } };
    server.ask("admin", refuse);
    let report = storage.set_configs(["a", "b", "c"].map(|name| (name, json!(1)))).await?;
    server.ask("admin", doc! { "configureFailPoint": "failCommand", "mode": "off" });
    assert_eq!(report.succeeded, 1, "{report:?}");
    for failure in &report.failures {
        assert_eq!(failure.error.outcome(), Outcome::NotApplied);
    }
    assert_eq!(storage.list_configs().await?.len(), 1);
    storage.close().await
}

#[tokio::test]
async fn an_abandoned_write_does_not_block_other_writes() -> Result {
    let url = servers::mongodb();
    let (holder, storage) = (open(&url).await, open(&url).await);
    storage.set_config("held", json!(0)).await?;
    let mut tx = holder.begin().await?;
    tx.set_config(&key("held"), &config(json!(1))).await?;
    let hurried = storage.with_deadline(Duration::from_millis(300));
    for _ in 0..3 {
        // The deadline ends the first write, its caller drops the second.
        let error = hurried.set_config("held", json!(2)).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown));
        drop(tokio::time::timeout(Duration::from_millis(50), storage.set_config("held", json!(3))).await);
        let quick = storage.with_deadline(Duration::from_secs(3));
        for n in 0..4 {
            quick.set_config(&key(&format!("other {n}")), json!(n)).await?;
        }
        let mut other = quick.begin().await?;
        other.set_config(&key("other"), &config(json!(1))).await?;
        other.commit().await?;
    }
    tx.rollback().await?;
    holder.close().await?;
    storage.close().await
}

#[tokio::test]
async fn lists_show_the_latest_write_with_weak_concerns_too() -> Result {
    let storage = open(&format!("{}&w=1&journal=false&readConcernLevel=local", servers::mongodb())).await;
    for n in 0..50 {
        storage.set_config("n", json!(n)).await?;
        assert_eq!(storage.list_configs().await?[&key("n")].value(), &json!(n));
    }
    storage.close().await
}
