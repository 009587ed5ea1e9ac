//! Adopts legacy data from real servers and directories, and compares it with what gcli2api-go reads.

#[cfg(feature = "file")]
mod files;
#[cfg(feature = "mongodb")]
mod mongodb;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;

use std::{fs, path::PathBuf};

use futures_util::TryStreamExt;
use gateway_storage::{
    Memory, Record, Storage,
    adopt::{Adoption, Layout, Remark, RemarkKind},
};
use serde_json::{Map, Value, json};
#[cfg(any(feature = "mongodb", feature = "postgres", feature = "redis"))]
use testkit::servers;

type Result<T = ()> = gateway_storage::Result<T>;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/go").join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(fixture(name)).unwrap()
}

/// The JSON documents of a file, one per line.
#[cfg(any(feature = "mongodb", feature = "postgres", feature = "redis"))]
fn lines(name: &str) -> Vec<Value> {
    text(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The data as gcli2api-go reads it.
fn as_read_by_go(backend: &str) -> Value {
    serde_json::from_str(&text(&format!("as-read-by-go-{backend}.json"))).unwrap()
}

/// All adopted records, through a store, as one document in the form of gcli2api-go.
async fn adopted(url: &str, layout: Option<Layout>) -> Result<(Value, Vec<Remark>)> {
    let adoption = Adoption::open(url, layout).await?;
    let records: Vec<Record> = adoption.records().try_collect().await?;
    let remarks = adoption.remarks();
    let again: Vec<Record> = adoption.records().try_collect().await?;
    assert!(records == again, "reading changes nothing");
    assert_eq!(adoption.remarks(), remarks);
    adoption.close().await?;
    assert!(
        records.is_sorted_by_key(place_of)
            && records.windows(2).all(|pair| place_of(&pair[0]) != place_of(&pair[1]))
    );

    let storage = Storage::<Memory>::open("memory:").await?;
    storage.import(futures_util::stream::iter(records.iter().cloned().map(Ok))).await?.complete()?;
    let stored: Vec<Record> = storage.export().try_collect().await?;
    assert!(stored == records);
    Ok((document(&stored), remarks))
}

fn place_of(record: &Record) -> (u8, String, String) {
    let (kind, field) = match record {
        Record::Credential { .. } => (0, ""),
        Record::Config { .. } => (1, ""),
        Record::Usage { field, .. } => (2, field.as_str()),
        _ => unreachable!("a kind that this test does not know"),
    };
    (kind, record.key().as_str().to_owned(), field.to_owned())
}

fn document(records: &[Record]) -> Value {
    let (mut credentials, mut configs, mut usage) = (Map::new(), Map::new(), Map::new());
    for record in records {
        let key = record.key().as_str().to_owned();
        match record {
            Record::Credential { credential, .. } => {
                credentials.insert(key, credential.fields().clone().into());
            }
            Record::Config { value, .. } => drop(configs.insert(key, value.value().clone())),
            Record::Usage { field, count, .. } => {
                usage.entry(key).or_insert_with(|| json!({}))[field.as_str()] = json!(count);
            }
            _ => unreachable!("a kind that this test does not know"),
        }
    }
    json!({ "credentials": credentials, "configs": configs, "usage": usage })
}

/// Remarks of a kind, as `place: reason`.
fn of_kind(remarks: &[Remark], kind: RemarkKind) -> Vec<String> {
    let mut lines: Vec<String> = remarks
        .iter()
        .filter(|remark| remark.kind == kind)
        .map(|remark| format!("{}: {}", remark.place, remark.reason))
        .collect();
    lines.sort();
    lines
}

fn not_understood(remarks: &[Remark]) -> Vec<String> {
    of_kind(remarks, RemarkKind::NotUnderstood)
}

#[test]
fn layouts_have_names() {
    for layout in Layout::ALL {
        assert_eq!(layout.as_str().parse::<Layout>().unwrap(), layout);
        assert_eq!(serde_json::to_value(layout).unwrap(), layout.as_str());
    }
    assert!("sqlite".parse::<Layout>().is_err());
}

#[tokio::test]
async fn other_urls_are_refused() {
    for url in ["memory:", "ftp://x", "", "sqlite:x"] {
        let error = Adoption::open(url, None).await.unwrap_err();
        assert_eq!(error.kind(), gateway_storage::ErrorKind::InvalidValue, "{url}");
    }
}
