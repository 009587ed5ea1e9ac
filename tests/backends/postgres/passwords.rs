//! Passwords that change while a store is open.

use std::{
    fs, io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use gateway_storage::{ErrorKind, Outcome, Postgres, PostgresOptions, Secret, Storage};
use serde_json::json;
use tokio_postgres::Client;

use super::{Result, open, raw, servers::postgres::Server};

const RULES: &str = "host all rotating all scram-sha-256\nhost all all all trust\n";

fn server() -> Server {
    Server::prepared(&[], |data| fs::write(data.join("pg_hba.conf"), RULES).unwrap())
}

async fn set(administrator: &Client, password: &str) {
    administrator.batch_execute(&format!("ALTER ROLE rotating PASSWORD '{password}'")).await.unwrap();
}

/// Terminates the connections of the role and waits until the store has noticed.
async fn end_connections(administrator: &Client, storage: &Storage<Postgres>) {
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotating'";
    administrator.batch_execute(end).await.unwrap();
    let alive = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'rotating'";
    let started = Instant::now();
    while administrator.query_one(alive, &[]).await.unwrap().get::<_, i64>(0) > 0 {
        assert!(started.elapsed() < Duration::from_secs(30), "the connections stay");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // One request may still get the error of the terminated connection.
    drop(storage.get_config("a").await);
}

/// Changes the password from "one" to "two" and "three". Each new connection must read it from its source.
async fn check_changes(administrator: &Client, storage: Storage<Postgres>, store: impl Fn(&str)) -> Result {
    storage.set_config("a", json!(1)).await?;
    store("two");
    set(administrator, "two").await;
    storage.set_config("a", json!(2)).await?;
    end_connections(administrator, &storage).await;
    storage.set_config("a", json!(3)).await?;

    // The pool must open a connection.
    set(administrator, "three").await;
    let held = storage.begin().await?;
    let error = storage.get_config("a").await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Denied, Outcome::NotApplied), "{error:?}");
    assert_eq!(error.code(), Some("28P01"));
    assert!(!format!("{error:?}").contains("two"));
    store("three");
    assert_eq!(*storage.get_config("a").await?.value(), 3);
    held.rollback().await?;
    storage.close().await
}

#[tokio::test]
async fn a_changed_password_is_read_from_its_source() -> Result {
    let server = server();
    let administrator = raw(&server.url()).await;
    administrator.batch_execute("CREATE ROLE rotating LOGIN SUPERUSER PASSWORD 'one'").await.unwrap();
    let url = format!("{}&pool_size=2", server.url()).replace("tester@", "rotating@");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    let store = |password: &str| fs::write(&file, format!("{password}\n")).unwrap();
    store("one");
    let url_of_file = format!("{url}&schema=of_file&password_file={}", file.display());
    check_changes(&administrator, open(&url_of_file).await, store).await?;

    set(&administrator, "one").await;
    let token = Arc::new(Mutex::new("one".to_owned()));
    let read = token.clone();
    let secret = Secret::call(move || {
        let token = read.lock().unwrap().clone();
        async move { io::Result::Ok(token) }
    });
    let options = PostgresOptions::try_from(format!("{url}&schema=of_call")).unwrap().with_password(secret);
    let storage = Storage::<Postgres>::open(options).await?;
    check_changes(&administrator, storage, |password| *token.lock().unwrap() = password.to_owned()).await
}

#[tokio::test]
async fn a_missing_password_is_an_error() -> Result {
    let server = server();
    let url = server.url().replace("tester@", "rotating@");
    let missing = format!("{url}&password_file=/nowhere/password");
    let error = Storage::<Postgres>::open(missing.as_str()).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
    assert!(error.to_string().contains("/nowhere/password"), "{error}");

    let secret = Secret::call(|| async {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        io::Result::Ok("one".to_owned())
    });
    let options = PostgresOptions::try_from(url).unwrap();
    let options = options.with_connect_timeout(Duration::from_millis(200)).with_password(secret);
    let started = Instant::now();
    let error = Storage::<Postgres>::open(options).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied));
    assert!(error.to_string().contains("timed out waiting for the password"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(8), "the connect timeout must end the wait");
    Ok(())
}
