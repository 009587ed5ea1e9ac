//! Keys of `Redis`, as the commands that restore them.

use std::{collections::BTreeMap, time::Duration};

use ::redis::{Connection, cmd};
use gateway_storage::Redis;
use testkit::servers::redis::{Raw, Server};

use super::*;

fn load(raw: &mut Raw) {
    for command in lines("redis.jsonl") {
        let words: Vec<String> = serde_json::from_value(command).unwrap();
        raw.ask(&words.iter().map(String::as_bytes).collect::<Vec<_>>());
    }
}

fn ask<T: ::redis::FromRedisValue>(connection: &mut Connection, words: &[&str]) -> T {
    let mut command = cmd(words[0]);
    command.arg(&words[1..]).query(connection).unwrap()
}

/// The commands that make all keys of a server.
pub(super) fn dump(url: &str) {
    let mut connection = ::redis::Client::open(url).unwrap().get_connection().unwrap();
    let connection = &mut connection;
    let mut names: Vec<String> = ask(connection, &["KEYS", "*"]);
    names.sort();
    let mut commands: Vec<Vec<String>> = Vec::new();
    let mut add = |words: &[&str], more: Vec<String>| {
        commands.push(words.iter().map(|word| (*word).to_owned()).chain(more).collect());
    };
    for name in &names {
        match ask::<String>(connection, &["TYPE", name]).as_str() {
            "string" => add(&["SET", name], vec![ask(connection, &["GET", name])]),
            "hash" => {
                let fields: BTreeMap<String, String> = ask(connection, &["HGETALL", name]);
                add(&["HSET", name], fields.into_iter().flat_map(|(field, value)| [field, value]).collect());
            }
            "stream" => {
                let entries: Vec<(String, Vec<String>)> = ask(connection, &["XRANGE", name, "-", "+"]);
                entries.into_iter().for_each(|(id, fields)| add(&["XADD", name, &id], fields));
            }
            other => panic!("{name} is a {other}"),
        }
        let expires: i64 = ask(connection, &["PEXPIRETIME", name]);
        if expires > 0 {
            add(&["PEXPIREAT", name], vec![expires.to_string()]);
        }
    }
    let lines = commands.iter().map(|words| serde_json::to_string(words).unwrap() + "\n");
    fs::write(fixture("redis.jsonl"), lines.collect::<String>()).unwrap();
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
