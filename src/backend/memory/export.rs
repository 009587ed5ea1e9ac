//! Export of a snapshot as a stream, and import.

use std::{collections::BTreeMap, sync::Arc};

use futures_core::Stream;

use super::{Data, Memory};
use crate::{
    BatchReport, Exportable, Key, Record, Result,
    backend::{
        feed::change_of,
        snapshot::{self, stream_of},
    },
    model::{KeyRange, ListOptions},
};

/// All records of this data, in order and without copying all of it.
fn records(data: Arc<Data>) -> impl Iterator<Item = Result<Record>> + Send {
    let all = || KeyRange::of_prefix("");
    let credentials = entries(data.clone(), all(), |data| &data.credentials)
        .map(|(id, credential)| Record::Credential { id, credential });
    let configs =
        entries(data.clone(), all(), |data| &data.configs).map(|(key, value)| Record::Config { key, value });
    let counters = entries(data, all(), |data| &data.usage).flat_map(|(key, record)| {
        record.into_iter().map(move |(field, count)| Record::Usage { key: key.clone(), field, count })
    });
    credentials.chain(configs).chain(counters).map(Ok)
}

/// The entries of one map in a range.
fn entries<V: Clone>(
    data: Arc<Data>,
    range: KeyRange,
    map: fn(&Data) -> &BTreeMap<Key, V>,
) -> impl Iterator<Item = (Key, V)> {
    snapshot::entries(range, move |range| {
        let (key, value) = map(&data).range::<str, _>(range.start()).next()?;
        Some((key.clone(), value.clone()))
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

impl Memory {
    /// The entries of one map that the options name, as they are now.
    pub(super) fn stream<V: Clone + Send>(
        &self,
        options: ListOptions,
        map: fn(&Data) -> &BTreeMap<Key, V>,
    ) -> impl Stream<Item = Result<(Key, V)>> + Send {
        let data = self.lock(|store| Ok(store.data.clone()));
        stream_of(data.map(|data| {
            let range = KeyRange::of(&options).into_iter();
            let named = range.flat_map(move |range| entries(data.clone(), range, map));
            named.take(options.limit.unwrap_or(usize::MAX)).map(Ok)
        }))
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
            Ok(())
        })?;
        self.feed.tell(|| records.iter().filter_map(change_of));
        Ok(BatchReport { succeeded: records.len(), failures: Vec::new() })
    }
}
