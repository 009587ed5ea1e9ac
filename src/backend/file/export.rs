//! `Exportable` for `File`.

use futures_core::Stream;
use futures_util::{StreamExt, stream};

use super::{
    File,
    state::{Draft, PersistentMap, State},
    work::{FEW, copied, work},
};
use crate::{
    BatchReport, Error, Exportable, Key, Record, Result,
    backend::snapshot::stream_of,
    codec::{RecordKey, encode_config, encode_credential},
};

impl Exportable for File {
    /// A snapshot of the time of the call, which uses memory until the stream is dropped. An unreadable
    /// record ends the stream with an error, after all readable ones.
    fn export(&self) -> impl Stream<Item = Result<Record>> + Send {
        let (state, deadline) = (self.snapshot(), self.deadline);
        let sorted = async move {
            let state = state?;
            let is_small =
                [state.credentials.len(), state.configs.len(), state.usage.len()].iter().sum::<usize>()
                    <= FEW;
            work(deadline, is_small, move || Ok(Sorted::from(state))).await
        };
        stream::once(sorted).map(|sorted| stream_of(sorted.map(Sorted::records))).flatten()
    }

    fn exports_snapshot(&self) -> bool {
        true
    }

    async fn import(&self, records: &[Record]) -> Result<BatchReport> {
        let records = copied(records).await;
        let encode = |record| {
            let encoded = encode(&record);
            (record, encoded)
        };
        self.encode_and_write(
            records.len(),
            move || records.into_iter().map(encode).collect::<Vec<_>>(),
            |draft, writes| {
                let succeeded = writes.len();
                for (record, encoded) in writes {
                    put(draft, record, encoded);
                }
                Ok(BatchReport { succeeded, failures: Vec::new() })
            },
        )
        .await
    }
}

/// A state and the order of its records.
struct Sorted {
    state: State,
    credentials: Vec<Key>,
    configs: Vec<Key>,
    usage: Vec<Key>,
    /// The error of an unreadable record.
    damage: Option<Error>,
}

impl From<State> for Sorted {
    fn from(state: State) -> Self {
        let is_record = |name: &RecordKey| !matches!(name, RecordKey::Audit(_) | RecordKey::Plan(_));
        Self {
            credentials: sorted(&state.credentials),
            configs: sorted(&state.configs),
            usage: sorted(&state.usage),
            damage: state.check(is_record).err(),
            state,
        }
    }
}

impl Sorted {
    fn records(self) -> impl Iterator<Item = Result<Record>> + Send {
        let State { credentials, configs, usage, .. } = self.state;
        let credentials = self.credentials.into_iter().filter_map(move |id| {
            credentials.get(&id).cloned().map(|credential| Record::Credential { id, credential })
        });
        let configs = self
            .configs
            .into_iter()
            .filter_map(move |key| configs.get(&key).cloned().map(|value| Record::Config { key, value }));
        let counters = self.usage.into_iter().flat_map(move |key| {
            let record = usage.get(&key).cloned().unwrap_or_default();
            record.into_iter().map(move |(field, count)| Record::Usage { key: key.clone(), field, count })
        });
        credentials.chain(configs).chain(counters).map(Ok).chain(self.damage.map(Err))
    }
}

fn sorted<V>(map: &PersistentMap<V>) -> Vec<Key> {
    let mut keys: Vec<Key> = map.keys().cloned().collect();
    keys.sort_unstable();
    keys
}

/// Encodes a document as JSON; a counter needs no encoding. Does not run on the committer's thread, for which
/// all writes wait.
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
