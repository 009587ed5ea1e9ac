//! Servers that refuse connections or commands: the errors say why and name the server.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

async fn refused(url: &str) -> gateway_storage::Error {
    let error = Storage::<Redis>::open(url).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotApplied, "{error:?}");
    error
}

/// A proxy that answers the first request with one line, or by closing the connection.
async fn proxy(reply: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = client.read(&mut request).await;
                if !reply.is_empty() {
                    // One reply per command of the handshake.
                    let _ = client.write_all(format!("{reply}\r\n").repeat(3).as_bytes()).await;
                    let _ = client.read(&mut request).await;
                }
            });
        }
    });
    addr
}

#[tokio::test]
async fn a_server_without_hello_is_reported() {
    let server = Server::start(&["--requirepass", "s3cret", "--rename-command", "HELLO", ""]);
    let url = format!("redis://:s3cret@{}", server.addr());
    let error = refused(&url).await;
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unsupported, false), "{error:?}");
    let text = format!("{error} {error:?}");
    assert!(text.contains("does not support HELLO") && text.contains(&server.addr()), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
    for (reply, kind, message) in [
        ("-ERR unsupported command 'hello'", ErrorKind::Unsupported, "RESP3 is required"),
        ("-ERR handle request, command 'HELLO' is not allowed", ErrorKind::Unsupported, "RESP3 is required"),
        ("-NOPROTO unsupported protocol version", ErrorKind::Unsupported, "RESP3 is required"),
        (
            "-NOPERM this user has no permissions to run the 'hello' command",
            ErrorKind::Denied,
            "`+@connection`",
        ),
        // The server may come back.
        ("", ErrorKind::Unavailable, "closed the connection before it answered HELLO"),
    ] {
        let addr = proxy(reply).await;
        let error = refused(&format!("redis://{addr}")).await;
        assert_eq!(error.kind(), kind, "{reply}: {error:?}");
        assert!(error.to_string().contains(message) && error.to_string().contains(&addr), "{error}");
    }
}

#[tokio::test]
async fn an_unreachable_server_is_named() -> Result {
    let closed = format!("127.0.0.1:{}", servers::free_port());
    let error = refused(&format!("redis://{closed}")).await;
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unavailable, Some("os error 111")), "{error:?}");
    assert!(error.to_string().contains(&format!("the Redis server at {closed} can't be reached")), "{error}");
    // The error names the master and not the sentinel, also if another sentinel can't be reached.
    let (host, port) = closed.split_once(':').unwrap();
    let sentinel = Server::sentinel(&format!("sentinel monitor mymaster {host} {port} 1\n"));
    for addrs in [
        sentinel.addr(),
        format!("{},127.0.0.1:1", sentinel.addr()),
        format!("127.0.0.1:1,{}", sentinel.addr()),
    ] {
        let error = refused(&format!("redis+sentinel://{addrs}/mymaster")).await;
        assert_eq!((error.kind(), error.code()), (ErrorKind::Unavailable, Some("os error 111")), "{error:?}");
        let message = format!("the Redis master named by its sentinels at {closed} can't be reached");
        assert!(error.to_string().contains(&message), "{error}");
    }
    let error = refused("redis+sentinel://127.0.0.1:1/mymaster").await;
    assert!(error.to_string().contains("the Redis sentinel at 127.0.0.1:1 can't be reached"), "{error}");
    // A server that never replies.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = silent.local_addr().unwrap();
    let sentinel = Server::sentinel(&format!("sentinel monitor mymaster 127.0.0.1 {} 1\n", addr.port()));
    for (url, what) in [
        (format!("redis://{addr}"), "the Redis server"),
        (format!("redis+sentinel://{}/mymaster", sentinel.addr()), "the Redis master named by its sentinels"),
    ] {
        let error = refused(&format!("{url}?dial_timeout=500ms")).await;
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
        assert!(error.to_string().contains(&format!("timed out connecting to {what} at {addr}")), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_server_of_a_cluster_is_named() -> Result {
    let bus = servers::free_port().to_string();
    let server = Server::start(&["--cluster-enabled", "yes", "--cluster-port", &bus]);
    let mut raw = server.raw();
    raw.words("CLUSTER ADDSLOTSRANGE 0 16383");
    let closed = servers::free_port();
    raw.words("CONFIG SET cluster-announce-ip 127.0.0.1");
    raw.words(&format!("CONFIG SET cluster-announce-port {closed}"));
    servers::until("the cluster is formed", || {
        server.raw().words("CLUSTER INFO").contains("cluster_state:ok")
    });
    let error = refused(&server.url().replace("redis:", "redis-cluster:")).await;
    assert!(error.to_string().contains(&format!("at 127.0.0.1:{closed} can't be reached")), "{error}");
    Ok(())
}

/// A server that refuses connections is not dialed as often as calls are made.
#[tokio::test]
async fn failed_connection_attempts_are_paused() -> Result {
    let mut server = Server::start(&[]);
    let proxy = Proxy::start(server.addr()).await;
    let storage = Storage::<Redis>::open(format!("redis://{}?min_idle=1", proxy.addr).as_str()).await?;
    server.kill();
    let (before, begun) = (proxy.accepted(), Instant::now());
    let mut failed = 0;
    while begun.elapsed() < Duration::from_secs(1) {
        failed += u32::from(storage.list_configs().await.is_err());
    }
    let dials = proxy.accepted() - before;
    assert!(failed > 0 && dials <= 2 + 10, "{dials} connections in a second");
    Ok(())
}

#[tokio::test]
async fn a_user_without_info_gets_the_counts() -> Result {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    raw.words("ACL SETUSER app on >pw ~gcli2api:* +@read +@write +@connection +@scripting");
    let storage = Storage::<Redis>::open(format!("redis://app:pw@{}", server.addr()).as_str()).await?;
    storage.set_credential("a", json!({})).await?;
    storage.increment_usage("r", "n", 1).await?;
    let stats = storage.stats().await?;
    assert_eq!((stats.credential_count, stats.usage_record_count), (1, 1));
    let warnings = stats.details["warnings"].as_array().unwrap().clone();
    assert!(warnings.len() == 1 && warnings[0].as_str().unwrap().contains("`+info`"), "{warnings:?}");
    // A missing permission that an operation needs is an error, which names it.
    raw.words("ACL SETUSER app -scan");
    for error in [storage.stats().await.unwrap_err(), storage.list_credentials().await.unwrap_err()] {
        assert_eq!((error.kind(), error.code()), (ErrorKind::Denied, Some("NOPERM")));
        assert!(error.to_string().contains("may not run `scan`"), "{error}");
    }
    raw.words("ACL SETUSER app +scan resetkeys ~other:*");
    let error = storage.list_configs().await.unwrap_err();
    assert!(error.to_string().contains("may not access a key of this store"), "{error}");
    // Without INFO the required durability can't be checked.
    raw.words("ACL SETUSER app resetkeys ~gcli2api:*");
    let error = refused(&format!("redis://app:pw@{}?durability=aof", server.addr())).await;
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("not known"), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn stats_warn_of_a_slowlog_that_keeps_tokens() -> Result {
    let server = Server::start(&[]);
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    assert_eq!(storage.stats().await?.details["warnings"], json!([]));
    server.raw().words("CONFIG SET slowlog-log-slower-than 0");
    storage.set_credential("a", json!({ "token": "canary" })).await?;
    let has_token = |text: &str| text.contains("canary");
    let (mut raw, mut log) = (server.raw(), String::new());
    servers::until("the log has the token", || {
        log = raw.words("SLOWLOG GET");
        has_token(&log)
    });
    let warnings = storage.stats().await?.details["warnings"].to_string();
    assert!(warnings.contains("SLOWLOG") && !has_token(&warnings), "{warnings}");
    storage.close().await
}
