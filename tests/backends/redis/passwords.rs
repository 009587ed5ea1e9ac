//! Passwords that change while the store is open.

use std::{io, sync::Mutex};

use super::*;

/// Changes the password of `rot` and closes its connections, as a server does when tokens expire.
fn rotate(raw: &mut Raw, password: &str) {
    raw.words(&format!("ACL SETUSER rot on resetpass >{password} ~* +@all"));
    raw.words("CLIENT KILL TYPE normal USER rot");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_is_read_for_each_connection() -> Result {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    let token = Arc::new(Mutex::new(String::new()));
    let current = token.clone();
    let callback = Secret::call(move || {
        let token = current.lock().unwrap().clone();
        async move { Ok::<_, io::Error>(token) }
    });
    let put = |password: &str| {
        std::fs::write(&file, format!("{password}\n")).unwrap();
        password.clone_into(&mut token.lock().unwrap());
    };
    rotate(&mut raw, "one");
    put("one");
    let login = format!("redis://rot@{}?min_idle=1&password_file={}", server.addr(), file.display());
    let from_file = Storage::<Redis>::open(login.as_str()).await?;
    let options = RedisOptions::new(server.addr()).with_username("rot").with_password(callback);
    let from_callback = Storage::<Redis>::open(options).await?;
    let plain = Storage::<Redis>::open(format!("redis://rot:one@{}", server.addr()).as_str()).await?;
    for password in ["two", "three"] {
        put(password);
        rotate(&mut raw, password);
        for storage in [&from_file, &from_callback] {
            // The read comes first: it is sent again when its connection is lost, and a write is not.
            storage.list_configs().await?;
            storage.set_config("a", json!(password)).await?;
            assert_eq!(storage.get_config("a").await?.value(), &json!(password));
        }
        let error = plain.list_configs().await.unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Denied, Some("WRONGPASS")), "{error:?}");
        assert!(error.to_string().contains(&server.addr()), "{error}");
    }
    // A password file that can't be read is an error until it exists again.
    std::fs::remove_file(&file).unwrap();
    rotate(&mut raw, "four");
    let error = from_file.list_configs().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied), "{error:?}");
    assert!(error.to_string().contains("can't be read"), "{error}");
    put("four");
    from_file.list_configs().await?;
    for text in
        [format!("{from_file:?}{from_callback:?}"), format!("{:?}", RedisOptions::try_from(login.as_str()))]
    {
        assert!(!text.contains("four"), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn a_slow_secret_is_a_connection_timeout() {
    let server = Server::start(&[]);
    let options = RedisOptions::new(server.addr())
        .with_password(Secret::call(std::future::pending::<io::Result<String>>))
        .with_dial_timeout(Duration::from_millis(200));
    let error = Storage::<Redis>::open(options).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied), "{error:?}");
}

#[tokio::test]
async fn sentinels_have_a_password_of_their_own() -> Result {
    let master = Server::start(&[]);
    let sentinel = Server::sentinel(&format!("sentinel monitor mymaster 127.0.0.1 {} 1\n", master.port));
    sentinel.raw().words("ACL SETUSER default resetpass >q1");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "q1").unwrap();
    let url = format!("redis+sentinel://{}/mymaster", sentinel.addr());
    let error = Storage::<Redis>::open(url.as_str()).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Denied && error.to_string().contains(&sentinel.addr()), "{error:?}");
    let storage = Storage::<Redis>::open(
        format!("{url}?min_idle=1&sentinel_password_file={}", file.display()).as_str(),
    )
    .await?;
    storage.set_config("a", json!(1)).await?;
    let mut raw = sentinel.raw();
    raw.words("AUTH q1");
    raw.words("ACL SETUSER default resetpass >q2");
    std::fs::write(&file, "q2").unwrap();
    master.raw().words("CLIENT KILL TYPE normal");
    assert_eq!(storage.get_config("a").await?.value(), &json!(1));
    storage.close().await
}
