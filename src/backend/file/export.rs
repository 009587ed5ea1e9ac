//! The state as a stream, and records in.

use futures_core::Stream;
use futures_util::{StreamExt, stream};

use super::{
    File,
    state::{Draft, PersistentMap, State},
};
use crate::{
    BatchReport, Exportable, Key, Record, Result,
    backend::snapshot::stream_of,
    codec::{RecordKey, encode_config, encode_credential},
};

impl Exportable for File {
    /// The state when the stream was made: a snapshot, which holds its memory until the stream is dropped. If a record can't be
    /// read, that is the end of the stream, behind all that can.
    fn export(&self) -> impl Stream<Item = Result<Record>> + Send {
        let state = self.state().map(|state| State::clone(&state));
        let is_record = |name: &RecordKey| !matches!(name, RecordKey::Audit(_) | RecordKey::Plan(_));
        let damage = state.as_ref().ok().and_then(|state| state.check(is_record).err());
        stream_of(state.map(records)).chain(stream::iter(damage.map(Err)))
    }

    fn exports_snapshot(&self) -> bool {
        true
    }

    async fn import(&self, records: &[Record]) -> Result<BatchReport> {
        let writes: Vec<_> = records.iter().map(|record| (record.clone(), encode(record))).collect();
        self.write(move |draft| {
            let succeeded = writes.len();
            for (record, encoded) in writes {
                put(draft, record, encoded);
            }
            Ok(BatchReport { succeeded, failures: Vec::new() })
        })
        .await
    }
}

fn records(state: State) -> impl Iterator<Item = Record> + Send {
    let State { credentials, configs, usage, .. } = state;
    let credentials = sorted(&credentials).into_iter().filter_map(move |id| {
        credentials.get(&id).cloned().map(|credential| Record::Credential { id, credential })
    });
    let configs = sorted(&configs)
        .into_iter()
        .filter_map(move |key| configs.get(&key).cloned().map(|value| Record::Config { key, value }));
    let counters = sorted(&usage).into_iter().flat_map(move |key| {
        let record = usage.get(&key).cloned().unwrap_or_default();
        record.into_iter().map(move |(field, count)| Record::Usage { key: key.clone(), field, count })
    });
    credentials.chain(configs).chain(counters)
}

fn sorted<V>(map: &PersistentMap<V>) -> Vec<Key> {
    let mut keys: Vec<Key> = map.keys().cloned().collect();
    keys.sort_unstable();
    keys
}

/// JSON for a document, nothing for a counter; made on the caller's thread, which the committer's waits for nobody.
fn encode(record: &Record) -> Vec<u8> {
    match record {
        Record::Credential { credential, .. } => encode_credential(credential),
        Record::Config { value, .. } => encode_config(value),
        Record::Usage { .. } => Vec::new(),
    }
}

fn put(draft: &mut Draft, record: Record, encoded: Vec<u8>) {
    match record {
        Record::Credential { id, credential } => draft.put_credential(id, credential, encoded),
        Record::Config { key, value } => draft.put_config(key, value, encoded),
        Record::Usage { key, field, count } => draft.set_counter(key, field, count),
    }
}
