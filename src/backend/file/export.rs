//! `Exportable` for `File`.

use futures_core::Stream;
use futures_util::{StreamExt, stream};
use tokio::task::{JoinHandle, spawn_blocking};

use super::{
    File,
    cache::{weight_of, weight_of_fields},
    document::Document,
    draft::{Draft, decode_count},
    snapshot::{Records, Snapshot, Stored},
    work::copied,
};
use crate::{
    BatchReport, ConfigValue, Credential, Error, ErrorKind, Exportable, Record, Result,
    backend::snapshot::stream_of,
    codec::{RecordKey, encode_config, encode_credential},
    layer::time_left,
};

impl Exportable for File {
    /// A snapshot of the time of the call: until the stream is dropped, the file keeps the space of what is
    /// deleted or replaced meanwhile. An unreadable record ends the stream with an error, after all readable
    /// ones.
    fn export(&self) -> impl Stream<Item = Result<Record>> + Send {
        let (export, deadline) =
            (self.store.reader.snapshot().and_then(|snapshot| Export::new(&snapshot)), self.deadline);
        // One piece is read while the one before it is being used.
        let pieces = stream::unfold(Some(Next::First(export)), move |next| async move {
            let piece = match next? {
                Next::First(Ok(export)) => spawn_blocking(|| export.piece()),
                Next::First(Err(error)) => return Some((vec![Err(error)], None)),
                Next::Reading(piece) => piece,
            };
            match tokio::time::timeout(time_left(deadline), piece).await {
                Ok(Ok((records, rest))) => {
                    let rest = rest.map(|export| Next::Reading(spawn_blocking(|| export.piece())));
                    Some((records, rest))
                }
                Ok(Err(_)) => Some((
                    vec![Err(Error::new(
                        ErrorKind::Internal,
                        "the export panicked, or the runtime has ended",
                    ))],
                    None,
                )),
                Err(_) => Some((
                    vec![Err(Error::new(
                        ErrorKind::Timeout,
                        "the deadline passed while a part of the export was read",
                    ))],
                    None,
                )),
            }
        });
        pieces.map(|records| stream_of(Ok(records.into_iter()))).flatten()
    }

    fn exports_snapshot(&self) -> bool {
        true
    }

    async fn import(&self, records: &[Record]) -> Result<BatchReport> {
        let records = copied(records).await;
        let bytes = records.iter().map(weight).sum();
        self.encode_and_write(
            (records.len(), bytes),
            move || {
                let encode = |record| {
                    let encoded = encode(&record);
                    (record, encoded)
                };
                records.into_iter().map(encode).collect::<Vec<_>>()
            },
            |draft, writes| {
                let succeeded = writes.len();
                for (record, encoded) in writes {
                    put(draft, record, &encoded)?;
                }
                Ok(BatchReport { succeeded, failures: Vec::new() })
            },
        )
        .await
    }
}

enum Next {
    First(Result<Export>),
    Reading(JoinHandle<Piece>),
}

/// Records, and the rest of the export.
type Piece = (Vec<Result<Record>>, Option<Export>);

/// A piece ends with the record that brings it to this number of bytes or records.
const PIECE_BYTES: usize = 256 << 10;
const PIECE_RECORDS: usize = 512;

/// The records that are still to be exported.
struct Export {
    documents: Records,
    counters: Records,
    /// The error of the first unreadable record.
    damage: Option<Error>,
}

impl Export {
    fn new(snapshot: &Snapshot) -> Result<Self> {
        let documents = RecordKey::credentials().start..RecordKey::configs().end;
        Ok(Self {
            documents: snapshot.records(documents)?,
            counters: snapshot.records(RecordKey::usage())?,
            damage: None,
        })
    }

    fn piece(mut self) -> Piece {
        let (mut records, mut bytes) = (Vec::new(), 0);
        while records.len() < PIECE_RECORDS && bytes < PIECE_BYTES {
            match self.documents.next().or_else(|| self.counters.next()) {
                Some(Ok(stored)) => {
                    bytes += stored.value().len();
                    match record(&stored) {
                        Ok(record) => records.push(Ok(record)),
                        Err(error) => drop(self.damage.get_or_insert(error)),
                    }
                }
                // The store itself can't be read: there is no next record.
                Some(Err(error)) => {
                    records.push(Err(error));
                    return (records, None);
                }
                None => {
                    records.extend(self.damage.map(Err));
                    return (records, None);
                }
            }
        }
        (records, Some(self))
    }
}

fn record(stored: &Stored) -> Result<Record> {
    match stored.name()? {
        RecordKey::Credential(id) => match Credential::decode(stored.value()) {
            Ok(credential) => Ok(Record::Credential { id, credential }),
            Err(error) => Err(error.with_key(&id)),
        },
        RecordKey::Config(key) => match ConfigValue::decode(stored.value()) {
            Ok(value) => Ok(Record::Config { key, value }),
            Err(error) => Err(error.with_key(&key)),
        },
        RecordKey::Usage(key, field) => {
            let count = decode_count(&key, stored.value())?;
            Ok(Record::Usage { key, field, count })
        }
        RecordKey::Audit(_) | RecordKey::Plan(_) => {
            Err(Error::new(ErrorKind::Internal, "an export has a plan"))
        }
    }
}

fn weight(record: &Record) -> usize {
    match record {
        Record::Credential { credential, .. } => weight_of_fields(credential.fields()),
        Record::Config { value, .. } => weight_of(value),
        Record::Usage { .. } => 0,
    }
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

fn put(draft: &mut Draft<'_>, record: Record, encoded: &[u8]) -> Result<()> {
    match record {
        Record::Credential { id, .. } => draft.put_credential(id, encoded),
        Record::Config { key, .. } => draft.put_config(key, encoded),
        Record::Usage { key, field, count } => draft.set_counter(&key, &field, count),
    }
}
