//! Collections of `MongoDb`, as canonical Extended JSON. Their documents have no `rev`.

use ::mongodb::{
    Client, Database,
    bson::{Bson, Document, doc},
};
use gateway_storage::{MongoDb, MongoDbOptions};
use testkit::servers;

use super::*;
use crate::extended_json;

pub(crate) const COLLECTIONS: [&str; 6] = ["meta", "credentials", "configs", "usage", "plans", "plan_audit"];

pub(crate) async fn database(url: &str) -> Database {
    let options = MongoDbOptions::try_from(url).unwrap();
    let set = options.replica_set.map_or_else(String::new, |set| format!("?replicaSet={set}"));
    let url = format!("mongodb://{}/{set}", options.addr);
    Client::with_uri_str(url).await.unwrap().database(&options.database)
}

async fn load(url: &str) -> Database {
    let database = database(url).await;
    for name in COLLECTIONS {
        for line in lines(&format!("mongodb/{name}.jsonl")) {
            let Bson::Document(document) = extended_json::read(&line) else {
                panic!("one document per line")
            };
            assert!(!document.contains_key("rev"));
            database.collection::<Document>(name).insert_one(document).await.unwrap();
        }
    }
    database
}

async fn opens(url: &str) -> Result {
    let database = load(url).await;
    let storage = Storage::<MongoDb>::open(url).await?;
    everything(&storage).await?;

    // The previous version replaces a document by one without `rev`.
    let configs = database.collection::<Document>("configs");
    let (_, revision) = storage.get_config_with_revision("retries").await?;
    configs.replace_one(doc! { "_id": "retries" }, doc! { "value": 7 }).await.unwrap();
    conflicts(storage.set_config_if("retries", json!(8), Unchanged(revision)).await);
    conflicts(storage.delete_config_if("retries", revision).await);
    let (value, revision) = storage.get_config_with_revision("retries").await?;
    assert_eq!(value, json!(7).try_into()?);
    storage.set_config_if("retries", json!(8), Unchanged(revision)).await?;
    storage.close().await
}

#[tokio::test]
async fn a_mongodb_store_of_the_previous_version_in_a_replica_set() -> Result {
    opens(&servers::mongodb()).await
}

#[tokio::test]
async fn a_mongodb_store_of_the_previous_version_on_a_standalone_server() -> Result {
    opens(&servers::mongodb_alone()).await
}

/// The previous version stores the record of a plan, and its process ends before it changes the values.
#[tokio::test]
async fn a_plan_that_the_previous_version_left_on_a_standalone_mongodb() -> Result {
    for is_rollback in [false, true] {
        let url = servers::mongodb_alone();
        let database = load(&url).await;
        let plans = database.collection::<Document>("plans");
        let entry = doc! {
            "_id": 9_i64, "key": "release-42", "action": "rollback", "status": "committed", "micros": 1_i64,
            "finished": ::mongodb::bson::DateTime::now(), "mutations": 4_i64, "source": "left",
        };
        let (id, action) = (doc! { "_id": "release-42" }, if is_rollback { "rollback" } else { "apply" });
        let configs = database.collection::<Document>("configs");
        if !is_rollback {
            // The values from before the plan.
            configs.replace_one(doc! { "_id": "retries" }, doc! { "value": 2 }).await.unwrap();
            configs.insert_one(doc! { "_id": "debug", "value": true }).await.unwrap();
            configs.delete_one(doc! { "_id": "models" }).await.unwrap();
        }
        let mut entry = entry;
        entry.insert("action", action);
        let pending = doc! { "$set": { "pending": { "back": is_rollback, "entry": entry } } };
        plans.update_one(id, pending).await.unwrap();
        let meta = database.collection::<Document>("meta");
        meta.update_one(doc! { "_id": "plans" }, doc! { "$set": { "number": 9_i64 } }).await.unwrap();

        let storage = Storage::<MongoDb>::open(url.as_str()).await?;
        let other = plan(&json!([{ "set": "other", "value": 1 }]));
        assert_eq!(storage.apply_plan("other", &other, &ApplyOptions::default()).await?, Applied::Applied);
        let retries = if is_rollback { 2 } else { 3 };
        assert_eq!(storage.get_config("retries").await?, json!(retries).try_into()?);
        assert_eq!(storage.get_config("debug").await.optional()?.is_some(), is_rollback);
        assert_eq!(storage.get_config("models").await.optional()?.is_some(), !is_rollback);
        let lines = audit(&storage).await?;
        assert_eq!(lines[AUDIT.len()], format!("release-42 {action} committed - left 4 -"));
        let wanted = if is_rollback { Rollback::AlreadyRolledBack } else { Rollback::RolledBack };
        assert_eq!(storage.rollback_plan("release-42", &RollbackOptions::default()).await?, wanted);
        storage.close().await?;
    }
    Ok(())
}
