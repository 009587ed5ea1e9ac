//! PostgreSQL's own behavior: transactions, SQL, and failures of the server.

mod calls;
mod conditional;
mod connections;
mod faults;
mod hosts;
mod lease;
mod login;
mod logs;
mod passwords;
mod pool;
mod schema;
mod sql;
mod transactions;
mod usage;
mod watch;

use gateway_storage::{ConfigValue, Key, Postgres, PostgresOptions, Storage};
use serde_json::Value;
use testkit::servers;
use tokio_postgres::{Client, NoTls};

type Result<T = ()> = gateway_storage::Result<T>;

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn config(value: Value) -> ConfigValue {
    ConfigValue::new(value).unwrap()
}

async fn open(url: &str) -> Storage<Postgres> {
    Storage::open(url).await.expect("a PostgreSQL store opens")
}

/// The number of rounds, which a long run raises: `GATEWAY_STORAGE_TEST_ROUNDS=1000`.
fn rounds(usual: usize) -> usize {
    std::env::var("GATEWAY_STORAGE_TEST_ROUNDS").map_or(usual, |rounds| rounds.parse().expect("a number"))
}

/// A connection of the plain driver, as another program would use.
async fn raw(url: &str) -> Client {
    let config = PostgresOptions::try_from(url).unwrap();
    let (host, port) = config.addr.rsplit_once(':').unwrap();
    let mut driver = tokio_postgres::Config::new();
    driver.host(host).port(port.parse().unwrap()).user(config.user.as_deref().unwrap());
    driver.dbname(config.dbname.as_deref().unwrap());
    let (client, connection) = driver.connect(NoTls).await.expect("the plain driver connects");
    tokio::spawn(connection);
    client
}

fn schema(url: &str) -> String {
    PostgresOptions::try_from(url).unwrap().schema
}
