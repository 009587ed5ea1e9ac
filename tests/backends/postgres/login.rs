//! All modes of TLS, logins and sockets.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::Stdio,
    time::{Duration, Instant},
};

use gateway_storage::{ErrorKind, Outcome, Postgres, Storage};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

use super::{
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

/// A server with TLS, and the directory of the certificates that it may present.
fn tls_server(rules: &str) -> (Server, TempDir) {
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

/// Changes a setting of the running server.
async fn set(server: &Server, setting: &str, value: &str) {
    let administrator = raw(&server.url()).await;
    for statement in [&*format!("ALTER SYSTEM SET {setting} = '{value}'"), "SELECT pg_reload_conf()"] {
        administrator.batch_execute(statement).await.unwrap();
    }
    let started = Instant::now();
    loop {
        let row = raw(&server.url()).await.query_one(&format!("SHOW {setting}"), &[]).await.unwrap();
        if row.get::<_, &str>(0) == value {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "the server keeps its {setting}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Certificates as in PostgreSQL's manual, and with common mistakes.
#[tokio::test]
async fn good_certificates_are_accepted_and_others_explained() -> Result {
    let (server, folder) = tls_server("local all all trust\nhost all all all trust\n");
    let file = |name: &str| folder.path().join(name).display().to_string();
    // Certificates that can't be parsed are skipped.
    let text = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let damaged = text("other.crt").replace("MII", "M*I");
    let bundle = format!("words\n{damaged}{}-----BEGIN CERTIFICATE-----\n", text("ca.crt"));
    fs::write(folder.path().join("bundle.crt"), bundle).unwrap();
    fs::write(folder.path().join("none.crt"), damaged).unwrap();
    // Another authority with the same name, alone and together with the server's certificate.
    certificates::openssl(
        folder.path(),
        "req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=trusted -keyout namesake.key -out namesake.crt",
    );
    fs::write(folder.path().join("both.crt"), text("namesake.crt") + &text("server.crt")).unwrap();
    let pinned = |mode: &str, ca: &str| format!("sslmode={mode}&sslrootcert={}", file(ca));
    let require = "sslmode=require".to_owned();
    let mut seen = Vec::new();
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
                // It is trusted itself, but no other.
                (full("server.crt"), Ok(())),
                (full("elsewhere.crt"), Err("signed by an authority that is not trusted")),
                (full("namesake.crt"), Err("signed by an authority that is not trusted")),
                (full("both.crt"), Ok(())),
            ],
        ),
        (
            "self.crt",
            vec![
                (full("self.crt"), Ok(())),
                (ca_only("self.crt"), Ok(())),
                // Another certificate with the same key and name.
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
                // Even if it is in the trusted file itself.
                (ca_only("old.crt"), Err("X.509 version 1")),
                (full("ca.crt"), Err("make one of version 3")),
            ],
        ),
        (
            // The same certificate with TLS 1.2, which the server speaks from here on.
            "old.crt",
            vec![(require.clone(), Ok(()))],
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
        if seen.contains(&certificate) {
            let administrator = raw(&server.url()).await;
            let limit = "ALTER SYSTEM SET ssl_max_protocol_version = 'TLSv1.2'";
            administrator.batch_execute(limit).await.unwrap();
        }
        seen.push(certificate);
        set(&server, "ssl_cert_file", certificate).await;
        for (options, expected) in cases {
            let url = format!("postgres://tester@localhost:{}/postgres?{options}", server.port);
            match (Storage::<Postgres>::open(url.as_str()).await, expected) {
                (Ok(storage), Ok(())) => storage.close().await?,
                (Err(error), Err(text)) => {
                    assert!(error.to_string().contains(text), "{certificate}, {options}: {error}");
                }
                (result, _) => panic!("{certificate}, {options}: {:?}", result.err()),
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn each_tls_mode_and_kind_of_login() -> Result {
    let (server, folder) = tls_server(RULES);
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
        ("tester", "127.0.0.1", "sslmode=allow".to_owned(), Ok(with_tls)),
        ("secured", "127.0.0.1", "sslmode=allow".to_owned(), Ok(with_tls)),
        ("tester", "127.0.0.1", "sslmode=prefer".to_owned(), Ok(with_tls)),
        // It is not tried again without TLS.
        ("plain", "127.0.0.1", "sslmode=prefer".to_owned(), Err(ErrorKind::Denied)),
        ("plain", "127.0.0.1", "sslmode=allow".to_owned(), Err(ErrorKind::Denied)),
        ("plain", "127.0.0.1", "sslmode=disable".to_owned(), Ok(None)),
        ("plain", "127.0.0.1", "sslmode=require".to_owned(), Err(ErrorKind::Denied)),
        ("tester", "127.0.0.1", "sslmode=require".to_owned(), Ok(with_tls)),
        ("tester", "127.0.0.1", format!("sslmode=require&{other}"), Err(ErrorKind::Denied)),
        ("tester", "127.0.0.1", format!("sslmode=verify-ca&{ca}"), Ok(with_tls)),
        ("tester", "127.0.0.1", format!("sslmode=verify-ca&{other}"), Err(ErrorKind::Denied)),
        // Needs the authority's certificate.
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
        ("password:pa%40ss", "127.0.0.1", "sslmode=require&channel_binding=require".to_owned(), Ok(with_tls)),
        ("password:pa%40ss", "127.0.0.1", "sslmode=require&channel_binding=disable".to_owned(), Ok(with_tls)),
        (
            "password:pa%40ss",
            "127.0.0.1",
            "sslmode=disable&channel_binding=require".to_owned(),
            Err(ErrorKind::Denied),
        ),
        // The server asks for no password, so there is no binding.
        ("tester", "127.0.0.1", "sslmode=require&channel_binding=require".to_owned(), Err(ErrorKind::Denied)),
        ("tester", "localhost", format!("sslmode=verify-full&{ca}&sslnegotiation=postgres"), Ok(with_tls)),
        // This machine does not trust the authority; `system` needs `verify-full`.
        ("tester", "localhost", "sslrootcert=system".to_owned(), Err(ErrorKind::Denied)),
        (
            "tester",
            "localhost",
            "sslmode=require&sslrootcert=system".to_owned(),
            Err(ErrorKind::InvalidValue),
        ),
        // A role that may not create a schema.
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
                if options.contains("channel_binding=require") {
                    assert!(error.to_string().contains("does not offer channel binding"), "{error}");
                }
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

/// A TLS proxy in front of a server. It expects TLS from the first byte, with the protocol `postgresql`
/// (ALPN).
async fn direct_tls_proxy(folder: &std::path::Path, server: u16) -> (u16, tokio::process::Child) {
    let port = servers::free_port();
    let mut openssl = tokio::process::Command::new("openssl");
    let arguments = format!(
        "s_server -quiet -accept 127.0.0.1:{port} -cert server.crt -key server.key -alpn postgresql -naccept 1"
    );
    openssl.current_dir(folder).args(arguments.split(' ')).kill_on_drop(true);
    openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut terminator = openssl.spawn().unwrap();
    let (mut down, mut up) = (terminator.stdin.take().unwrap(), terminator.stdout.take().unwrap());
    let (mut replies, mut requests) = TcpStream::connect(("127.0.0.1", server)).await.unwrap().into_split();
    tokio::spawn(async move { tokio::io::copy(&mut up, &mut requests).await });
    tokio::spawn(async move {
        let mut part = vec![0; 4096];
        while let Ok(length @ 1..) = replies.read(&mut part).await {
            down.write_all(&part[..length]).await?;
            down.flush().await?;
        }
        io::Result::Ok(())
    });
    (port, terminator)
}

#[tokio::test]
async fn tls_may_begin_with_the_first_byte() -> Result {
    let (server, folder) = tls_server("local all all trust\nhost all all all trust\n");
    // The proxy accepts one connection.
    open(&server.url()).await.close().await?;
    let (port, _terminator) = direct_tls_proxy(folder.path(), server.port).await;
    let ca = folder.path().join("ca.crt");
    let url = format!("postgres://tester@localhost:{port}/postgres?sslnegotiation=direct&pool_size=1");
    let full = format!("{url}&sslmode=verify-full&sslrootcert={}", ca.display());
    let started = Instant::now();
    let storage = loop {
        match Storage::<Postgres>::open(full.as_str()).await {
            Ok(storage) => break storage,
            // `openssl` does not listen yet.
            Err(error) if error.code() == Some("os error 111") => {}
            Err(error) => panic!("{error:?}"),
        }
        assert!(started.elapsed() < Duration::from_secs(60), "openssl does not listen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    storage.set_config("k", json!(1)).await?;
    assert_eq!(*storage.get_config("k").await?.value(), 1);
    storage.close().await?;

    let error = Storage::<Postgres>::open(url.as_str()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidValue);
    assert!(error.to_string().contains("needs `sslmode=require` or stronger"), "{error}");
    Ok(())
}

/// `SSL_CERT_FILE` selects the certificates that this machine trusts.
#[cfg(feature = "cli")]
#[test]
fn system_means_the_certificates_that_this_machine_trusts() {
    let (server, folder) = tls_server("local all all trust\nhostssl all all all trust\n");
    let open = |trusted: &str, options: &str| {
        let url = format!("postgres://tester@localhost:{}/postgres?{options}", server.port);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_storage"));
        let ended = command.args(["--url", &url, "schema", "status"]);
        let ended = ended.env("SSL_CERT_FILE", folder.path().join(trusted)).env_remove("SSL_CERT_DIR");
        let ended = ended.output().unwrap();
        (ended.status.success(), String::from_utf8(ended.stderr).unwrap())
    };
    for options in ["sslrootcert=system", "sslmode=verify-full"] {
        assert_eq!(open("ca.crt", options), (true, String::new()));
        let (is_trusted, text) = open("other.crt", options);
        assert!(!is_trusted && text.contains("an authority that is not trusted"), "{text}");
        let (is_trusted, text) = open("names", options);
        assert!(!is_trusted && text.contains("this machine trusts no certificates"), "{text}");
    }
    let (is_trusted, text) = open("ca.crt", "sslmode=require&sslrootcert=system");
    assert!(!is_trusted && text.contains("needs `sslmode=verify-full`"), "{text}");
}

/// The errors say what to do if no TLS is wanted, since it is not tried again without.
#[tokio::test]
async fn prefer_is_without_tls_only_if_the_server_has_none() -> Result {
    let (server, _folder) = tls_server("hostnossl all all all trust\n");
    let at = |port: u16, mode: &str| format!("postgres://tester@localhost:{port}/postgres?sslmode={mode}");
    let refused = async |url: String| {
        let error = Storage::<Postgres>::open(url.as_str()).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Denied, Outcome::NotApplied), "{error:?}");
        error
    };
    for mode in ["prefer", "allow"] {
        let error = refused(at(server.port, mode)).await;
        assert_eq!(error.code(), Some("28000"));
        assert!(
            error.to_string().ends_with("; if it accepts it only without TLS, set `sslmode=disable`"),
            "{error}"
        );
    }
    let error = refused(at(server.port, "require")).await;
    assert!(!error.to_string().contains("sslmode"), "{error}");
    open(&at(server.port, "disable")).await.close().await?;

    // Only key exchanges without forward secrecy, which rustls does not have.
    set(&server, "ssl_ciphers", "AES256-SHA256").await;
    set(&server, "ssl_max_protocol_version", "TLSv1.2").await;
    for mode in ["prefer", "allow"] {
        let error = refused(at(server.port, mode)).await;
        assert!(error.to_string().ends_with("; if no TLS is wanted, set `sslmode=disable`"), "{error}");
    }

    let without = Server::start(&[]);
    for mode in ["prefer", "allow"] {
        let storage = open(&at(without.port, mode)).await;
        assert_eq!(storage.stats().await?.details["tls"], json!("not needed: on this machine"));
        storage.close().await?;
    }
    Ok(())
}

/// A proxy in front of a server that, like RDS Proxy, refuses settings at the start of a connection.
async fn proxy_without_settings(server: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let length = client.read_u32().await?;
                let mut start = vec![0; length as usize - 4];
                client.read_exact(&mut start).await?;
                if start.windows(9).any(|text| text == b"\0options\0") {
                    let refusal = b"SFATAL\0VFATAL\0C0A000\0MFeature not supported: options\0\0";
                    client.write_u8(b'E').await?;
                    client.write_u32(refusal.len() as u32 + 4).await?;
                    return client.write_all(refusal).await;
                }
                let mut server = TcpStream::connect(("127.0.0.1", server)).await?;
                server.write_u32(length).await?;
                server.write_all(&start).await?;
                copy_bidirectional(&mut client, &mut server).await.map(drop)
            });
        }
    });
    port
}

#[tokio::test]
async fn the_error_of_a_proxy_that_takes_no_settings_names_the_option() -> Result {
    let url = servers::postgres();
    let server = url.split_once("127.0.0.1:").unwrap().1.split_once('/').unwrap().0;
    let proxy = proxy_without_settings(server.parse().unwrap()).await;
    let url = url.replace(server, &proxy.to_string());
    let error = Storage::<Postgres>::open(url.as_str()).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unsupported, Outcome::NotApplied));
    assert_eq!(error.code(), Some("0A000"));
    assert!(error.to_string().contains("set `pgbouncer`"), "{error}");
    let storage = open(&format!("{url}&pgbouncer=true")).await;
    storage.set_config("k", json!(1)).await?;
    storage.close().await
}

#[tokio::test]
async fn the_error_of_an_unexpected_pooler_names_the_option() -> Result {
    let url = servers::pgbouncer().replace("&pgbouncer=true", "");
    let error = Storage::<Postgres>::open(url.as_str()).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unsupported, Outcome::NotApplied));
    assert!(error.to_string().contains("`pgbouncer`"));
    Ok(())
}
