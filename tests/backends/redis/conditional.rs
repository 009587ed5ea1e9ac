//! Conditional writes beside those of another program, without replicas, and on a full server.

use gateway_storage::{
    Error,
    revision::{
        Condition::{Absent, Unchanged},
        Revision,
    },
};

use super::*;

#[track_caller]
fn is_conflict(error: &Error) {
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Conflict, Outcome::NotApplied), "{error:?}");
    assert!(!error.is_retryable() && error.key() == Some(&key("a")), "{error:?}");
}

/// The digest that the server computes.
fn digest(raw: &mut Raw, get: &str) -> Revision {
    let command = get.split(' ').map(|word| format!("'{word}'")).collect::<Vec<_>>().join(", ");
    let script = format!("return redis.sha1hex(redis.call({command}))");
    raw.ask(&[b"EVAL", script.as_bytes(), b"0"]).parse().unwrap()
}

#[tokio::test]
async fn a_credential_that_another_program_wrote_is_a_conflict() -> Result {
    let url = servers::redis();
    let name = format!("{}cred:a", url.split_once("prefix=").unwrap().1);
    let set = |text: &str| Raw::to(&url).ask(&[b"SET", name.as_bytes(), text.as_bytes()]);
    let storage = Storage::<Redis>::open(url.as_str()).await?;
    set(r#"{"n":1}"#);
    let (_, first) = storage.get_credential_with_revision("a").await?;
    // The same value in another spelling.
    set(r#"{ "n": 1 }"#);
    is_conflict(&storage.set_credential_if("a", json!({ "n": 2 }), Unchanged(first)).await.unwrap_err());
    is_conflict(&storage.set_credential_if("a", json!({ "n": 2 }), Absent).await.unwrap_err());
    is_conflict(&storage.delete_credential_if("a", first).await.unwrap_err());
    let mut raw = Raw::to(&url);
    let get = format!("GET {name}");
    assert_eq!(raw.words(&get), r#"{ "n": 1 }"#);
    let (credential, second) = storage.get_credential_with_revision("a").await?;
    assert_eq!((&credential.fields()["n"], second), (&json!(1), digest(&mut raw, &get)));
    let third = storage.set_credential_if("a", json!({ "n": 2 }), Unchanged(second)).await?;
    assert_eq!((raw.words(&get), digest(&mut raw, &get)), (r#"{"n":2}"#.to_owned(), third));
    // An equal value is a conflict, too.
    is_conflict(&storage.set_credential_if("a", json!({ "n": 2 }), Unchanged(second)).await.unwrap_err());
    raw.words(&format!("DEL {name}"));
    is_conflict(&storage.set_credential_if("a", json!({ "n": 3 }), Unchanged(third)).await.unwrap_err());
    let error = storage.delete_credential_if("a", third).await.unwrap_err();
    assert_eq!((error.kind(), error.key()), (ErrorKind::NotFound, Some(&key("a"))));
    assert_eq!(raw.words(&format!("EXISTS {name}")), "0");
    storage.close().await
}

#[tokio::test]
async fn a_config_value_that_another_program_wrote_is_a_conflict() -> Result {
    let url = servers::redis();
    let name = format!("{}config", url.split_once("prefix=").unwrap().1);
    let mut raw = Raw::to(&url);
    let storage = Storage::<Redis>::open(url.as_str()).await?;
    storage.set_config("b", json!(1)).await?;
    let get = format!("HGET {name} a");
    for text in ["bare", "[1, 2]", "3"] {
        let before = storage.set_config_if("a", json!(2), Absent).await?;
        raw.ask(&[b"HSET", name.as_bytes(), b"a", text.as_bytes()]);
        is_conflict(&storage.set_config_if("a", json!(3), Unchanged(before)).await.unwrap_err());
        is_conflict(&storage.delete_config_if("a", before).await.unwrap_err());
        assert_eq!(raw.words(&get), text);
        let (_, after) = storage.get_config_with_revision("a").await?;
        assert_eq!(after, digest(&mut raw, &get));
        let last = storage.set_config_if("a", json!("x"), Unchanged(after)).await?;
        assert_eq!((raw.words(&get).as_str(), digest(&mut raw, &get)), (r#""x""#, last));
        storage.delete_config_if("a", last).await?;
    }
    assert_eq!(raw.words(&format!("HGETALL {name}")), "b\n1\n");
    storage.close().await
}

#[tokio::test]
async fn a_record_of_a_wrong_type_is_not_changed() -> Result {
    let server = Server::start(&[]);
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    server.raw().words("HSET gcli2api:cred:a x y");
    server.raw().words("SET gcli2api:config text");
    let any = Revision::new([0; 20]);
    for error in [
        storage.get_credential_with_revision("a").await.unwrap_err(),
        storage.set_credential_if("a", json!({}), Absent).await.unwrap_err(),
        storage.delete_credential_if("a", any).await.unwrap_err(),
        storage.get_config_with_revision("a").await.unwrap_err(),
        storage.set_config_if("a", json!({}), Absent).await.unwrap_err(),
        storage.delete_config_if("a", any).await.unwrap_err(),
    ] {
        let facts = (error.kind(), error.outcome(), error.key());
        assert_eq!(facts, (ErrorKind::Corrupt, Outcome::NotApplied, Some(&key("a"))), "{error:?}");
    }
    assert_eq!(server.raw().words("GET gcli2api:config"), "text");
    storage.close().await
}

/// Only what was written can be unconfirmed.
#[tokio::test]
async fn a_missing_replica_does_not_hide_a_conflict() -> Result {
    let server = Server::start(&[]);
    let url = format!("{}?wait_replicas=1&wait_timeout=10ms", server.url());
    let storage = Storage::<Redis>::open(url.as_str()).await?;
    let error = storage.set_credential_if("a", json!({}), Absent).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::Unknown), "{error:?}");
    let (_, revision) = storage.get_credential_with_revision("a").await?;
    is_conflict(&storage.set_credential_if("a", json!({}), Absent).await.unwrap_err());
    is_conflict(&storage.delete_credential_if("a", Revision::new([0; 20])).await.unwrap_err());
    let error = storage.delete_credential_if("a", revision).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::Unknown), "{error:?}");
    let error = storage.delete_credential_if("a", revision).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::NotFound, Outcome::NotApplied), "{error:?}");
    storage.close().await
}

#[tokio::test]
async fn a_full_server_refuses_to_set_but_not_to_delete() -> Result {
    let server = Server::start(&[]);
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    let revision = storage.set_config_if("a", json!(1), Absent).await?;
    server.raw().words("CONFIG SET maxmemory 1");
    let error = storage.set_config_if("a", json!(2), Unchanged(revision)).await.unwrap_err();
    assert_eq!((error.code(), error.outcome()), (Some("OOM"), Outcome::NotApplied), "{error:?}");
    assert_eq!(storage.get_config_with_revision("a").await?.1, revision);
    storage.delete_config_if("a", revision).await?;
    storage.close().await
}
