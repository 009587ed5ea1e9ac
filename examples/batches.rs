//! Stores, reads and deletes many credentials at once.
//!
//!     cargo run --example batches              # in a temporary directory
//!     cargo run --example batches -- ./data    # in a directory that stays

use std::{env, error::Error};

use gateway_storage::{File, Storage};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let directory = env::args_os().nth(1).map_or_else(|| temporary.path().join("data"), Into::into);
    let storage = Storage::<File>::open(directory).await?;

    let credentials = (1..=3).map(|number| {
        let fields =
            json!({ "access_token": format!("token{number}"), "project_id": format!("proj{number}") });
        (format!("cred-{number:03}"), fields)
    });

    // A batch reports each failed item. `complete` turns the first failure into an error.
    let stored = storage.set_credentials(credentials).await?.complete()?;
    println!("stored {stored} credentials");

    let ids = ["cred-001", "cred-002", "cred-003", "cred-999"];
    let found = storage.get_credentials(ids).await?;
    for (id, credential) in &found.values {
        println!("found {}: {credential:?}", id.as_str());
    }
    for failure in &found.failures {
        println!("not found {}: {}", failure.key.as_str(), failure.error);
    }

    // One bad item does not stop the others.
    let deleted = storage.delete_credentials(ids).await?;
    println!("deleted {}, failed {}", deleted.succeeded, deleted.failures.len());

    storage.close().await?;
    Ok(())
}
