//! Several hosts, their errors, and directories of sockets.

use std::{fs, os::unix::fs::MetadataExt, os::unix::fs::chown};

use gateway_storage::{Error, ErrorKind, Postgres, PostgresOptions, Storage};
use serde_json::json;

use super::{
    Result, open, raw,
    servers::{free_port, postgres::Server},
};

async fn refused(hosts: &str, user: &str) -> Error {
    let url = format!("postgres://{user}@{hosts}/postgres?sslmode=disable&connect_timeout=2s");
    Storage::<Postgres>::open(url.as_str()).await.expect_err("no host accepts the login")
}

#[tokio::test]
async fn after_a_refusal_the_next_host_is_tried() -> Result {
    let rules = "host all stranger all reject\nhost all all all trust\n";
    let picky = Server::prepared(&["default_transaction_read_only=on"], |data| {
        fs::write(data.join("pg_hba.conf"), rules).unwrap();
    });
    let writes = Server::start(&[]);
    raw(&writes.url()).await.batch_execute("CREATE ROLE stranger LOGIN SUPERUSER").await.unwrap();
    let (picky, writes) = (format!("127.0.0.1:{}", picky.port), format!("127.0.0.1:{}", writes.port));
    let nowhere = format!("127.0.0.1:{}", free_port());
    let options = "sslmode=disable&connect_timeout=2s";

    let storage = open(&format!("postgres://stranger@{picky},{nowhere},{writes}/postgres?{options}")).await;
    storage.set_config("a", json!(1)).await?;
    storage.close().await?;

    // The text has the error of each host; the code and kind are those of the most significant one.
    for hosts in [format!("{picky},{nowhere}"), format!("{nowhere},{picky}")] {
        let error = refused(&hosts, "stranger").await;
        assert_eq!((error.kind(), error.code()), (ErrorKind::Denied, Some("28000")));
        assert_eq!(
            error.to_string(),
            format!(
                "the PostgreSQL server at {nowhere} can't be reached [os error 111]; the PostgreSQL server at {picky} \
                 does not accept the login"
            )
        );
    }
    let error = refused(&format!("{nowhere},{picky}"), "tester").await;
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unavailable, Some("25006")));
    assert!(error.is_retryable(), "a standby may become the primary");
    assert!(error.to_string().contains(&format!("at {picky} takes no writes")), "{error}");
    assert!(error.to_string().contains(&format!("at {nowhere} can't be reached")), "{error}");
    let error = refused(&format!("{picky},{picky}"), "tester").await;
    assert_eq!(error.code(), Some("25006"));
    assert!(!error.to_string().contains("can't be reached"), "{error}");

    // One host, with its IP address.
    let port = free_port();
    let error = refused(&format!("localhost:{port}"), "tester").await;
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unavailable, Some("os error 111")));
    let text = error.to_string();
    assert!(
        [format!("at localhost:{port} (127.0.0.1) can't"), format!("at localhost:{port} (::1) can't")]
            .iter()
            .any(|part| text.contains(part)),
        "{text}"
    );
    let error = refused("nowhere.invalid:7", "tester").await;
    assert_eq!(error.to_string(), "the name of the PostgreSQL server at nowhere.invalid:7 can't be resolved");
    Ok(())
}

#[tokio::test]
async fn a_directory_of_sockets_may_have_colons() -> Result {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("p:r:i");
    let option = format!("unix_socket_directories={}", folder.display());
    let server = Server::prepared(&[&option], |data| {
        let owner = fs::metadata(data).unwrap();
        fs::create_dir(&folder).unwrap();
        for path in [parent.path(), &folder] {
            chown(path, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
    });
    let (path, port) = (folder.display().to_string(), server.port);
    let encoded = path.replace('/', "%2F").replace(':', "%3A");
    for url in [
        format!("postgres://tester@/postgres?host={path}&port={port}"),
        format!("postgres://tester@/postgres?host={path}:{port}"),
        format!("postgres://tester@{encoded}:{port}/postgres"),
        format!("postgres://tester@{encoded}/postgres?port={port}"),
        // An unreachable host, then the folder.
        format!("postgres://tester@/postgres?host=127.0.0.1,{path}&port={},{port}", free_port()),
    ] {
        open(&url).await.close().await?;
    }
    let options: PostgresOptions = serde_json::from_value(
        json!({ "addr": format!("{path}:{port}"), "user": "tester", "dbname": "postgres" }),
    )
    .unwrap();
    Storage::<Postgres>::open(options).await?.close().await?;
    // The default port.
    let error = refused(&encoded, "tester").await;
    assert!(error.to_string().contains(&format!("at {path}:5432 can't be reached")), "{error}");
    Ok(())
}
