//! Adopts the keys of gcli2api-go's Redis backend.

use gateway_storage::{
    ErrorKind,
    adopt::{Adoption, RemarkKind},
};
use serde_json::json;

use super::*;
use testkit::servers::redis::{Cluster, Raw, Server};

const PREFIX: &str = "gcli2api:";

fn load(raw: &mut Raw, prefix: &str) {
    for command in lines("redis.jsonl") {
        let words: Vec<String> = serde_json::from_value(command).unwrap();
        let words: Vec<String> = words
            .into_iter()
            .enumerate()
            .map(|(at, word)| if at == 1 { word.replacen(PREFIX, prefix, 1) } else { word })
            .collect();
        raw.ask(&words.iter().map(String::as_bytes).collect::<Vec<_>>());
    }
}

/// The data as gcli2api-go reads it, with counters as numbers instead of text.
fn wanted() -> Value {
    let mut wanted = as_read_by_go("redis");
    for record in wanted["usage"].as_object_mut().unwrap().values_mut() {
        for count in record.as_object_mut().unwrap().values_mut() {
            *count = json!(count.as_str().unwrap().parse::<i64>().unwrap());
        }
    }
    wanted
}

/// Every key with its value. A hash has no order.
fn dump(raw: &mut Raw) -> Vec<(String, Vec<String>)> {
    let mut names: Vec<String> = raw.ask(&[b"KEYS", b"*"]).lines().map(str::to_owned).collect();
    names.sort();
    let mut value = |name: &str| {
        let get: &[u8] = if raw.ask(&[b"TYPE", name.as_bytes()]) == "hash" { b"HGETALL" } else { b"GET" };
        let mut lines: Vec<String> = raw.ask(&[get, name.as_bytes()]).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    names.into_iter().map(|name| (name.clone(), value(&name))).collect()
}

fn left_out(prefix: &str) -> [String; 2] {
    [
        format!("{prefix}cache:model:gemini-2.5-pro:capabilities: a cache value, which expires"),
        format!(
            "{prefix}plan:meta:redis:apply:p1: the record of a config plan of the Go program, which expires"
        ),
    ]
}

#[tokio::test]
async fn the_redis_backend_as_go_reads_it() -> Result {
    // A server of its own, to compare all keys.
    let server = Server::start(&[]);
    let mut raw = Raw::to(&server.url());
    load(&mut raw, PREFIX);
    let before = dump(&mut raw);
    let changes = |raw: &mut Raw| {
        let info = raw.ask(&[b"INFO", b"persistence"]);
        info.lines().find(|line| line.starts_with("rdb_changes_since_last_save")).map(str::to_owned)
    };
    let changed = changes(&mut raw);
    assert_eq!(Adoption::open(&server.url(), None).await?.layout(), Layout::Keys);
    let (found, remarks) = adopted(&server.url(), None).await?;
    assert_eq!(found, wanted());
    assert_eq!(of_kind(&remarks, RemarkKind::LeftOut), left_out(PREFIX));
    assert_eq!(remarks.len(), 2);
    assert_eq!(dump(&mut raw), before, "the source is unchanged");
    assert_eq!(changes(&mut raw), changed, "and was not written to");
    let error = Adoption::open(&server.url(), Some(Layout::Directory)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidValue);
    Ok(())
}

#[tokio::test]
async fn another_prefix_and_unreadable_keys() -> Result {
    let url = servers::redis();
    let (_, prefix) = url.split_once("prefix=").unwrap();
    let mut raw = Raw::to(&url);
    load(&mut raw, prefix);
    let name = |rest: &[u8]| [prefix.as_bytes(), rest].concat();
    raw.ask(&[b"SET", &name(b"cred:half"), b"{\"access_token\":\"ya29.secret"]);
    raw.ask(&[b"SET", &name(b"cred:list"), b"[]"]);
    raw.ask(&[b"SET", &name(b"cred:"), b"{}"]);
    raw.ask(&[b"SET", &name(b"cred:no\nkey"), b"{}"]);
    raw.ask(&[b"SET", &name(b"cred:\xff"), b"{}"]);
    raw.ask(&[b"HSET", &name(b"cred:hash"), b"a", b"b"]);
    raw.ask(&[b"HSET", &name(b"config"), b"word", b"127.0.0.1:8317", b"half", b"{\"a\":", b"", b"1"]);
    raw.ask(&[b"HSET", &name(b"usage:odd"), b"ok", b"1", b"text", b"many", b"float", b"1.5", b"", b"1"]);
    raw.ask(&[b"SET", &name(b"usage:string"), b"1"]);
    raw.ask(&[b"SET", &name(b"other"), b"1"]);
    raw.ask(&[b"SET", &name(b"lease:a"), b"1 2 x"]);
    let (found, remarks) = adopted(&url, None).await?;
    let mut wanted = wanted();
    wanted["configs"]["word"] = json!("127.0.0.1:8317");
    wanted["usage"]["odd"] = json!({ "ok": 1 });
    assert_eq!(found, wanted);
    let lines = not_understood(&remarks);
    let mut places: Vec<String> = lines
        .iter()
        .map(|line| line.strip_prefix(prefix).unwrap().split_once(": ").unwrap().0.to_owned())
        .collect();
    places.sort();
    assert_eq!(
        places,
        [
            "config ",
            "config half",
            "cred:",
            "cred:half",
            "cred:hash",
            "cred:list",
            "cred:no\nkey",
            "cred:\u{fffd}",
            "other",
            "usage:odd ",
            "usage:odd float",
            "usage:odd text",
            "usage:string",
        ]
    );
    let [cache, plan] = left_out(prefix);
    let lease = format!("{prefix}lease:a: a lease, which ends by itself");
    assert_eq!(of_kind(&remarks, RemarkKind::LeftOut), [cache, lease, plan]);
    assert!(!lines.concat().contains("ya29"));
    Ok(())
}

#[tokio::test]
async fn a_configuration_that_is_not_a_hash() -> Result {
    let url = servers::redis();
    let (_, prefix) = url.split_once("prefix=").unwrap();
    let mut raw = Raw::to(&url);
    raw.ask(&[b"SET", format!("{prefix}config").as_bytes(), b"{}"]);
    raw.ask(&[b"SET", format!("{prefix}cred:a").as_bytes(), b"{}"]);
    let (found, remarks) = adopted(&url, None).await?;
    assert_eq!(found["credentials"], json!({ "a": {} }));
    let reason = "a stored record has the wrong Redis type";
    assert_eq!(not_understood(&remarks), [format!("{prefix}config: {reason}")]);
    Ok(())
}

#[tokio::test]
async fn a_cluster() -> Result {
    let cluster = Cluster::start(3, 0);
    let url = cluster.url();
    let storage = Storage::<gateway_storage::Redis>::open(url.as_str()).await?;
    let adoption = Adoption::open(&format!("file:{}", fixture("file").display()), None).await?;
    storage.import(adoption.records()).await?.complete()?;
    assert_eq!(adopted(&url, None).await?.0, as_read_by_go("file"));
    Ok(())
}
