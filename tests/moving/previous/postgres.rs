//! A schema of `Postgres`, as SQL.

use gateway_storage::{Postgres, PostgresOptions};
use testkit::servers::postgres::Server;
use tokio_postgres::{Client, NoTls};

use super::*;

async fn client(server: &Server) -> Client {
    let config = format!("host=127.0.0.1 port={} user=tester dbname=postgres", server.port);
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn load(server: &Server) -> Client {
    let client = client(server).await;
    client.batch_execute(&fs::read_to_string(fixture("postgres.sql")).unwrap()).await.unwrap();
    client
}

#[tokio::test]
async fn a_postgres_store_of_the_previous_version() -> Result {
    let server = Server::start(&[]);
    let client = load(&server).await;
    let url = server.url();
    let options = || PostgresOptions::try_from(url.as_str()).unwrap();
    let old = Postgres::schema_status(options()).await?;
    if !old.is_current() {
        let error = Storage::<Postgres>::open(format!("{url}&create=false").as_str()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "it is migrated only if that is allowed");
    }
    let storage = Storage::<Postgres>::open(url.as_str()).await?;
    let new = Postgres::schema_status(options()).await?;
    assert!(new.is_current() && new.version >= old.version);
    everything(&storage).await?;

    // The statement by which the previous version writes.
    let (_, revision) = storage.get_config_with_revision("retries").await?;
    let upsert = "INSERT INTO gateway_storage.configs VALUES ('retries', '7') ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    client.batch_execute(upsert).await.unwrap();
    conflicts(storage.set_config_if("retries", json!(8), Unchanged(revision)).await);
    conflicts(storage.delete_config_if("retries", revision).await);
    assert_eq!(storage.get_config("retries").await?, json!(7).try_into()?);
    storage.close().await
}
