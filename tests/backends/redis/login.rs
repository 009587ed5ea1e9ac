//! Opening a store: users, sockets, refused options.

use super::*;

#[tokio::test]
async fn refuses_invalid_options() {
    for url in [
        "redis://alice@localhost",
        "redis://a,b",
        "redis://localhost?read_timeout=0s",
        "redis://localhost?dial_timeout=0s",
        "redis://localhost?deadline=0s",
        "redis://localhost?pool_size=0",
        "redis://localhost?pool_size=5000",
        "redis://localhost?client_name=two%20words",
        "redis-cluster://localhost/1",
        "redis+sentinel://localhost/m?sentinel_username=alice",
    ] {
        let error = Storage::<Redis>::open(url).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::InvalidValue, Outcome::NotApplied), "{url}");
    }
}

#[tokio::test]
async fn logs_in_or_reports_why_not() -> Result {
    let server = Server::start(&["--requirepass", "s3cret"]);
    let at = |login: &str| format!("redis://{login}127.0.0.1:{}", server.port);
    for login in ["", ":wr0ng@", "other:wr0ng@"] {
        let error = Storage::<Redis>::open(at(login).as_str()).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Denied, Outcome::NotApplied), "{error:?}");
        assert!(!format!("{error:?} {error}").contains("wr0ng"));
    }
    let admin = Storage::<Redis>::open(at(":s3cret@").as_str()).await?;
    let mut raw = Raw::to(&server.url());
    raw.words("AUTH s3cret");
    raw.words("ACL SETUSER reader on >pa@ss ~gcli2api:* +@read +@connection");
    admin.set_config("a", json!(1)).await?;
    let reader = Storage::<Redis>::open(at("reader:pa%40ss@").as_str()).await?;
    assert_eq!(reader.get_config("a").await?.value(), &json!(1));
    let error = reader.set_config("a", json!(2)).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Denied, Some("NOPERM")));
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert!(!format!("{reader:?}").contains("pa@ss"));

    let error = Storage::<Redis>::open(format!("{}/99", at(":s3cret@")).as_str()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidValue, "{error:?}");
    reader.close().await?;
    admin.close().await
}

#[tokio::test]
async fn works_over_a_unix_socket_in_another_database() -> Result {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("redis.sock");
    let server = Server::start(&["--unixsocket", socket.to_str().unwrap()]);
    servers::until("the socket answers", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let storage = Storage::<Redis>::open(format!("redis+unix://{}?db=3", socket.display()).as_str()).await?;
    storage.set_config("a", json!(1)).await?;
    let mut raw = Raw::to(&server.url());
    assert_eq!(raw.words("EXISTS gcli2api:config"), "0");
    raw.words("SELECT 3");
    assert_eq!(raw.words("HGET gcli2api:config a"), "1");
    assert!(raw.words("CLIENT LIST").contains("name=gateway-storage"));
    storage.close().await
}
