//! `Exportable` for `Git`.

use futures_core::Stream;

use super::{Git, state::State};
use crate::{BatchReport, Exportable, Record, RecordKind, Result, backend::snapshot::stream_of};

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
