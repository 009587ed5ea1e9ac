//! Opens the embedded store, and prints its health and statistics.
//!
//!     cargo run --example open              # in a temporary directory
//!     cargo run --example open -- ./data    # in a directory that stays

use std::{env, error::Error};

use gateway_storage::{File, Storage};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let directory = env::args_os().nth(1).map_or_else(|| temporary.path().join("data"), Into::into);

    // Creates the store, or loads and checks it. `Storage::<File>::open("file:./data")` does the same.
    let storage = Storage::<File>::open(directory).await?;

    match storage.health().await {
        Ok(()) => println!("{}: healthy", storage.label()),
        Err(error) => println!("{}: unhealthy: {error}", storage.label()),
    }

    let stats = storage.stats().await?;
    println!("{}", serde_json::to_string_pretty(&stats)?);

    // Finishes the writes under way, and lets another process open the store.
    storage.close().await?;
    Ok(())
}
