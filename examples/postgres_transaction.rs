//! Changes a credential and its configuration together, in a transaction.
//!
//!     cargo run --example postgres_transaction --features postgres
//!
//! It needs a PostgreSQL database with its URL in `DATABASE_URL`; the default is
//! `postgres://postgres@localhost/postgres`.

use gateway_storage::{Credential, Key, Postgres, Result, Storage, Transaction, transact};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<()> {
    let url =
        std::env::var("DATABASE_URL").unwrap_or_else(|_| "postgres://postgres@localhost/postgres".to_owned());
    let storage = Storage::<Postgres>::open(url.as_str()).await?;
    let (id, retry, count) = (Key::new("cred-tx-001")?, Key::new("retry_config")?, Key::new("refreshes")?);

    // All changes are committed together or not at all. A dropped transaction (by `?`, say) is rolled back.
    let mut tx = storage.begin().await?;
    let credential = Credential::try_from(json!({ "access_token": "ya29.xxx", "project_id": "my-project" }))?;
    tx.set_credential(&id, &credential).await?;
    tx.set_config(&retry, &json!({ "max_retries": 3, "timeout": 30 }).try_into()?).await?;
    tx.set_config(&count, &json!(0).try_into()?).await?;
    tx.commit().await?;
    println!("committed");

    // Ten tasks change the same records. `transact!` repeats a block that conflicts, so no update is lost.
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
