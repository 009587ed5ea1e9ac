//! Stores, reads, changes, lists and deletes a credential.
//!
//!     cargo run --example credentials              # in a temporary directory
//!     cargo run --example credentials -- ./data    # in a directory that stays

use std::{env, error::Error};

use gateway_storage::{File, OptionalExt, Storage};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The fields that this program works with. A credential may have any others.
#[derive(Deserialize, Serialize)]
struct Token {
    access_token: String,
    expiry: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let directory = env::args_os().nth(1).map_or_else(|| temporary.path().join("data"), Into::into);
    let storage = Storage::<File>::open(directory).await?;

    // A credential is a JSON object. Once the call has returned, the credential survives a power failure.
    let fields = json!({
        "access_token": "ya29.xxx",
        "refresh_token": "1//xxx",
        "expiry": "2024-12-31T23:59:59Z",
        "project_id": "my-project-123",
    });
    storage.set_credential("cred-001", fields).await?;

    // It is returned as it was stored. `Debug` does not print its fields: `Credential(4 fields)`.
    let credential = storage.get_credential("cred-001").await?;
    println!("stored cred-001: {credential:?}");

    // Your type changes the fields that it has; project_id and refresh_token stay as they are.
    // A change that another writer makes meanwhile is kept, too.
    let refresh = |mut token: Token| async {
        token.access_token = "ya29.yyy".into();
        token.expiry = "2025-01-01T00:59:59Z".into();
        Ok::<_, gateway_storage::Error>(token)
    };
    let token = storage.update_credential_as("cred-001", refresh).await?;
    println!("refreshed cred-001, valid until {}", token.expiry);

    for id in storage.list_credentials().await? {
        println!("stored: {}", id.as_str());
    }

    storage.delete_credential("cred-001").await?;
    // A missing credential is an error; `optional` turns that error into `None`.
    assert!(storage.get_credential("cred-001").await.optional()?.is_none());
    println!("deleted cred-001");

    storage.close().await?;
    Ok(())
}
