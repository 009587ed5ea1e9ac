//! TLS: which certificates are trusted, for which host, and the texts of errors.

use super::*;

#[tokio::test]
async fn an_untrusted_certificate_is_denied() -> Result {
    let server = Tls::start();
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    storage.set_config("a", json!(1)).await?;
    assert_eq!(server.raw().words("HGET gcli2api:config a"), "1");
    assert_eq!(storage.stats().await?.details["tls"], json!("verified"));
    storage.close().await?;

    let file = |name: &str| server.file(name).display().to_string();
    let own = format!("tls_cert={}&tls_key={}", file("client.pem"), file("client.key"));
    for (url, kind) in [
        // Another authority; the system's authorities; another host name; no client certificate.
        (format!("{}?tls_ca={}&{own}", server.at("localhost"), file("stranger.pem")), ErrorKind::Denied),
        (format!("{}?{own}", server.at("localhost")), ErrorKind::Denied),
        (format!("{}?tls_ca={}&{own}", server.at("127.0.0.1"), file("ca.pem")), ErrorKind::Denied),
        (format!("{}?tls_ca={}", server.at("localhost"), file("ca.pem")), ErrorKind::Denied),
        // Files that are missing or of another kind.
        (format!("{}?tls_ca={}", server.at("localhost"), file("none.pem")), ErrorKind::InvalidValue),
        (format!("{}?tls_ca={}", server.at("localhost"), file("ca.key")), ErrorKind::InvalidValue),
        (format!("{}?tls_cert={}", server.at("localhost"), file("client.pem")), ErrorKind::InvalidValue),
        (
            format!(
                "{}?tls_cert={}&tls_key={}",
                server.at("localhost"),
                file("client.pem"),
                file("client.pem")
            ),
            ErrorKind::InvalidValue,
        ),
    ] {
        let error = Storage::<Redis>::open(url.as_str()).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (kind, Outcome::NotApplied), "{url}: {error:?}");
    }
    Ok(())
}

/// Each cause has its own text. A certificate that is itself trusted needs no authority.
#[tokio::test]
async fn errors_say_what_is_wrong_with_a_certificate() -> Result {
    let server = Tls::start();
    for (shown, trusted, message) in [
        ("self.pem", "self.pem", None),
        (
            "self.pem",
            "ca.pem",
            Some("is an authority's (CA:TRUE): put this certificate itself into the file of `tls_ca`"),
        ),
        (
            "server.pem",
            "stranger.pem",
            Some("not trusted: put the authority's certificate into the file of `tls_ca`"),
        ),
        ("stale.pem", "ca.pem", Some("has expired")),
        ("old.pem", "ca.pem", Some("is of X.509 version 1")),
        (
            "elsewhere.pem",
            "ca.pem",
            Some(
                "is not for this host: connect by a name that is in it, put that name into `tls_server_name`",
            ),
        ),
        ("server.pem", "ca.pem", None),
    ] {
        server.show(shown);
        let opened = Storage::<Redis>::open(server.url_with(trusted).as_str()).await;
        match (opened, message) {
            (Ok(storage), None) => storage.close().await?,
            (Err(error), Some(message)) => {
                assert_eq!(
                    (error.kind(), error.outcome()),
                    (ErrorKind::Denied, Outcome::NotApplied),
                    "{error:?}"
                );
                let text = error.to_string();
                assert!(
                    text.contains(message) && text.contains(&server.tls_addr("localhost")),
                    "{shown}: {text}"
                );
            }
            (opened, _) => panic!("{shown}, {trusted}: {:?}", opened.err()),
        }
    }
    // A certificate that is itself trusted is valid only for its own names.
    server.show("self.pem");
    let elsewhere = server.url_with("self.pem").replace("localhost", "127.0.0.1");
    let error = Storage::<Redis>::open(elsewhere.as_str()).await.unwrap_err();
    assert!(error.to_string().contains("is not for this host"), "{error}");
    server.show("elsewhere.pem");
    let named = format!("{}&tls_server_name=elsewhere", server.url());
    Storage::<Redis>::open(named.as_str()).await?.close().await?;
    // Plain text and TLS, each at the other's port.
    let error = Storage::<Redis>::open(format!("redis://{}", server.tls_addr("localhost")).as_str())
        .await
        .unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("`rediss`"), "{error:?}");
    let plain = Server::start(&[]);
    let url =
        format!("rediss://{}?dial_timeout=500ms&tls_ca={}", plain.addr(), server.file("ca.pem").display());
    let error = Storage::<Redis>::open(url.as_str()).await.unwrap_err();
    assert!(error.to_string().contains("check that this is its TLS port"), "{error:?}");
    Ok(())
}

/// The system's certificates are read only if the options name none, and a damaged one does not affect the
/// others.
#[cfg(feature = "cli")]
#[test]
fn damaged_system_certificates_do_not_matter() {
    let server = Tls::start();
    let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let authority = std::fs::read_to_string(server.file("ca.pem")).unwrap();
    std::fs::write(server.file("bundle.pem"), format!("{damaged}{authority}{damaged}")).unwrap();
    let without = format!("{}?{}", server.at("localhost"), server.client());
    for (store, url, works) in [
        ("bundle.pem", without.clone(), true),
        ("bundle.pem", server.url(), true),
        ("missing.pem", server.url(), true),
        ("missing.pem", server.url_with("bundle.pem"), true),
        ("missing.pem", without, false),
    ] {
        let mut storage = Command::new(env!("CARGO_BIN_EXE_storage"));
        storage.env("SSL_CERT_FILE", server.file(store)).env_remove("SSL_CERT_DIR");
        let ended = storage.args(["--url", &url, "ping"]).output().unwrap();
        let stderr = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.success(), works, "{store} {url}: {stderr}");
        assert!(works || stderr.contains("`tls_ca`"), "{stderr}");
    }
}

/// The certificate is for the name in the URL, but the servers of the cluster are announced by their
/// addresses.
#[tokio::test]
async fn a_cluster_announced_by_addresses_needs_tls_server_name() -> Result {
    let bus = servers::free_port().to_string();
    let server =
        Tls::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus, "--tls-cluster", "yes"]);
    server.raw().words("CLUSTER ADDSLOTSRANGE 0 16383");
    server.raw().words("CONFIG SET cluster-announce-ip 127.0.0.1");
    servers::until("the cluster is formed", || {
        server.raw().words("CLUSTER INFO").contains("cluster_state:ok")
    });
    let url = server.url().replace("rediss:", "rediss-cluster:");
    let error = Storage::<Redis>::open(url.as_str()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&server.tls_addr("127.0.0.1")) && text.contains("`tls_server_name`"), "{text}");
    let storage = Storage::<Redis>::open(format!("{url}&tls_server_name=localhost").as_str()).await?;
    storage.set_config("a", json!(1)).await?;
    assert_eq!(storage.get_config("a").await?.value(), &json!(1));
    storage.close().await
}
