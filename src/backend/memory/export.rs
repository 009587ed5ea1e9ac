//! Export of a snapshot as a stream, and import.

use std::{collections::BTreeMap, iter, ops::Bound, sync::Arc};

use futures_core::Stream;

use super::{Data, Memory};
use crate::{BatchReport, Exportable, Key, Record, Result, backend::snapshot::stream_of};

/// All records of this data, in order and without copying all of it.
fn records(data: Arc<Data>) -> impl Iterator<Item = Result<Record>> + Send {
    let credentials = entries(data.clone(), |data| &data.credentials)
        .map(|(id, credential)| Record::Credential { id, credential });
    let configs =
        entries(data.clone(), |data| &data.configs).map(|(key, value)| Record::Config { key, value });
    let counters = entries(data, |data| &data.usage).flat_map(|(key, record)| {
        record.into_iter().map(move |(field, count)| Record::Usage { key: key.clone(), field, count })
    });
    credentials.chain(configs).chain(counters).map(Ok)
}

/// The entries of one map, each looked up by the key before it.
fn entries<V: Clone>(
    data: Arc<Data>,
    map: impl Fn(&Data) -> &BTreeMap<Key, V>,
) -> impl Iterator<Item = (Key, V)> {
    let mut last: Option<Key> = None;
    iter::from_fn(move || {
        let behind = last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let (key, value) = map(&data).range::<Key, _>((behind, Bound::Unbounded)).next()?;
        let entry = (key.clone(), value.clone());
        last = Some(key.clone());
        Some(entry)
    })
}

impl Data {
    fn put(&mut self, record: Record) {
        match record {
            Record::Credential { id, credential } => {
                self.credentials.insert(id, credential);
            }
            Record::Config { key, value } => {
                self.configs.insert(key, value);
            }
            Record::Usage { key, field, count } => self.usage.entry(key).or_default().set(field, count),
        }
    }
}

impl Exportable for Memory {
    fn export(&self) -> impl Stream<Item = Result<Record>> + Send {
        stream_of(self.lock(|store| Ok(store.data.clone())).map(records))
    }

    fn exports_snapshot(&self) -> bool {
        true
    }

    async fn import(&self, records: &[Record]) -> Result<BatchReport> {
        self.lock(|store| {
            if !records.is_empty() {
                let data = store.changed();
                records.iter().cloned().for_each(|record| data.put(record));
            }
            Ok(BatchReport { succeeded: records.len(), failures: Vec::new() })
        })
    }
}
