//! A credential and its configuration, changed together: `cargo run --example mongodb_transaction --features mongodb`.
//!
//! It wants a MongoDB replica set (of one member if need be) whose URL is in `MONGODB_URL`, else
//! `mongodb://localhost/gateway_storage`.

use gateway_storage::{Credential, Key, MongoDb, Result, Storage, Transaction, transact};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<()> {
    let url =
        std::env::var("MONGODB_URL").unwrap_or_else(|_| "mongodb://localhost/gateway_storage".to_owned());
    let storage = Storage::<MongoDb>::open(url.as_str()).await?;
    let (id, retry, count) = (Key::new("cred-tx-001")?, Key::new("retry_config")?, Key::new("refreshes")?);

    // Both, or neither. (A standalone server has no transactions, and says so here.) Dropped before its commit, for one by a `?`, it is rolled back.
    let mut tx = storage.begin().await?;
    let credential = Credential::try_from(json!({ "access_token": "ya29.xxx", "project_id": "my-project" }))?;
    tx.set_credential(&id, &credential).await?;
    tx.set_config(&retry, &json!({ "max_retries": 3, "timeout": 30 }).try_into()?).await?;
    tx.set_config(&count, &json!(0).try_into()?).await?;
    tx.commit().await?;
    println!("committed");

    // Ten tasks read and write the same records: whoever loses is run again, so nothing is lost.
    let tasks: Vec<_> = (0..10)
        .map(|n| {
            let (storage, id, count) = (storage.clone(), id.clone(), count.clone());
            tokio::spawn(async move {
                transact!(&storage, |tx| {
                    let refreshes = tx.get_config(&count).await?.as_i64().unwrap_or(0) + 1;
                    let refreshed =
                        tx.get_credential(&id).await?.with("access_token", format!("ya29.{n}"))?;
                    tx.set_credential(&id, &refreshed).await?;
                    tx.set_config(&count, &json!(refreshes).try_into()?).await
                })
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no task panics")?;
    }
    println!("refreshed {} times", storage.get_config(&count).await?.to_json());
    storage.close().await
}
