//! Logins and TLS.

use std::{
    fs,
    sync::{Arc, Mutex},
};

use gateway_storage::{ErrorKind, MongoDb, MongoDbOptions, Outcome, Secret, Storage};
use mongodb::{Client, bson::doc};
use serde_json::json;

use super::{
    Result, key as key_of, open,
    servers::{certificates, mongodb::Server, proxy::Proxy, until},
};

/// The variable with the URL that a child process opens, which trusts other certificates.
const TRUSTING: &str = "GATEWAY_STORAGE_TEST_TRUSTING";

/// Part of every password and name that must not appear in errors.
const SECRET: &str = "s3cret-7f3a";

#[tokio::test]
async fn users_log_in_and_refused_logins_reveal_nothing() -> Result {
    let mut server = Server::start(&[]);
    // The server is killed next, so the users must be in its journal.
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
        // The URL's database is the one that knows the user, unless `authSource` names another.
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

/// The driver takes a password once, so the store reads it again from its source when a server refuses it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_password_is_used() -> Result {
    let mut server = Server::start(&["--replSet", "rs0", "--oplogSize", "64"]);
    server.ask(
        "admin",
        doc! { "replSetInitiate": { "_id": "rs0", "members": [{ "_id": 0, "host": server.addr() }] } },
    );
    until("a primary is elected", || {
        server.ask("admin", doc! { "hello": 1 }).get_bool("isWritablePrimary").unwrap_or_default()
    });
    for (name, roles) in [("root", vec!["root"]), ("app", vec!["readWriteAnyDatabase"])] {
        let made =
            doc! { "createUser": name, "pwd": "old", "roles": roles, "writeConcern": { "w": 1, "j": true } };
        server.ask("admin", made);
    }
    server.kill();
    let key = server.key_file();
    server.add_option("--keyFile");
    server.add_option(&key);
    server.restart();
    let root = Client::with_uri_str(format!("mongodb://root:old@{}/?directConnection=true", server.addr()))
        .await
        .unwrap();
    let change = async |password: &str| {
        let change = doc! { "updateUser": "app", "pwd": password };
        root.database("admin").run_command(change).await.unwrap();
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, "old\n").unwrap();
    let current = Arc::new(Mutex::new("old"));
    let source = current.clone();
    let callback = Secret::call(move || {
        let password = *source.lock().unwrap();
        async move { Ok::<_, std::io::Error>(password.to_owned()) }
    });
    let proxy = Proxy::start(server.addr()).await;
    let options = |secret: Secret| {
        let rest = "store?authSource=admin&directConnection=true";
        let url = format!("mongodb://app@{}/{rest}", proxy.addr);
        MongoDbOptions::try_from(url).unwrap().with_password(secret)
    };
    let of_file = Storage::<MongoDb>::open(options(Secret::file(&file))).await?;
    let of_call = Storage::<MongoDb>::open(options(callback)).await?;
    let of_text = Storage::<MongoDb>::open(options("old".into())).await?;
    let change_to = async |new: &'static str| {
        change(new).await;
        fs::write(&file, new).unwrap();
        *current.lock().unwrap() = new;
    };
    let cut = || while proxy.cut_one() > 0 {};

    // A read is sent again, even if the driver has not noticed that its connections are cut.
    of_file.set_config("a", json!(1)).await?;
    change_to("new").await;
    cut();
    assert_eq!(*of_file.get_config("a").await?, json!(1));
    assert_eq!(*of_call.get_config("a").await?, json!(1));
    let error = of_text.list_configs().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Denied, Outcome::NotApplied), "{error:?}");
    // A write is sent again if it was not sent: the new pool has to connect first.
    change_to("newer").await;
    of_file.resize_pool(3).await?;
    of_file.set_config("a", json!(2)).await?;
    change_to("newest").await;
    let mut first = of_file.begin().await?;
    assert_eq!(*first.get_config(&key_of("a")).await?, json!(2));
    first.rollback().await?;
    cut();
    super::until_healthy(&of_file).await;
    of_file.set_config("a", json!(3)).await?;
    let mut second = of_file.begin().await?;
    assert_eq!(*second.get_config(&key_of("a")).await?, json!(3));
    second.commit().await?;
    // Concurrent calls need more connections than are open.
    super::until_healthy(&of_call).await;
    change_to("last").await;
    let all = (0..6).map(|n| {
        let storage = of_call.clone();
        tokio::spawn(async move { storage.set_config(format!("c{n}"), json!(n)).await })
    });
    for write in all.collect::<Vec<_>>() {
        write.await.unwrap()?;
    }
    // The source fails.
    fs::remove_file(&file).unwrap();
    change("another").await;
    cut();
    let error = of_file.get_config("a").await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied), "{error:?}");
    assert!(error.to_string().contains("can't be read"), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn tls_is_verified_unless_asked_otherwise() -> Result {
    if let Ok(url) = std::env::var(TRUSTING) {
        let storage = open(&url).await;
        assert_eq!(storage.stats().await?.details["tls"], "verified");
        return storage.close().await;
    }
    let folder = tempfile::tempdir().unwrap();
    certificates::make(folder.path());
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for name in ["server", "client"] {
        let [certificate, key] = ["crt", "key"].map(|ext| fs::read(file(&format!("{name}.{ext}"))).unwrap());
        fs::write(file(&format!("{name}.pem")), [certificate, key].concat()).unwrap();
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
    let (ca, other, client) = (file("ca.crt"), file("other.crt"), file("client.pem"));
    for (url, tls) in [
        (url("localhost", &format!("tls=true&tlsCAFile={ca}")), "verified"),
        (url("localhost", &format!("ssl=true&tlsCAFile={ca}&tlsCertificateKeyFile={client}")), "verified"),
        (url("127.0.0.1", "tls=true&tlsAllowInvalidCertificates=true"), "not verified"),
    ] {
        let storage = open(&url).await;
        storage.set_config("a", json!(1)).await?;
        assert_eq!(storage.stats().await?.details["tls"], tls);
        storage.close().await?;
    }
    // The machine's trusted certificates: this test runs again, in a process with another environment.
    let child = |certificates: &str| {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "mongodb::login::tls_is_verified_unless_asked_otherwise"])
            .env("SSL_CERT_FILE", certificates)
            .env(TRUSTING, url("localhost", "tls=true"))
            .output()
            .unwrap()
    };
    assert!(child(&ca).status.success(), "{:?}", child(&ca));
    assert!(!child(&other).status.success());
    for (name, message) in [("elsewhere", "is not for this host"), ("self", "basicConstraints=CA:FALSE")] {
        let [certificate, key] =
            [format!("{name}.crt"), "server.key".into()].map(|of| fs::read(file(&of)).unwrap());
        fs::write(file("shown.pem"), [certificate, key].concat()).unwrap();
        let server =
            Server::start(&["--tlsMode", "requireTLS", "--tlsCertificateKeyFile", &file("shown.pem")]);
        let trusted = if name == "self" { file("self.crt") } else { ca.clone() };
        let url = format!(
            "mongodb://localhost:{}/store?serverSelectionTimeoutMS=2000&tls=true&tlsCAFile={trusted}",
            server.port
        );
        let error = Storage::<MongoDb>::open(url.as_str()).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Denied, Outcome::NotApplied), "{error:?}");
        assert!(error.to_string().contains(message), "{error:?}");
        assert!(error.to_string().contains(&format!("server at localhost:{}", server.port)), "{error:?}");
    }
    let untrusted = url("localhost", &format!("tls=true&tlsCAFile={other}"));
    let error = Storage::<MongoDb>::open(untrusted.as_str()).await.unwrap_err();
    assert!(error.to_string().contains("`tlsCAFile`"), "{error:?}");
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

/// The warnings are true: the server's log does hold what was written.
#[tokio::test]
async fn stats_warn_of_servers_that_log_written_values() -> Result {
    let server = Server::start(&[]);
    let storage = open(&server.url("store")).await;
    let warns = async || storage.stats().await.map(|stats| stats.details["warnings"].to_string());
    assert!(warns().await?.contains("`slowms`"), "the server's default logs slow writes");
    server.ask("store", doc! { "profile": 0, "slowms": 10_000 });
    assert!(!warns().await?.contains("slowms"));
    server.ask("store", doc! { "profile": 1, "slowms": 0 });
    storage.set_config("a", json!(SECRET)).await?;
    until("the log holds the value", || server.log().contains(SECRET));
    let warned = warns().await?;
    assert!(warned.contains("`slowms`") && warned.contains("`system.profile`"), "{warned}");
    Ok(())
}
