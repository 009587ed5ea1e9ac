//! The field `rev`: every write sets it, and documents without one are compared by their values.

use futures_util::TryStreamExt;
use gateway_storage::{
    Credential, ErrorKind, Exportable, MongoDb, Outcome, Record, Storage,
    plan::{ApplyOptions, Plan, Rollback, RollbackOptions},
    revision::{
        Condition::{Absent, Unchanged},
        Revision,
    },
};
use mongodb::bson::{Bson, Document, doc};
use serde_json::json;

use super::{Result, config, documents, key, open, rounds, servers};

fn conflicts<T>(result: Result<T>) {
    let error = result.map(drop).unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Conflict, Outcome::NotApplied), "{error:?}");
    assert!(!error.is_retryable() && error.key().is_some());
}

fn of(n: u64) -> Credential {
    json!({ "n": n }).try_into().unwrap()
}

/// Looks at all documents: each has the revision of its value.
async fn all_have_revisions(storage: &Storage<MongoDb>, url: &str, how: &str) -> Result {
    for collection in ["credentials", "configs"] {
        let found = documents(url, collection).await.find(doc! {}).await.unwrap();
        for document in found.try_collect::<Vec<Document>>().await.unwrap() {
            let id = document.get_str("_id").unwrap();
            let (text, revision) = if collection == "credentials" {
                let (credential, revision) = storage.get_credential_with_revision(id).await?;
                (serde_json::to_string(credential.fields()).unwrap(), revision)
            } else {
                let (value, revision) = storage.get_config_with_revision(id).await?;
                (value.value().to_string(), revision)
            };
            let rev = document.get_str("rev").unwrap_or_else(|_| panic!("{how}: {id} has no revision"));
            assert_eq!(rev, revision.to_string(), "{how}: {id}");
            assert_eq!(revision, Revision::of(text.as_bytes()), "{how}: {id}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn every_write_sets_the_revision() -> Result {
    for (url, has_transactions) in [(servers::mongodb(), true), (servers::mongodb_alone(), false)] {
        let storage = open(&url).await;
        let check = async |how: &str| all_have_revisions(&storage, &url, how).await;
        let odd = json!({ "$max": u64::MAX });
        // The first round creates documents, the second replaces them.
        for n in 0..2 {
            storage.set_credential("set", of(n)).await?;
            storage.set_credential("odd", odd.clone()).await?;
            storage.set_config("set", json!(n)).await?;
            check("set").await?;
            storage.set_credentials(&[(key("batch"), of(n)), (key("set"), of(n + 10))]).await?.complete()?;
            check("batch").await?;
            let records = ["import", "set"].map(|id| {
                let credential = Record::Credential { id: key(id), credential: of(n + 20) };
                [credential, Record::Config { key: key(id), value: config(json!(n + 20)) }]
            });
            storage.backend().import(&records.concat()).await?.complete()?;
            check("import").await?;
            let plan = json!([{ "set": "plan", "value": n }, { "set": "set", "value": n + 30 }, { "delete": "import" }]);
            let plan = Plan::from_json(plan.to_string())?;
            storage.apply_plan(format!("{n}"), &plan, &ApplyOptions::default()).await?;
            check("plan").await?;
            let rolled_back = storage.rollback_plan(format!("{n}"), &RollbackOptions::default()).await?;
            assert_eq!(rolled_back, Rollback::RolledBack);
            assert_eq!(storage.get_config("import").await?, config(json!(n + 20)));
            check("rollback").await?;
            storage.apply_plan(format!("again {n}"), &plan, &ApplyOptions::default()).await?;
            if has_transactions {
                let mut transaction = storage.begin().await?;
                for id in ["transaction", "set"] {
                    transaction.set_credential(&key(id), &of(n + 40)).await?;
                    transaction.set_config(&key(id), &config(json!(n + 40))).await?;
                }
                transaction.commit().await?;
                check("transaction").await?;
            }
            let id = format!("if {n}");
            let first = storage.set_credential_if(&id, of(n), Absent).await?;
            storage.set_config_if(&id, odd.clone(), Absent).await?;
            check("set_if Absent").await?;
            storage.set_credential_if(&id, of(n + 50), Unchanged(first)).await?;
            check("set_if Unchanged").await?;
        }
        storage.close().await?;
    }
    Ok(())
}

#[tokio::test]
async fn documents_of_older_versions_are_compared_by_their_values() -> Result {
    for url in [servers::mongodb(), servers::mongodb_alone()] {
        let storage = open(&url).await;
        let configs = documents(&url, "configs").await;
        let deep = doc! { "a.b": [null, { "": "$x" }], "n": 1_i64 };
        let fields = [
            doc! { "value": null },
            doc! { "value": [] },
            doc! { "value": [1] },
            doc! { "value": [[1]] },
            doc! { "value": "$value" },
            doc! { "value": -0.0 },
            doc! { "value": deep },
            doc! { "json": "{\"$max\":18446744073709551615}" },
            doc! { "note": "of another program", "value": 1 },
            doc! { "value": 1, "rev": 5 },
            doc! { "value": 1, "rev": "no revision" },
            doc! { "value": 1, "rev": "AB".repeat(20) },
        ];
        for fields in fields {
            let put = async || {
                let put = configs.replace_one(doc! { "_id": "old" }, &fields).upsert(true);
                put.await.unwrap();
            };
            put().await;
            let (value, revision) = storage.get_config_with_revision("old").await?;
            assert_eq!(revision, Revision::of(value.value().to_string().as_bytes()), "{fields}");
            let other = Revision::of(b"other");
            conflicts(storage.set_config_if("old", json!("new"), Absent).await);
            conflicts(storage.set_config_if("old", json!("new"), Unchanged(other)).await);
            conflicts(storage.delete_config_if("old", other).await);
            let mut expected = fields.clone();
            expected.insert("_id", "old");
            assert_eq!(configs.find_one(doc! {}).await.unwrap(), Some(expected), "a conflict changed it");

            let new = storage.set_config_if("old", json!("new"), Unchanged(revision)).await?;
            let stored = doc! { "_id": "old", "value": "new", "rev": new.to_string() };
            assert_eq!(configs.find_one(doc! {}).await.unwrap(), Some(stored), "{fields}");
            // An older version replaces the document, without `rev`.
            put().await;
            conflicts(storage.set_config_if("old", json!("newer"), Unchanged(new)).await);
            conflicts(storage.delete_config_if("old", new).await);
            storage.delete_config_if("old", revision).await?;
            assert_eq!(configs.count_documents(doc! {}).await.unwrap(), 0);
            let error = storage.delete_config_if("old", revision).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            conflicts(storage.set_config_if("old", json!("new"), Unchanged(revision)).await);
        }
        storage.close().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_change_by_hand_is_noticed_unless_it_keeps_the_revision() -> Result {
    let url = servers::mongodb();
    let storage = open(&url).await;
    let credentials = documents(&url, "credentials").await;
    let change = async |change: Document| {
        credentials.update_one(doc! { "_id": "a" }, change).await.unwrap();
    };
    let first = storage.set_credential_if("a", of(1), Absent).await?;
    change(doc! { "$set": { "value.n": 2 }, "$unset": { "rev": 1 } }).await;
    conflicts(storage.set_credential_if("a", of(3), Unchanged(first)).await);
    conflicts(storage.delete_credential_if("a", first).await);
    credentials.replace_one(doc! { "_id": "a" }, doc! { "value": { "n": 4 } }).await.unwrap();
    conflicts(storage.set_credential_if("a", of(5), Unchanged(first)).await);
    // A document that can't be read has no revision.
    credentials.replace_one(doc! { "_id": "a" }, doc! { "value": Bson::MinKey }).await.unwrap();
    let error = storage.set_credential_if("a", of(5), Unchanged(first)).await.unwrap_err();
    assert_eq!((error.kind(), error.key()), (ErrorKind::Corrupt, Some(&key("a"))));
    conflicts(storage.set_credential_if("a", of(5), Absent).await);

    // As documented: this change is lost.
    storage.set_credential("a", of(1)).await?;
    change(doc! { "$set": { "value.n": 2 } }).await;
    assert_eq!(storage.get_credential_with_revision("a").await?, (of(2), first));
    storage.set_credential_if("a", of(3), Unchanged(first)).await?;
    assert_eq!(storage.get_credential("a").await?, of(3));
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_update_is_lost_beside_writers_without_revisions() -> Result {
    for url in [servers::mongodb(), servers::mongodb_alone()] {
        let storage = open(&url).await;
        storage.set_credential("a", of(0)).await?;
        let times = rounds(30) as u64;
        let mut tasks = Vec::new();
        for _ in 0..4 {
            let (storage, credentials) = (storage.clone(), documents(&url, "credentials").await);
            tasks.push(tokio::spawn(async move {
                let mut counted = 0;
                while counted < times {
                    let (found, revision) = storage.get_credential_with_revision("a").await.unwrap();
                    let next = of(found.fields()["n"].as_u64().unwrap() + 1);
                    match storage.set_credential_if("a", next, Unchanged(revision)).await {
                        Ok(_) => counted += 1,
                        error => conflicts(error),
                    }
                }
            }));
            tasks.push(tokio::spawn(async move {
                for _ in 0..times {
                    let count = doc! { "$inc": { "value.n": 1 }, "$unset": { "rev": 1 } };
                    credentials.update_one(doc! { "_id": "a" }, count).await.unwrap();
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(storage.get_credential("a").await?, of(8 * times));
        storage.close().await?;
    }
    Ok(())
}

/// The server compares 1 and 1.0 as equal, and an older version may store either.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_of_another_type_is_a_change() -> Result {
    for url in [servers::mongodb(), servers::mongodb_alone()] {
        let storage = open(&url).await;
        let configs = documents(&url, "configs").await;
        let whole = Revision::of(b"1");
        let writers: Vec<_> = (0..3)
            .map(|_| {
                let storage = storage.clone();
                tokio::spawn(async move {
                    loop {
                        drop(storage.set_config_if("n", json!("conditional"), Unchanged(whole)).await);
                    }
                })
            })
            .collect();
        let (mut changed, float) = (0, doc! { "value": 1.0 });
        for _ in 0..rounds(200) {
            configs.replace_one(doc! { "_id": "n" }, doc! { "value": 1 }).upsert(true).await.unwrap();
            let before = configs.find_one_and_replace(doc! { "_id": "n" }, &float).await.unwrap();
            changed += u32::from(before.unwrap().get_str("value").is_ok());
            for _ in 0..5 {
                let found = configs.find_one(doc! {}).await.unwrap().unwrap();
                assert_eq!(found.get_f64("value").ok(), Some(1.0), "a change was overwritten: {found}");
            }
        }
        println!("{changed} conditional writes were first");
        writers.iter().for_each(tokio::task::JoinHandle::abort);
        storage.close().await?;
    }
    Ok(())
}
