//! `Exportable` for `Git`.

use futures_core::Stream;

use imbl::OrdMap;

use super::{Git, state::State};
use crate::{
    BatchReport, Exportable, Key, Record, RecordKind, Result,
    backend::snapshot::{entries, stream_of},
    model::{KeyRange, ListOptions},
};

impl Git {
    /// The records of one kind that the options name, as they are now.
    pub(super) fn stream<V: Clone + Send + Sync + 'static>(
        &self,
        options: ListOptions,
        map: fn(&State) -> &OrdMap<Key, V>,
    ) -> impl Stream<Item = Result<(Key, V)>> + Send + use<V> {
        stream_of(self.state().map(|state| {
            let records = map(&state).clone();
            let first = move |range: &KeyRange| {
                records.range::<_, str>(range.start()).next().map(|(key, value)| (key.clone(), value.clone()))
            };
            let named =
                KeyRange::of(&options).into_iter().flat_map(move |range| entries(range, first.clone()));
            named.take(options.limit.unwrap_or(usize::MAX)).map(Ok)
        }))
    }
}

impl Exportable for Git {
    /// A snapshot of the time of the call, which uses memory until the stream is dropped.
    fn export(&self) -> impl Stream<Item = Result<Record>> + Send {
        stream_of(self.state().map(|state| records(State::clone(&state)).map(Ok)))
    }

    fn exports_snapshot(&self) -> bool {
        true
    }

    fn imports(&self, kind: RecordKind) -> bool {
        kind != RecordKind::Usage
    }

    /// One commit, all or nothing, except counters: each one fails with
    /// [`Unsupported`](crate::ErrorKind::Unsupported).
    async fn import(&self, records: &[Record]) -> Result<BatchReport> {
        let records = records.to_vec();
        self.commit("import", move |draft| {
            let results = records.iter().map(|record| (record.key(), draft.put(record.clone())));
            Ok(BatchReport::collect(results))
        })
        .await
    }
}

fn records(State { credentials, configs, .. }: State) -> impl Iterator<Item = Record> + Send {
    let credentials = credentials.into_iter().map(|(id, credential)| Record::Credential { id, credential });
    credentials.chain(configs.into_iter().map(|(key, value)| Record::Config { key, value }))
}
