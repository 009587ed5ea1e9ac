//! Plans in a store with the records of many others.

use gateway_storage::{
    MongoDb, Storage,
    plan::{ApplyOptions, Plan},
};
use mongodb::bson::{DateTime, Document, doc};
use serde_json::json;

use super::{
    Result, documents, open, raw, rounds,
    servers::{self, mongodb::Server},
};

/// How many records of plans the server reads while one plan is applied.
async fn records_read_by_one_plan(storage: &Storage<MongoDb>, url: &str) -> i64 {
    let database = raw(url).await;
    let profile = |level: i32| database.run_command(doc! { "profile": level });
    profile(2).await.unwrap();
    let plan = Plan::from_json(r#"[{"set":"a","value":1}]"#).unwrap();
    storage.apply_plan("one more", &plan, &ApplyOptions::default()).await.unwrap();
    profile(0).await.unwrap();
    let of_plans = doc! { "ns": format!("{}.plans", database.name()), "docsExamined": { "$exists": true } };
    let sum =
        doc! { "$group": { "_id": null, "read": { "$sum": "$docsExamined" }, "commands": { "$sum": 1 } } };
    let mut found = database
        .collection::<Document>("system.profile")
        .aggregate([doc! { "$match": of_plans }, sum])
        .await
        .unwrap();
    assert!(found.advance().await.unwrap(), "nothing was profiled");
    let found = found.deserialize_current().unwrap();
    assert!(found.get_i32("commands").unwrap() > 1, "{found}");
    i64::from(found.get_i32("read").unwrap())
}

#[tokio::test]
async fn a_plan_reads_no_records_of_other_plans() -> Result {
    for (url, is_old) in
        [(servers::mongodb(), false), (servers::mongodb_alone(), false), (servers::mongodb_alone(), true)]
    {
        let mut storage = open(&url).await;
        let plan = Plan::from_json(r#"[{"set":"b","value":1}]"#).unwrap();
        storage.apply_plan("first", &plan, &ApplyOptions::default()).await?;
        let plans = documents(&url, "plans").await;
        let first = plans.find_one(doc! {}).await.unwrap().unwrap();
        let copies = (0..rounds(300)).map(|n| {
            let mut copy = first.clone();
            copy.insert("_id", format!("copy {n}"));
            copy
        });
        plans.insert_many(copies).await.unwrap();
        if is_old {
            // A store of an earlier version gets its indexes when it is opened.
            plans.drop_indexes().await.unwrap();
            storage.close().await?;
            storage = open(&url).await;
        }
        let read = records_read_by_one_plan(&storage, &url).await;
        assert!(read < 10, "{read} records were read");
        // A plan deletes all expired records.
        let past = doc! { "$set": { "expires": DateTime::from_millis(0) } };
        plans.update_many(doc! { "_id": { "$ne": "first" } }, past).await.unwrap();
        storage.apply_plan("one more", &plan, &ApplyOptions::default()).await?;
        assert_eq!(plans.count_documents(doc! {}).await.unwrap(), 2);
        storage.close().await?;
    }
    Ok(())
}

#[tokio::test]
async fn plans_work_without_the_right_to_create_indexes() -> Result {
    let mut server = Server::start(&[]);
    let actions = ["find", "insert", "update", "remove", "listCollections", "createCollection"];
    let own = doc! { "resource": { "db": "own", "collection": "" }, "actions": actions.as_slice() };
    let concern = doc! { "w": 1, "j": true };
    server.ask(
        "own",
        doc! { "createRole": "plain", "privileges": [own], "roles": [], "writeConcern": concern.clone() },
    );
    let user = doc! { "createUser": "carol", "pwd": "secret", "roles": ["plain"], "writeConcern": concern };
    server.ask("own", user);
    server.kill();
    server.add_option("--auth");
    server.restart();
    let url = format!("mongodb://carol:secret@{}/own", server.addr());
    for n in 0..2 {
        let storage = open(&url).await;
        let plan = Plan::from_json(json!([{ "set": "a", "value": n }]).to_string()).unwrap();
        storage.apply_plan(format!("{n}"), &plan, &ApplyOptions::default()).await?;
        assert_eq!(storage.get_config("a").await?.value(), &json!(n));
        storage.close().await?;
    }
    Ok(())
}

/// The first handle of a new version makes indexes while replicas of the old one apply plans.
#[tokio::test(flavor = "multi_thread")]
async fn plans_wait_while_an_index_is_built() -> Result {
    let url = servers::mongodb();
    let storage = open(&url).await;
    let database = raw(&url).await;
    let builds = tokio::spawn(async move {
        for n in 0.. {
            let index = doc! { "key": { format!("f{n}"): 1 }, "name": "other" };
            database.run_command(doc! { "createIndexes": "plans", "indexes": [index] }).await.unwrap();
            database.run_command(doc! { "dropIndexes": "plans", "index": "other" }).await.unwrap();
        }
    });
    let tasks = (0..4).map(|task| {
        let storage = storage.clone();
        async move {
            for n in 0..rounds(25) {
                let plan = Plan::from_json(json!([{ "set": format!("{task}"), "value": n }]).to_string())?;
                storage.apply_plan(format!("{task} {n}"), &plan, &ApplyOptions::default()).await?;
            }
            Result::Ok(())
        }
    });
    let applied = futures_util::future::try_join_all(tasks).await;
    assert!(!builds.is_finished(), "an index could not be built");
    builds.abort();
    applied?;
    storage.close().await
}
