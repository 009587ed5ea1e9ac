//! Makes records, streams and stores for the tests of copies.

use futures_util::{Stream, StreamExt, stream};
use gateway_storage::{
    ConfigValue, Exportable, Key, Memory, Record, Result, Storage,
    archive::{RecordDigest, RecordHasher},
    conformance::{hostile_credentials, hostile_keys, hostile_values},
};
use serde_json::json;

pub(crate) fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

pub(crate) fn config(name: &str, value: serde_json::Value) -> Record {
    Record::Config { key: key(name), value: ConfigValue::new(value).unwrap() }
}

pub(crate) fn usage(name: &str, field: &str, count: i64) -> Record {
    Record::Usage { key: key(name), field: key(field), count }
}

/// This many config values: `k00000` and so on.
pub(crate) fn configs(count: usize) -> Vec<Record> {
    (0..count).map(|n| config(&format!("k{n:05}"), json!(n))).collect()
}

pub(crate) fn of(records: Vec<Record>) -> impl Stream<Item = Result<Record>> + Send {
    stream::iter(records.into_iter().map(Ok))
}

pub(crate) async fn memory(records: Vec<Record>) -> Storage<Memory> {
    let storage = Storage::<Memory>::open("memory:").await.unwrap();
    let _ = storage.import(of(records)).await.unwrap().complete().unwrap();
    storage
}

/// Over five thousand unsorted records of every kind, with keys and values that stores tend to damage.
pub(crate) fn hostile_records() -> Vec<Record> {
    // Only small values occur more than once.
    let small = |size: usize| size < 4096;
    let (credentials, values) = (hostile_credentials(), hostile_values());
    let mut few = credentials.iter().filter(|credential| small(credential.to_json().len())).cycle();
    let mut simple = values.iter().filter(|value| small(value.to_string().len())).cycle();
    let counts = [i64::MIN, -1, 0, 1, 9_007_199_254_740_993, i64::MAX];
    let mut records: Vec<Record> = Vec::new();
    for (at, credential) in credentials.iter().enumerate() {
        records.push(Record::Credential { id: key(&format!("value {at}")), credential: credential.clone() });
    }
    // The largest values occur as credentials, and not again as config values.
    for (at, value) in values.iter().enumerate().filter(|(_, value)| value.to_string().len() < 1 << 16) {
        records.push(config(&format!("value {at}"), value.clone()));
    }
    let keys = hostile_keys(Key::MAX_BYTES);
    for round in 0..20 {
        for (at, hostile) in keys.iter().enumerate() {
            let name = match round {
                0 => hostile.clone(),
                _ => match Key::new(&format!("{}{round}", hostile.as_str())) {
                    Ok(name) => name,
                    Err(_) => continue,
                },
            };
            records.push(Record::Credential { id: name.clone(), credential: few.next().unwrap().clone() });
            let value = ConfigValue::new(simple.next().unwrap().clone()).unwrap();
            records.push(Record::Config { key: name.clone(), value });
            let field = keys[(7 * at + round) % keys.len()].clone();
            records.push(Record::Usage { key: name, field, count: counts[(at + round) % counts.len()] });
        }
    }
    records
}

/// The digest of all records in the store.
pub(crate) async fn digest<B: Exportable>(storage: &Storage<B>) -> RecordDigest {
    let mut hasher = RecordHasher::default();
    let mut export = std::pin::pin!(storage.export());
    while let Some(record) = export.next().await {
        hasher.update(&record.unwrap());
    }
    hasher.finish()
}
