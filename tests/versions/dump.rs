//! Writes the fixtures from stores of the previous version.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use mongodb::bson::{Bson, Document, doc};
use redis::{Connection, FromRedisValue, cmd};
use serde_json::{Value, json};
use testkit::servers::postgres::Server;

use crate::previous::{
    fixture,
    git::{ARCHIVE, tar},
    mongodb::{COLLECTIONS, database},
};

pub(super) fn file(store: &Path) {
    drop(fs::remove_dir_all(fixture("file")));
    fs::create_dir(fixture("file")).unwrap();
    for entry in fs::read_dir(store).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), fixture("file").join(entry.file_name())).unwrap();
    }
}

pub(super) fn git(folder: &Path) {
    let archive = fixture(ARCHIVE);
    tar(&["--owner=0", "--group=0", "--sort=name", "-czf", archive.to_str().unwrap()], folder);
}

/// The commands that make all keys of a server.
pub(super) fn redis(url: &str) {
    let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
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

/// The statements that make the schema and its rows.
pub(super) fn postgres(server: &Server) {
    let mut dump = Command::new("pg_dump");
    dump.args(["--inserts", "--no-owner", "--no-privileges", "--schema=gateway_storage"]);
    dump.args(["-h", "127.0.0.1", "-U", "tester", "-p", &server.port.to_string(), "postgres"]);
    let text = String::from_utf8(dump.output().expect("pg_dump").stdout).unwrap();
    // Without comments, commands of psql, and settings that other versions lack.
    let is_left_out = |line: &&str| {
        ["--", "\\", "SET ", "SELECT pg_catalog.set_config"].iter().any(|start| line.starts_with(start))
    };
    let mut lines: Vec<&str> = text.lines().filter(|line| !is_left_out(line)).collect();
    lines.dedup_by_key(|line| line.is_empty().then_some(()).ok_or(line.as_ptr()));
    fs::write(fixture("postgres.sql"), lines.join("\n").trim_start().to_owned() + "\n").unwrap();
}

pub(super) async fn mongodb(url: &str) {
    let database = database(url).await;
    let mut names = database.list_collection_names().await.unwrap();
    names.sort();
    let mut known = COLLECTIONS.map(str::to_owned);
    known.sort();
    assert_eq!(names, known);
    drop(fs::create_dir(fixture("mongodb")));
    for name in COLLECTIONS {
        let collection = database.collection::<Document>(name);
        let indexes = collection.list_index_names().await.unwrap();
        assert_eq!(indexes, ["_id_"], "the fixture has no others");
        let mut found = collection.find(doc! {}).sort(doc! { "_id": 1 }).await.unwrap();
        let mut text = String::new();
        while found.advance().await.unwrap() {
            let document = found.deserialize_current().unwrap();
            text += &(extended_json(&Bson::Document(document)).to_string() + "\n");
        }
        fs::write(fixture(&format!("mongodb/{name}.jsonl")), text).unwrap();
    }
}

fn ask<T: FromRedisValue>(connection: &mut Connection, words: &[&str]) -> T {
    let mut command = cmd(words[0]);
    command.arg(&words[1..]).query(connection).unwrap()
}

/// Canonical Extended JSON.
fn extended_json(value: &Bson) -> Value {
    match value {
        Bson::Null => Value::Null,
        Bson::Boolean(is) => json!(is),
        Bson::String(text) => json!(text),
        Bson::Int32(number) => json!({ "$numberInt": number.to_string() }),
        Bson::Int64(number) => json!({ "$numberLong": number.to_string() }),
        Bson::Double(number) => json!({ "$numberDouble": format!("{number:?}") }),
        Bson::DateTime(time) => json!({ "$date": { "$numberLong": time.timestamp_millis().to_string() } }),
        Bson::Array(items) => items.iter().map(extended_json).collect(),
        Bson::Document(fields) => {
            Value::Object(fields.iter().map(|(name, value)| (name.clone(), extended_json(value))).collect())
        }
        other => panic!("{other:?}"),
    }
}
