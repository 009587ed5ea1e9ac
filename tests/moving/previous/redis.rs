//! Keys of `Redis`, as the commands that restore them.

use std::time::Duration;

use gateway_storage::Redis;
use testkit::servers::redis::{Raw, Server};

use super::*;

fn load(raw: &mut Raw) {
    for command in lines("redis.jsonl") {
        let words: Vec<String> = serde_json::from_value(command).unwrap();
        raw.ask(&words.iter().map(String::as_bytes).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_redis_store_of_the_previous_version() -> Result {
    let server = Server::start(&[]);
    load(&mut server.raw());
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    everything(&storage).await?;
    for (key, value) in CACHE {
        let entry = storage.get_cache_entry(key).await?;
        assert_eq!(entry.value, value.as_bytes());
        assert!(entry.expires_in.is_some_and(|left| left > Duration::from_secs(24 * 60 * 60)));
    }
    storage.set_cache("models", b"new", Duration::from_secs(60)).await?;
    storage.delete_cache("text").await?;
    storage.close().await
}

/// The commands by which the previous version writes and rolls back, beside conditional writes.
#[tokio::test]
async fn writes_of_the_previous_version_on_redis_are_conflicts() -> Result {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    load(&mut raw);
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    let (_, revision) = storage.get_credential_with_revision("alice@example.com").await?;
    raw.ask(&[b"SET", b"gcli2api:cred:alice@example.com", b"{\"access_token\":\"second\"}"]);
    conflicts(storage.set_credential_if("alice@example.com", json!({}), Unchanged(revision)).await);
    let (_, revision) = storage.get_config_with_revision("retries").await?;
    raw.ask(&[b"HSET", b"gcli2api:config", b"retries", b"7"]);
    conflicts(storage.set_config_if("retries", json!(8), Unchanged(revision)).await);
    conflicts(storage.delete_config_if("retries", revision).await);
    assert_eq!(storage.get_config("retries").await?, json!(7).try_into()?);
    storage.close().await
}
