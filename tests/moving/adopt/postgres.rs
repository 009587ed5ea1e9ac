//! Adopts the tables of gcli2api-go's PostgreSQL backend.

use gateway_storage::{
    ErrorKind, PostgresOptions,
    adopt::{Adoption, RemarkKind},
};
use serde_json::json;
use tokio_postgres::{Client, NoTls};

use super::*;
use testkit::servers::postgres::Server;

/// The tables of gcli2api-go's migration.
const TABLES: &str = "
    CREATE TABLE {s}.credentials (filename varchar(255) PRIMARY KEY, data jsonb NOT NULL, created_at timestamp, updated_at timestamp);
    CREATE TABLE {s}.credential_states (filename varchar(255) PRIMARY KEY, data jsonb NOT NULL, created_at timestamp, updated_at timestamp);
    CREATE TABLE {s}.configs (config_key varchar(255) PRIMARY KEY, value jsonb NOT NULL, updated_at timestamp);
    CREATE TABLE {s}.usage_stats (usage_key varchar(255), field varchar(255), value bigint, updated_at timestamp,
        PRIMARY KEY (usage_key, field));
    CREATE TABLE {s}.schema_migrations (version bigint PRIMARY KEY, dirty boolean NOT NULL);";

async fn client(server: &Server) -> Client {
    connect(&server.port.to_string()).await
}

async fn connect(port: &str) -> Client {
    let config = format!("host=127.0.0.1 port={port} user=tester dbname=postgres");
    let (client, connection) =
        tokio_postgres::connect(&config, NoTls).await.expect("the plain driver connects");
    tokio::spawn(connection);
    client
}

async fn load(client: &Client, schema: &str) {
    client.batch_execute(&TABLES.replace("{s}", schema)).await.unwrap();
    for table in ["credentials", "credential_states", "configs", "usage_stats", "schema_migrations"] {
        for row in lines(&format!("postgres/{table}.jsonl")) {
            let insert = format!(
                "INSERT INTO {schema}.{table} SELECT * FROM json_populate_record(NULL::{schema}.{table}, $1::text::json)"
            );
            client.execute(&insert, &[&row.to_string()]).await.unwrap();
        }
    }
}

/// All rows, and the number of writes to the tables.
async fn dump(client: &Client, schema: &str) -> Vec<String> {
    let mut dump = Vec::new();
    for table in ["credentials", "credential_states", "configs", "usage_stats", "schema_migrations"] {
        let rows = format!("SELECT t.xmin::text || ctid::text || t::text FROM {schema}.{table} t");
        dump.extend(client.query(&rows, &[]).await.unwrap().iter().map(|row| row.get::<_, String>(0)));
    }
    let schemas = client.query("SELECT nspname::text FROM pg_namespace ORDER BY 1", &[]).await.unwrap();
    dump.extend(schemas.iter().map(|row| row.get::<_, String>(0)));
    dump
}

/// The remarks about tables without data.
fn left_out() -> Vec<String> {
    let times = ["configs", "credential_states", "credentials"].map(|table| format!("{table}: {TIMES}"));
    let version = "schema_migrations: the version of the Go program's tables".to_owned();
    times.into_iter().chain([version, format!("usage_stats: {TIMES}")]).collect()
}

const TIMES: &str = "the columns with times of changes";

/// The remarks about credentials that gcli2api-go wrote back without their unknown fields.
fn stripped() -> Vec<String> {
    let wanted = as_read_by_go("postgres");
    let credentials = wanted["credentials"].as_object().unwrap();
    let has_no_token = credentials.iter().filter(|(_, fields)| fields["refresh_token"] == "");
    let reason = "it is adopted as it is stored, but has no token: the Go program wrote it back without the fields that it \
        did not know";
    has_no_token.map(|(id, _)| format!("credentials {id}: {reason}")).collect()
}

#[tokio::test]
async fn the_postgres_backend_as_go_reads_it() -> Result {
    let server = Server::start(&[]);
    let client = client(&server).await;
    load(&client, "public").await;
    let before = dump(&client, "public").await;
    assert_eq!(Adoption::open(&server.url(), None).await?.layout(), Layout::Tables);
    let (found, remarks) = adopted(&server.url(), None).await?;
    assert_eq!(found, as_read_by_go("postgres"));
    assert_eq!(of_kind(&remarks, RemarkKind::Changed), stripped());
    assert_eq!(of_kind(&remarks, RemarkKind::LeftOut), left_out());
    assert_eq!(remarks.len(), 12);
    assert_eq!(dump(&client, "public").await, before, "the source is unchanged");

    // A field that a transaction of gcli2api-go kept and its reads dropped.
    let kept =
        r#"INSERT INTO credentials VALUES ('kept', '{"access_token":"t","Email":"a@b","expires_at":5}')"#;
    client.batch_execute(kept).await.unwrap();
    let (found, _) = adopted(&server.url(), None).await?;
    assert_eq!(found["credentials"]["kept"], json!({ "access_token": "t", "Email": "a@b", "expires_at": 5 }));
    Ok(())
}

#[tokio::test]
async fn another_schema_and_unreadable_rows() -> Result {
    let server = Server::start(&[]);
    let client = client(&server).await;
    client.batch_execute("CREATE SCHEMA \"o'clock\"").await.unwrap();
    load(&client, "\"o'clock\"").await;
    client
        .batch_execute(&format!(
            "SET search_path TO \"o'clock\";
             ALTER TABLE credentials ALTER data DROP NOT NULL;
             INSERT INTO credentials VALUES ('', '{{}}'), (E'no\\nkey', '{{}}'), (repeat('团', 100), '{{}}'), ('list', '[]'),
                ('deep', ('{{\"a\":' || repeat('[', 70) || repeat(']', 70) || '}}')::jsonb), ('null', NULL),
                ('large', jsonb_build_object('a', repeat('x', {})));
             INSERT INTO configs VALUES ('deep', (repeat('[', 65) || repeat(']', 65))::jsonb), ('text', '\"a\"');
             INSERT INTO usage_stats VALUES ('odd', '', 1), ('', 'a', 1), ('odd', 'null', NULL), ('odd', 'min', {});
             INSERT INTO credential_states VALUES ('gemini-000', '{{\"disabled\":true}}');",
            1 << 20,
            i64::MIN
        ))
        .await
        .unwrap();
    let url = format!("{}&schema=o'clock", server.url());
    let (found, remarks) = adopted(&url, None).await?;
    let mut wanted = as_read_by_go("postgres");
    wanted["configs"]["text"] = json!("a");
    wanted["usage"]["odd"] = json!({ "min": i64::MIN });
    assert_eq!(found, wanted);
    let lines = not_understood(&remarks);
    let places: Vec<&str> = lines.iter().map(|line| line.split_once(": ").unwrap().0).collect();
    let wide = format!("credentials {}", "团".repeat(100));
    assert_eq!(
        places,
        [
            "configs deep",
            "credentials ",
            "credentials deep",
            "credentials large",
            "credentials list",
            "credentials no\nkey",
            "credentials null",
            wide.as_str(),
            "usage_stats ",
            "usage_stats odd ",
            "usage_stats odd null",
        ]
    );
    let state =
        "credential_states gemini-000: the state of a credential, which only the Go program understood";
    assert!(of_kind(&remarks, RemarkKind::LeftOut).contains(&state.to_owned()), "{remarks:?}");

    // Tables of other programs.
    client
        .batch_execute(
            "CREATE TABLE \"o'clock\".stranger (configs int);
             ALTER TABLE \"o'clock\".usage_stats RENAME COLUMN field TO name",
        )
        .await
        .unwrap();
    let (found, remarks) = adopted(&url, None).await?;
    assert_eq!((&found["configs"], &found["usage"]), (&wanted["configs"], &json!({})));
    let foreign = "usage_stats: a table of this name without the columns that the Go program made";
    assert!(not_understood(&remarks).contains(&foreign.to_owned()), "{remarks:?}");
    let other = "stranger: a table that is no part of the layout";
    assert!(of_kind(&remarks, RemarkKind::LeftOut).contains(&other.to_owned()), "{remarks:?}");

    // The default schema is empty.
    let error = Adoption::open(&server.url(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    Ok(())
}

#[tokio::test]
async fn through_pgbouncer() -> Result {
    let (pooled, direct) = (servers::pgbouncer(), servers::postgres());
    let config = PostgresOptions::try_from(direct.as_str())?;
    let (_, port) = config.addr.rsplit_once(':').unwrap();
    let client = connect(port).await;
    let schema = PostgresOptions::try_from(pooled.as_str())?.schema;
    client.batch_execute(&format!("CREATE SCHEMA {schema}")).await.unwrap();
    load(&client, &schema).await;
    assert_eq!(adopted(&pooled, None).await?.0, as_read_by_go("postgres"));
    Ok(())
}

#[tokio::test]
async fn rows_of_many_pages_are_sorted_by_their_bytes() -> Result {
    let server = Server::start(&[]);
    let client = client(&server).await;
    load(&client, "public").await;
    client
        .batch_execute(
            // A collation that sorts a before B.
            "ALTER TABLE credentials ALTER filename TYPE varchar(255) COLLATE \"und-x-icu\";
             INSERT INTO credentials SELECT chr(65 + n % 58) || '-' || n, '{}' FROM generate_series(1, 1500) n;
             INSERT INTO usage_stats SELECT 'k' || n % 7, 'f' || n, n FROM generate_series(1, 3000) n;",
        )
        .await
        .unwrap();
    let (found, _) = adopted(&server.url(), None).await?;
    assert_eq!(found["credentials"].as_object().unwrap().len(), 1530);
    assert_eq!(found["usage"]["k3"]["f3"], json!(3));
    let all: usize =
        found["usage"].as_object().unwrap().values().map(|record| record.as_object().unwrap().len()).sum();
    assert_eq!(all, 3050);
    Ok(())
}

#[tokio::test]
async fn a_schema_of_this_crate_is_refused() -> Result {
    let server = Server::start(&[]);
    Storage::<gateway_storage::Postgres>::open(server.url().as_str()).await?.close().await?;
    let url = format!("{}&schema=gateway_storage", server.url());
    assert_eq!(Adoption::open(&url, None).await.unwrap_err().kind(), ErrorKind::NotFound);
    Ok(())
}
