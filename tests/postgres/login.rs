//! TLS in all its modes, logins, sockets.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    time::{Duration, Instant},
};

use gateway_storage::{ErrorKind, Outcome, Postgres, Storage};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    Result, open, raw,
    servers::{self, certificates, postgres::Server},
};

const RULES: &str = "\
local   all all           trust
hostssl all secured  all  trust
host    all secured  all  reject
hostnossl all plain  all  trust
host    all plain    all  reject
hostssl all badge    all  cert
host    all badge    all  reject
host    all password all  scram-sha-256
host    all all      all  trust
";

/// A server with TLS, and the folder with the certificates that it can be given.
fn secured(rules: &str) -> (Server, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    certificates::make(folder.path());
    let server = Server::prepared(
        &["ssl=on", "ssl_key_file=server.key", "ssl_ca_file=ca.crt", "password_encryption=scram-sha-256"],
        |data| {
            let owner = fs::metadata(data).unwrap();
            for name in CERTIFICATES.iter().chain(&["server.key", "ca.crt"]) {
                let file = data.join(name);
                fs::copy(folder.path().join(name), &file).unwrap();
                fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
                std::os::unix::fs::chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
            }
            fs::write(data.join("pg_hba.conf"), rules).unwrap();
        },
    );
    (server, folder)
}

const CERTIFICATES: [&str; 6] =
    ["server.crt", "self.crt", "old.crt", "stale.crt", "elsewhere.crt", "lone.crt"];

/// Gives the server another certificate.
async fn present(server: &Server, certificate: &str) {
    let administrator = raw(&server.url()).await;
    for statement in
        [&*format!("ALTER SYSTEM SET ssl_cert_file = '{certificate}'"), "SELECT pg_reload_conf()"]
    {
        administrator.batch_execute(statement).await.unwrap();
    }
    let begun = Instant::now();
    loop {
        let row = raw(&server.url()).await.query_one("SHOW ssl_cert_file", &[]).await.unwrap();
        if row.get::<_, &str>(0) == certificate {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "the server keeps its certificate");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// As PostgreSQL's manual makes them, and as they go wrong.
#[tokio::test]
async fn certificates_and_what_is_wrong_with_them() -> Result {
    let (server, folder) = secured("local all all trust\nhost all all all trust\n");
    let file = |name: &str| folder.path().join(name).display().to_string();
    // What can't be read costs nothing.
    let text = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let damaged = text("other.crt").replace("MII", "M*I");
    let bundle = format!("words\n{damaged}{}-----BEGIN CERTIFICATE-----\n", text("ca.crt"));
    fs::write(folder.path().join("bundle.crt"), bundle).unwrap();
    fs::write(folder.path().join("none.crt"), damaged).unwrap();
    let pinned = |mode: &str, ca: &str| format!("sslmode={mode}&sslrootcert={}", file(ca));
    let require = "sslmode=require".to_owned();
    let full = |ca| pinned("verify-full", ca);
    let ca_only = |ca| pinned("verify-ca", ca);

    for (certificate, cases) in [
        (
            "server.crt",
            vec![
                (full("bundle.crt"), Ok(())),
                (full("none.crt"), Err("holds no certificate")),
                (full("nowhere.crt"), Err("the file of `sslrootcert` can't be read")),
                (full("other.crt"), Err("signed by an authority that is not trusted")),
                // Itself, and nothing else.
                (full("server.crt"), Ok(())),
                (full("elsewhere.crt"), Err("signed by an authority that is not trusted")),
            ],
        ),
        (
            "self.crt",
            vec![
                (full("self.crt"), Ok(())),
                (ca_only("self.crt"), Ok(())),
                // Another certificate of the same key and name.
                (full("lone.crt"), Err("is an authority's (CA:TRUE)")),
                (full("ca.crt"), Err("is an authority's (CA:TRUE)")),
                (require.clone(), Ok(())),
            ],
        ),
        ("lone.crt", vec![(full("lone.crt"), Err("is not for this host")), (ca_only("lone.crt"), Ok(()))]),
        (
            "old.crt",
            vec![
                (require.clone(), Ok(())),
                (ca_only("ca.crt"), Err("X.509 version 1")),
                (full("ca.crt"), Err("make one of version 3")),
            ],
        ),
        (
            "stale.crt",
            vec![
                (require, Ok(())),
                (ca_only("ca.crt"), Err("has expired")),
                (full("stale.crt"), Err("has expired")),
            ],
        ),
        ("elsewhere.crt", vec![(full("ca.crt"), Err("is not for this host")), (ca_only("ca.crt"), Ok(()))]),
    ] {
        present(&server, certificate).await;
        for (options, expected) in cases {
            let url = format!("postgres://tester@localhost:{}/postgres?{options}", server.port);
            match (Storage::<Postgres>::open(url.as_str()).await, expected) {
                (Ok(storage), Ok(())) => storage.close().await?,
                (Err(error), Err(said)) => {
                    assert!(error.to_string().contains(said), "{certificate}, {options}: {error}");
                }
                (result, _) => panic!("{certificate}, {options}: {:?}", result.err()),
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn tls_in_every_mode_and_logins() -> Result {
    let (server, folder) = secured(RULES);
    let administrator = raw(&server.url()).await;
    for statement in [
        "CREATE ROLE secured LOGIN SUPERUSER",
        "CREATE ROLE plain LOGIN SUPERUSER",
        "CREATE ROLE badge LOGIN SUPERUSER",
        "CREATE ROLE password LOGIN SUPERUSER PASSWORD 'pa@ss'",
        "CREATE ROLE guest LOGIN",
    ] {
        administrator.batch_execute(statement).await.unwrap();
    }
    let file = |name: &str| folder.path().join(name).display().to_string();
    let at = |user: &str, host: &str, options: &str| {
        format!("postgres://{user}@{host}:{}/postgres?{options}", server.port)
    };
    let (ca, other) =
        (format!("sslrootcert={}", file("ca.crt")), format!("sslrootcert={}", file("other.crt")));
    let badge = format!("sslcert={}&sslkey={}", file("client.crt"), file("client.key"));

    let with_tls = Some("TLSv1.3");
    for (user, host, options, expected) in [
        ("tester", "127.0.0.1", "sslmode=disable".to_owned(), Ok(None)),
        ("secured", "127.0.0.1", "sslmode=disable".to_owned(), Err(ErrorKind::Denied)),
        ("tester", "127.0.0.1", "sslmode=allow".to_owned(), Ok(None)),
        ("secured", "127.0.0.1", "sslmode=allow".to_owned(), Ok(with_tls)),
        ("tester", "127.0.0.1", "sslmode=prefer".to_owned(), Ok(with_tls)),
        ("plain", "127.0.0.1", "sslmode=prefer".to_owned(), Ok(None)),
        ("plain", "127.0.0.1", "sslmode=require".to_owned(), Err(ErrorKind::Denied)),
        ("tester", "127.0.0.1", "sslmode=require".to_owned(), Ok(with_tls)),
        ("tester", "127.0.0.1", format!("sslmode=require&{other}"), Err(ErrorKind::Denied)),
        ("tester", "127.0.0.1", format!("sslmode=verify-ca&{ca}"), Ok(with_tls)),
        ("tester", "127.0.0.1", format!("sslmode=verify-ca&{other}"), Err(ErrorKind::Denied)),
        // Nobody on this machine knows the authority.
        ("tester", "localhost", "sslmode=verify-ca".to_owned(), Err(ErrorKind::InvalidValue)),
        ("tester", "127.0.0.1", format!("sslmode=verify-full&{ca}"), Err(ErrorKind::Denied)),
        ("tester", "localhost", format!("sslmode=verify-full&{ca}"), Ok(with_tls)),
        ("tester", "localhost", format!("sslmode=verify-full&{other}"), Err(ErrorKind::Denied)),
        ("badge", "localhost", format!("sslmode=verify-full&{ca}&{badge}"), Ok(with_tls)),
        ("badge", "localhost", format!("sslmode=verify-full&{ca}"), Err(ErrorKind::Denied)),
        (
            "tester",
            "localhost",
            "sslmode=verify-ca&sslrootcert=/nowhere".to_owned(),
            Err(ErrorKind::InvalidValue),
        ),
        ("tester", "localhost", format!("sslcert={}", file("client.crt")), Err(ErrorKind::InvalidValue)),
        ("password", "127.0.0.1", "sslmode=disable".to_owned(), Err(ErrorKind::Denied)),
        ("password:wr0ng", "127.0.0.1", "sslmode=disable".to_owned(), Err(ErrorKind::Denied)),
        ("password:wr0ng", "127.0.0.1", "sslmode=prefer".to_owned(), Err(ErrorKind::Denied)),
        ("password:pa%40ss", "127.0.0.1", "sslmode=disable".to_owned(), Ok(None)),
        ("password:pa%40ss", "127.0.0.1", "sslmode=require".to_owned(), Ok(with_tls)),
        // A role that may not make a schema.
        ("guest", "127.0.0.1", "schema=other&sslmode=disable".to_owned(), Err(ErrorKind::Denied)),
    ] {
        let url = at(user, host, &options);
        let found = match Storage::<Postgres>::open(url.as_str()).await {
            Ok(storage) => {
                storage.set_config("k", json!(1)).await?;
                let tls = storage.stats().await?.details["tls"].as_str().unwrap().to_owned();
                storage.close().await?;
                Ok(Some(tls).filter(|tls| tls.starts_with("TLS")))
            }
            Err(error) => {
                assert_eq!(error.outcome(), Outcome::NotApplied);
                assert!(!format!("{error:?}").contains("wr0ng"));
                Err(error.kind())
            }
        };
        assert_eq!(found, expected.map(|tls| tls.map(str::to_owned)), "{user} at {host}, {options}");
    }

    let error =
        Storage::<Postgres>::open(at("tester", "localhost", "dbname=nowhere").as_str()).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidValue, Some("3D000")));

    let socket = format!(
        "postgres:///postgres?host={}&port={}&user=tester",
        server.folder.path().display(),
        server.port
    );
    let storage = open(&socket).await;
    assert_eq!(storage.stats().await?.details["tls"], json!("not needed: on this machine"));
    storage.close().await
}

#[tokio::test]
async fn a_pooler_that_nobody_told_us_of_is_named() -> Result {
    let url = servers::pgbouncer().replace("&pgbouncer=true", "");
    let error = Storage::<Postgres>::open(url.as_str()).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unsupported, Outcome::NotApplied));
    assert!(error.to_string().contains("`pgbouncer`"));
    Ok(())
}
