//! Adopts the collections of gcli2api-go's MongoDB backend.

use ::mongodb::{
    Client, Database,
    bson::{Bson, DateTime, Document, doc, oid::ObjectId},
};
use gateway_storage::{
    ErrorKind, MongoDb, MongoDbOptions,
    adopt::{Adoption, RemarkKind},
};
use serde_json::json;

use super::*;
use crate::extended_json;

async fn database(url: &str) -> Database {
    let config = MongoDbOptions::try_from(url).unwrap();
    let set = config.replica_set.map_or_else(String::new, |set| format!("?replicaSet={set}"));
    let url = format!("mongodb://{}/{set}", config.addr);
    Client::with_uri_str(url).await.unwrap().database(&config.database)
}

const COLLECTIONS: [&str; 5] =
    ["credentials", "configs", "usage_stats", "config_plan_commits", "config_plan_locks"];

async fn load(database: &Database) {
    for collection in COLLECTIONS {
        for line in lines(&format!("mongodb/{collection}.jsonl")) {
            let Bson::Document(document) = extended_json::read(&line) else {
                panic!("one document per line")
            };
            database.collection::<Document>(collection).insert_one(document).await.unwrap();
        }
    }
}

async fn dump(database: &Database) -> Vec<String> {
    let mut dump = database.list_collection_names().await.unwrap();
    dump.sort();
    for collection in COLLECTIONS {
        let mut found = database.collection::<Document>(collection).find(doc! {}).await.unwrap();
        while found.advance().await.unwrap() {
            dump.push(format!("{:?}", found.current()));
        }
    }
    dump
}

/// The data as gcli2api-go reads it, without the fields that it adds.
fn wanted() -> Value {
    let mut wanted = as_read_by_go("mongodb");
    for credential in wanted["credentials"].as_object_mut().unwrap().values_mut() {
        let fields = credential.as_object_mut().unwrap();
        assert!(fields.remove("id").is_some() && fields.remove("updated_at").is_some());
    }
    wanted
}

const LEFT_OUT: [&str; 5] = [
    "config_plan_commits 6b03602d1f480c9a24df4439: the record of a config plan of the Go program",
    "config_plan_locks mongodb:apply:p1: the record of a config plan of the Go program",
    "configs: `updated_at` of every document, which the Go program added; `_id` is the key",
    "credentials: `_id` and `updated_at` of every document, which the Go program added; `id` is the key",
    "usage_stats: `_id` and `updated_at` of every document, which the Go program added; `key` is the key",
];

#[tokio::test]
async fn the_mongodb_backend_as_go_reads_it() -> Result {
    for url in [servers::mongodb_alone(), servers::mongodb()] {
        let database = database(&url).await;
        load(&database).await;
        let before = dump(&database).await;
        assert_eq!(Adoption::open(&url, None).await?.layout(), Layout::Collections);
        let (found, remarks) = adopted(&url, None).await?;
        assert_eq!(found, wanted());
        assert_eq!(of_kind(&remarks, RemarkKind::LeftOut), LEFT_OUT);
        assert_eq!(remarks.len(), 5);
        assert_eq!(dump(&database).await, before, "the source is unchanged");
    }
    Ok(())
}

#[tokio::test]
async fn duplicates_of_races_and_unreadable_documents() -> Result {
    let url = servers::mongodb();
    let database = database(&url).await;
    load(&database).await;
    let time = DateTime::from_millis;
    let (first, second) = (ObjectId::new(), ObjectId::new());
    let insert = async |collection: &str, document: Document| {
        database.collection::<Document>(collection).insert_one(document).await.unwrap();
    };
    insert(
        "usage_stats",
        doc! { "_id": first, "key": "raced", "n": 20_i64, "a": 1_i32, "updated_at": time(1) },
    )
    .await;
    insert(
        "usage_stats",
        doc! { "_id": second, "key": "raced", "n": 12.0, "b": 2_i64, "updated_at": time(2) },
    )
    .await;
    insert(
        "usage_stats",
        doc! { "_id": "n", "key": "nested", "a": { "b": { "c": 3_i64 } }, "x": "many", "y": 1.5 },
    )
    .await;
    insert("usage_stats", doc! { "_id": "k", "n": 1_i64 }).await;
    insert("credentials", doc! { "_id": first, "id": "raced", "token": "new", "updated_at": time(9) }).await;
    insert("credentials", doc! { "_id": second, "id": "raced", "token": "old", "updated_at": time(5) }).await;
    insert("credentials", doc! { "_id": "1", "id": "twice", "n": 1 }).await;
    insert("credentials", doc! { "_id": "2", "id": "twice", "n": 2 }).await;
    insert("sessions", doc! { "_id": "x" }).await;
    insert("credentials", doc! { "_id": "t", "id": "times", "expiry": time(1_795_383_340_640), "n": [5.0, 5.5, -0.0], "updated_at": "mine" })
        .await;
    insert("credentials", doc! { "_id": "o", "id": "object id", "owner": first }).await;
    insert("credentials", doc! { "_id": "nan", "id": "nan", "n": f64::NAN }).await;
    insert("credentials", doc! { "_id": "i", "id": 5 }).await;
    insert("credentials", doc! { "_id": "e", "id": "" }).await;
    insert("credentials", doc! { "_id": "l", "id": "large", "a": "x".repeat(1 << 20) }).await;
    let deep = (0..64).fold(Bson::Int32(1), |inner, _| Bson::Array(vec![inner]));
    insert("credentials", doc! { "_id": "d", "id": "deep", "a": deep }).await;
    insert("configs", doc! { "_id": "none", "key": "none" }).await;
    insert("configs", doc! { "_id": "this", "key": "that", "value": 1 }).await;
    insert("configs", doc! { "_id": "more", "key": "more", "value": 1, "note": "x" }).await;
    let (found, remarks) = adopted(&url, None).await?;
    let mut wanted = wanted();
    wanted["usage"]["raced"] = json!({ "n": 32, "a": 1, "b": 2 });
    wanted["usage"]["nested"] = json!({ "a.b.c": 3 });
    wanted["credentials"]["raced"] = json!({ "token": "new" });
    wanted["credentials"]["twice"] = json!({ "n": 1 });
    wanted["credentials"]["times"] =
        json!({ "expiry": "2026-11-22T21:35:40.64Z", "n": [5, 5.5, -0.0], "updated_at": "mine" });
    wanted["configs"]["more"] = json!(1);
    assert_eq!(found, wanted);
    assert!(found["credentials"]["times"]["n"][2].as_f64().unwrap().is_sign_negative());
    let lines = not_understood(&remarks);
    let places: Vec<&str> = lines.iter().map(|line| line.split_once(": ").unwrap().0).collect();
    let older = format!("credentials {}", second.to_hex());
    let mut wanted = [
        "configs none",
        "configs this",
        "credentials 2",
        "credentials d",
        "credentials e",
        "credentials i",
        "credentials l",
        "credentials nan",
        "credentials o",
        &older,
        "usage_stats k",
        "usage_stats n x",
        "usage_stats n y",
    ];
    wanted.sort_unstable();
    assert_eq!(places, wanted);
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("credentials 2: ")
                && line.contains("no time that shows which is newer")),
        "{lines:?}"
    );
    let other = "sessions: a collection that is no part of the layout";
    assert!(of_kind(&remarks, RemarkKind::LeftOut).contains(&other.to_owned()), "{remarks:?}");
    let changed = of_kind(&remarks, RemarkKind::Changed);
    let merged =
        format!("usage_stats {}: a further document of its key: its counters are added up", second.to_hex());
    assert!(changed.contains(&merged), "{changed:?}");
    assert!(changed.contains(&"credentials t: a time in it is adopted as text".to_owned()), "{changed:?}");
    assert_eq!(changed.len(), 5, "{changed:?}");
    Ok(())
}

#[tokio::test]
async fn other_databases_are_refused() -> Result {
    let url = servers::mongodb();
    assert_eq!(Adoption::open(&url, None).await.unwrap_err().kind(), ErrorKind::NotFound);
    Storage::<MongoDb>::open(url.as_str()).await?.close().await?;
    let error = Adoption::open(&url, None).await.unwrap_err();
    assert_eq!(error.to_string(), "the database holds a store of this crate: copy it instead");
    let nameless = url.split_once("/test_").unwrap().0;
    let error = Adoption::open(nameless, None).await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().contains("no database")), (ErrorKind::InvalidValue, true));
    Ok(())
}
