//! The documents as a shell shows them, and databases of other programs.

use futures_util::StreamExt;
use gateway_storage::{
    ErrorKind, Exportable, Increment, MongoDb, Record, Storage,
    plan::{ApplyOptions, Plan},
    revision::Revision,
};
use mongodb::bson::{Bson, DateTime, Document, doc, oid::ObjectId};
use serde_json::json;

use super::{Result, documents, key, open, raw, servers};

#[tokio::test]
async fn documents_are_readable_in_a_shell() -> Result {
    let url = servers::mongodb();
    let storage = open(&url).await;
    let found = async |collection: &str, id: &str| -> Document {
        documents(&url, collection).await.find_one(doc! { "_id": id }).await.unwrap().unwrap()
    };
    let rev = |value: &serde_json::Value| Revision::of(value.to_string().as_bytes()).to_string();
    let alice = json!({ "access_token": "ya29.x", "expires_at": 1_767_225_600_000_i64, "tries": 3, "share": 0.5, "a.b": [null] });
    storage.set_credential("alice", alice.clone()).await?;
    assert_eq!(
        found("credentials", "alice").await,
        doc! { "_id": "alice", "value": {
            "a.b": [Bson::Null], "access_token": "ya29.x", "expires_at": 1_767_225_600_000_i64, "share": 0.5, "tries": 3,
        }, "rev": rev(&alice) }
    );
    // A value that BSON can't hold is replaced by one that it can.
    storage.set_config("limits", json!({ "$max": u64::MAX })).await?;
    let text = r#"{"$max":18446744073709551615}"#;
    assert_eq!(
        found("configs", "limits").await,
        doc! { "_id": "limits", "json": text, "rev": rev(&json!({ "$max": u64::MAX })) }
    );
    assert_eq!(storage.get_config("limits").await?.value(), &json!({ "$max": u64::MAX }));
    storage.set_config("limits", json!({ "max": 1 })).await?;
    assert_eq!(
        found("configs", "limits").await,
        doc! { "_id": "limits", "value": { "max": 1 }, "rev": rev(&json!({ "max": 1 })) }
    );

    storage.increment_usage("alice", "requests", 1).await?;
    storage.increment_many(&[Increment::new(&key("alice"), &key("$a.b%"), -2)]).await?.complete()?;
    assert_eq!(
        found("usage", "alice").await,
        doc! { "_id": "alice", "counts": { "requests": 1_i64, "%24a%2Eb%25": -2_i64 } }
    );
    let credentials = documents(&url, "credentials").await;
    assert_eq!(credentials.count_documents(doc! { "value.access_token": "ya29.x" }).await.unwrap(), 1);
    storage.close().await
}

#[tokio::test]
async fn changes_by_other_programs_are_read_or_corrupt() -> Result {
    let url = servers::mongodb();
    let storage = open(&url).await;
    let credentials = documents(&url, "credentials").await;
    credentials
        .insert_one(doc! { "_id": "by hand", "value": { "n": 1.0 }, "note": "kept apart" })
        .await
        .unwrap();
    assert_eq!(storage.get_credential("by hand").await?, json!({ "n": 1.0 }).try_into()?);
    credentials.insert_one(doc! { "_id": "dated", "value": { "at": DateTime::now() } }).await.unwrap();
    let error = storage.get_credential("dated").await.unwrap_err();
    assert_eq!((error.kind(), error.key()), (ErrorKind::Corrupt, Some(&key("dated"))));
    // It ends an export, but not a batch.
    let ids = [key("by hand"), key("dated")];
    let found = storage.get_credentials(&ids).await?;
    assert_eq!((found.values.len(), found.failures[0].error.kind()), (1, ErrorKind::Corrupt));
    let records: Vec<_> = storage.export().collect().await;
    assert_eq!(records.last().unwrap().as_ref().unwrap_err().kind(), ErrorKind::Corrupt);
    storage.delete_credential("dated").await?;

    let usage = documents(&url, "usage").await;
    usage.insert_one(doc! { "_id": "u", "counts": { "n": "many", "m": 1 } }).await.unwrap();
    let error = storage.get_usage("u").await.unwrap_err();
    assert_eq!((error.kind(), error.key()), (ErrorKind::Corrupt, Some(&key("u"))));
    let error = storage.increment_usage("u", "n", 1).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Corrupt, Some("14")));
    assert_eq!(storage.increment_usage("u", "m", 1).await?, 2, "an Int32 is a count as well");

    credentials.insert_one(doc! { "_id": ObjectId::new() }).await.unwrap();
    assert_eq!(storage.list_credentials().await.unwrap_err().kind(), ErrorKind::Corrupt);
    storage.close().await
}

#[tokio::test]
async fn a_record_over_16_mib_is_too_large_and_stays_unchanged() -> Result {
    let url = servers::mongodb();
    let storage = open(&url).await.with_deadline(std::time::Duration::from_secs(60));
    let field = |n: usize| key(&format!("{n:0255}"));
    let counts: Document = (0..60_000).map(|n| (field(n).as_str().to_owned(), 1_i64.into())).collect();
    documents(&url, "usage").await.insert_one(doc! { "_id": "big", "counts": counts }).await.unwrap();
    let records: Vec<_> =
        (60_000..65_000).map(|n| Record::Usage { key: key("big"), field: field(n), count: 1 }).collect();
    let report = storage.backend().import(&records).await?;
    let error = &report.failures[0].error;
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::TooLarge, false), "{error:?}");
    let stored = storage.get_usage("big").await?.len();
    // Some parts of the import fit.
    assert!((60_000..65_000).contains(&stored), "{stored}");
    assert_eq!(storage.increment_usage("big", &field(0), 1).await?, 2);
    storage.close().await
}

#[tokio::test]
async fn only_stores_of_this_crate_are_opened() -> Result {
    let refused = async |url: &str| Storage::<MongoDb>::open(url).await.map(drop).unwrap_err();
    // Ten handles open it at the same time, and the first one creates it.
    let url = servers::mongodb();
    let existing = format!("{url}&create=false");
    assert_eq!(refused(&existing).await.kind(), ErrorKind::NotFound);
    let opened =
        futures_util::future::join_all((0..10).map(|_| Storage::<MongoDb>::open(url.as_str()))).await;
    for storage in opened {
        let storage = storage?;
        storage.increment_usage("opened", "times", 1).await?;
        storage.close().await?;
    }
    let storage = open(&existing).await;
    assert_eq!(storage.get_usage("opened").await?.get("times"), Some(10));
    storage.close().await?;

    documents(&url, "meta").await.update_one(doc! {}, doc! { "$inc": { "version": 1 } }).await.unwrap();
    assert_eq!(refused(&url).await.kind(), ErrorKind::Unsupported);
    documents(&url, "meta").await.update_one(doc! {}, doc! { "$set": { "version": "x" } }).await.unwrap();
    assert_eq!(refused(&url).await.kind(), ErrorKind::Corrupt);

    // Legacy data.
    let legacy = servers::mongodb();
    let credentials = documents(&legacy, "credentials").await;
    credentials.insert_one(doc! { "id": "a.json", "token": "x" }).await.unwrap();
    assert_eq!(refused(&legacy).await.kind(), ErrorKind::Corrupt);
    assert_eq!(raw(&legacy).await.list_collection_names().await.unwrap(), ["credentials"], "it was changed");
    Ok(())
}

#[tokio::test]
async fn stats_report_topology_counts_and_warnings() -> Result {
    let storage = open(&servers::mongodb()).await;
    storage.set_credential("a", json!({})).await?;
    storage.increment_usage("a", "n", 1).await?;
    let stats = storage.stats().await?;
    assert_eq!((stats.credential_count, stats.config_count, stats.usage_record_count), (1, 0, 1));
    assert!(stats.connection_count.unwrap() > 0 && stats.total_size.unwrap() > 0);
    assert_eq!(stats.details["topology"], "replica set");
    assert_eq!((&stats.details["members"], &stats.details["transactions"]), (&json!(1), &json!(true)));
    assert_eq!(stats.details["tls"], "not needed: on this machine");
    assert_eq!(stats.details["warnings"].as_array().unwrap().len(), 2, "{:?}", stats.details);
    storage.close().await?;
    let standalone = open(&servers::mongodb_alone()).await;
    assert_eq!(standalone.stats().await?.details["topology"], "standalone");
    standalone.close().await
}

#[tokio::test]
async fn an_interrupted_plan_is_finished_and_keeps_later_changes() -> Result {
    let url = servers::mongodb_alone();
    let storage = open(&url).await;
    let plan = |text: &str| Plan::from_json(text).unwrap();
    for key in ["a", "b", "c"] {
        storage.set_config(key, json!(0)).await?;
    }
    let interrupted =
        plan(r#"[{"set":"a","value":1},{"set":"b","value":1},{"delete":"c"},{"set":"d","value":1}]"#);
    storage.apply_plan("interrupted", &interrupted, &ApplyOptions::default()).await?;
    // The state after a process that died before it wrote any value.
    let entry = documents(&url, "plan_audit").await.find_one(doc! {}).await.unwrap().unwrap();
    let pending = doc! { "$set": { "pending": { "back": false, "entry": entry } } };
    documents(&url, "plans").await.update_one(doc! { "_id": "interrupted" }, pending).await.unwrap();
    storage.set_config("a", json!(0)).await?;
    storage.set_config("c", json!(0)).await?;
    storage.delete_config("d").await?;
    // A later change, which the plan must keep.
    storage.set_config("b", json!("mine")).await?;
    let next = plan(r#"[{"set":"e","value":1}]"#);
    storage.apply_plan("next", &next, &ApplyOptions::default()).await?;
    let found = storage.list_configs().await?;
    let found: Vec<(&str, &serde_json::Value)> =
        found.iter().map(|(key, value)| (key.as_str(), value.value())).collect();
    let (one, mine) = (json!(1), json!("mine"));
    assert_eq!(found, [("a", &one), ("b", &mine), ("d", &one), ("e", &one)]);
    let plans = documents(&url, "plans").await;
    assert_eq!(plans.count_documents(doc! { "pending": { "$exists": true } }).await.unwrap(), 0);
    storage.close().await
}
