//! MongoDB's own behavior: documents, elections, transactions.

mod calls;
mod conditional;
mod faults;
mod layout;
mod lease;
mod login;
mod plans;
mod pool;
mod router;
mod transactions;
mod usage;
mod watch;

use std::time::{Duration, Instant};

use gateway_storage::{ConfigValue, Key, MongoDb, MongoDbOptions, Storage};
use mongodb::{
    Client, Collection, Database,
    bson::{Document, doc},
};
use serde_json::Value;
use testkit::servers;

type Result<T = ()> = gateway_storage::Result<T>;

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn config(value: Value) -> ConfigValue {
    ConfigValue::new(value).unwrap()
}

async fn open(url: &str) -> Storage<MongoDb> {
    Storage::open(url).await.expect("a MongoDB store opens")
}

/// A number of rounds, which `GATEWAY_STORAGE_TEST_ROUNDS=1000` raises for a long run.
fn rounds(usual: usize) -> usize {
    std::env::var("GATEWAY_STORAGE_TEST_ROUNDS").map_or(usual, |rounds| rounds.parse().expect("a number"))
}

/// The plain driver, as another program would use it.
async fn raw(url: &str) -> Database {
    // The driver does not know this crate's options.
    let client = Client::with_uri_str(url.replace("deadline=10s", "appName=raw"))
        .await
        .expect("the plain driver connects");
    client.database(&MongoDbOptions::try_from(url).unwrap().database)
}

async fn documents(url: &str, collection: &str) -> Collection<Document> {
    raw(url).await.collection(collection)
}

/// How many times the server has run a command.
async fn command_count(database: &Database, command: &str) -> i64 {
    let status = database.client().database("admin").run_command(doc! { "serverStatus": 1 }).await.unwrap();
    let commands = status.get_document("metrics").unwrap().get_document("commands").unwrap();
    commands.get_document(command).map_or(0, |counts| counts.get_i64("total").unwrap())
}

async fn until_healthy(storage: &Storage<MongoDb>) -> Instant {
    let begun = Instant::now();
    while storage.health().await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "no recovery");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Instant::now()
}
