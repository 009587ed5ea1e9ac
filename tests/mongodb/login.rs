//! TLS and logins.

use std::fs;

use gateway_storage::{ErrorKind, MongoDb, Outcome, Storage};
use mongodb::bson::doc;
use serde_json::json;

use crate::{
    Result, open,
    servers::{certificates, mongodb::Server},
};

/// Part of every password and name that must not be told.
const SECRET: &str = "s3cret-7f3a";

#[tokio::test]
async fn users_log_in_and_others_are_told_nothing() -> Result {
    let mut server = Server::start(&[]);
    // The server is killed next: what is not in its journal by then is gone.
    for (database, name, roles) in [
        ("admin", "alice", vec!["readWriteAnyDatabase"]),
        ("own", "bob", vec!["readWrite"]),
        ("admin", "guest", vec![]),
    ] {
        let made =
            doc! { "createUser": name, "pwd": SECRET, "roles": roles, "writeConcern": { "w": 1, "j": true } };
        server.ask(database, made);
    }
    server.kill();
    server.add_option("--auth");
    server.restart();
    let url = |login: &str, rest: &str| format!("mongodb://{login}@{}/{rest}", server.addr());

    for url in [
        url(&format!("alice:{SECRET}"), "store?authSource=admin"),
        url(&format!("alice:{SECRET}"), "store?authSource=admin&authMechanism=SCRAM-SHA-256"),
        url(&format!("alice:{SECRET}"), "?authMechanism=SCRAM-SHA-1"),
        // The database of the URL is the one that knows the user, unless another one is named.
        url(&format!("bob:{SECRET}"), "own"),
    ] {
        let storage = open(&url).await;
        storage.set_config("a", json!(1)).await?;
        storage.health().await?;
        storage.stats().await?;
        storage.close().await?;
    }
    for (url, kind) in [
        (url(&format!("alice:no-{SECRET}"), "store?authSource=admin"), ErrorKind::Denied),
        (url(&format!("{SECRET}:x"), "store?authSource=admin"), ErrorKind::Denied),
        (url(&format!("alice:{SECRET}"), "store"), ErrorKind::Denied),
        (url(&format!("guest:{SECRET}"), "store?authSource=admin"), ErrorKind::Denied),
        (format!("mongodb://{}/store", server.addr()), ErrorKind::Denied),
    ] {
        let error = Storage::<MongoDb>::open(url.as_str()).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (kind, Outcome::NotApplied), "{error:?}");
        assert!(!format!("{error:?}").contains(SECRET), "{error:?}");
    }
    Ok(())
}

#[tokio::test]
async fn tls_is_verified_unless_asked_otherwise() -> Result {
    let folder = tempfile::tempdir().unwrap();
    certificates::make(folder.path());
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for who in ["server", "client"] {
        let both =
            [fs::read(file(&format!("{who}.crt"))).unwrap(), fs::read(file(&format!("{who}.key"))).unwrap()];
        fs::write(file(&format!("{who}.pem")), both.concat()).unwrap();
    }
    let server = Server::start(&[
        "--tlsMode",
        "requireTLS",
        "--tlsCertificateKeyFile",
        &file("server.pem"),
        "--tlsCAFile",
        &file("ca.crt"),
        "--tlsAllowConnectionsWithoutCertificates",
    ]);
    let url = |host: &str, options: &str| {
        format!("mongodb://{host}:{}/store?serverSelectionTimeoutMS=2000&{options}", server.port)
    };
    let (ca, other, badge) = (file("ca.crt"), file("other.crt"), file("client.pem"));
    for (url, tls) in [
        (url("localhost", &format!("tls=true&tlsCAFile={ca}")), "verified"),
        (url("localhost", &format!("ssl=true&tlsCAFile={ca}&tlsCertificateKeyFile={badge}")), "verified"),
        (url("127.0.0.1", "tls=true&tlsAllowInvalidCertificates=true"), "not verified"),
    ] {
        let storage = open(&url).await;
        storage.set_config("a", json!(1)).await?;
        assert_eq!(storage.stats().await?.details["tls"], tls);
        storage.close().await?;
    }
    for (url, kind) in [
        (url("localhost", ""), ErrorKind::Unavailable),
        (url("localhost", &format!("tls=true&tlsCAFile={other}")), ErrorKind::Denied),
        (url("127.0.0.1", &format!("tls=true&tlsCAFile={ca}")), ErrorKind::Denied),
        (url("localhost", "tls=true"), ErrorKind::Denied),
        (url("localhost", "tls=true&tlsCAFile=/nowhere"), ErrorKind::InvalidValue),
    ] {
        let error = Storage::<MongoDb>::open(url.as_str()).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (kind, Outcome::NotApplied), "{url} {error:?}");
    }
    Ok(())
}
