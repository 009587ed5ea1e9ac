//! `Exportable` for `Git`.

use futures_core::Stream;

use super::{Git, state::State};
use crate::{
    BatchReport, Error, ErrorKind, Exportable, Record, RecordKind, Result, backend::snapshot::stream_of,
};

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
    /// [`Unsupported`](ErrorKind::Unsupported).
    async fn import(&self, records: &[Record]) -> Result<BatchReport> {
        let records = records.to_vec();
        self.commit("import", move |draft| {
            let mut import = |record: &Record| match record {
                Record::Credential { id, credential } => draft.put_credential(id, credential),
                Record::Config { key, value } => draft.put_config(key, value),
                Record::Usage { .. } => Err(Error::new(
                    ErrorKind::Unsupported,
                    "a Git store does not count usage: import counters into another store",
                )
                .with_key(record.key())),
            };
            Ok(BatchReport::collect(records.iter().map(|record| (record.key(), import(record)))))
        })
        .await
    }
}

fn records(State { credentials, configs, .. }: State) -> impl Iterator<Item = Record> + Send {
    let credentials = credentials.into_iter().map(|(id, credential)| Record::Credential { id, credential });
    credentials.chain(configs.into_iter().map(|(key, value)| Record::Config { key, value }))
}
