//! Changes a credential and its configuration together, in a transaction.
//!
//!     cargo run --example postgres_transaction --features postgres
//!
//! It needs a PostgreSQL database with its URL in `DATABASE_URL`; the default is
//! `postgres://postgres@localhost/postgres`.

use gateway_storage::{Postgres, Result, Storage, transact};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<()> {
    let url =
        std::env::var("DATABASE_URL").unwrap_or_else(|_| "postgres://postgres@localhost/postgres".to_owned());
    let storage = Storage::<Postgres>::open(url).await?;
    let (id, count) = ("cred-tx-001", "refreshes");

    // All changes are committed together or not at all. A dropped transaction (by `?`, say) is rolled back.
    let mut tx = storage.begin().await?;
    tx.set_credential(id, json!({ "access_token": "ya29.xxx", "project_id": "my-project" })).await?;
    tx.set_config("retry_config", json!({ "max_retries": 3, "timeout": 30 })).await?;
    tx.set_config_as(count, &0).await?;
    tx.commit().await?;
    println!("committed");

    // Ten tasks change the same records. `transact!` repeats a block that conflicts, so no update is lost.
    let tasks: Vec<_> = (0..10)
        .map(|n| {
            let storage = storage.clone();
            tokio::spawn(async move {
                transact!(&storage, |tx| {
                    let refreshes: i64 = tx.get_config_as(count).await?;
                    let refreshed = tx.get_credential(id).await?.with("access_token", format!("ya29.{n}"))?;
                    tx.set_credential(id, refreshed).await?;
                    tx.set_config_as(count, &(refreshes + 1)).await
                })
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no task panics")?;
    }
    println!("refreshed {} times", storage.get_config(count).await?.to_json());
    storage.close().await
}
