//! `Exportable` for `File`.

use std::time::Duration;

use futures_core::Stream;
use futures_util::{StreamExt, future, stream};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

use super::{
    File,
    cache::weight_of_record,
    document::Document,
    draft::{Draft, decode_count},
    piece::Piece,
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
        let (export, deadline) = (
            self.store.reader.snapshot().and_then(|snapshot| Export::new(&snapshot).map(Box::new)),
            self.deadline,
        );
        // While a piece is being used, the next are parsed, and the one after them is read.
        let pieces = stream::unfold(Some(Next::First(export)), move |next| async move {
            let reading = match next? {
                Next::First(Ok(export)) => spawn_blocking(|| export.read()),
                Next::First(Err(error)) => return Some((Piece::failed(error), None)),
                Next::Reading(reading) => reading,
            };
            match in_time(deadline, reading).await {
                Ok((piece, rest)) => {
                    Some((piece, rest.map(|export| Next::Reading(spawn_blocking(|| export.read())))))
                }
                Err(error) => Some((Piece::failed(error), None)),
            }
        });
        let parsed = pieces.map(move |piece| {
            let parsing = spawn_blocking(|| parse(piece));
            async move { in_time(deadline, parsing).await }
        });
        // The error of the first unreadable record, while there is a next piece.
        let damage = Some(None);
        let pieces = parsed.buffered(PARSED_AHEAD).scan(damage, |damage, parsed| {
            let piece = damage.take().map(|earlier| match parsed {
                Ok(Parsed { mut records, damaged, end }) => {
                    let damaged = earlier.or(damaged);
                    match end {
                        None => *damage = Some(damaged),
                        Some(end) => records.extend(end.err().or(damaged).map(Err)),
                    }
                    records
                }
                Err(error) => vec![Err(error)],
            });
            future::ready(piece)
        });
        pieces.map(|records| stream_of(Ok(records.into_iter()))).flatten()
    }

    fn exports_snapshot(&self) -> bool {
        true
    }

    async fn import(&self, records: &[Record]) -> Result<BatchReport> {
        let admitted = self.admit(records.len(), records.iter().map(weight_of_record).sum()).await?;
        let records = copied(records).await;
        self.encode_and_write(
            admitted,
            records.len(),
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

/// Waits for work on a piece.
async fn in_time<T>(deadline: Duration, work: JoinHandle<T>) -> Result<T> {
    match timeout(time_left(deadline), work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(_)) => Err(Error::new(ErrorKind::Internal, "the export panicked, or the runtime has ended")),
        Err(_) => {
            Err(Error::new(ErrorKind::Timeout, "the deadline passed while a part of the export was read"))
        }
    }
}

enum Next {
    First(Result<Box<Export>>),
    Reading(JoinHandle<(Piece, Option<Export>)>),
}

/// Pieces that are parsed at once.
const PARSED_AHEAD: usize = 2;

/// The records that are still to be exported.
struct Export {
    documents: Records,
    counters: Records,
}

/// The records of a piece.
struct Parsed {
    records: Vec<Result<Record>>,
    /// The error of the first unreadable record.
    damaged: Option<Error>,
    end: Option<Result<()>>,
}

impl Export {
    fn new(snapshot: &Snapshot) -> Result<Self> {
        let documents = RecordKey::credentials().start..RecordKey::configs().end;
        Ok(Self { documents: snapshot.records(documents)?, counters: snapshot.records(RecordKey::usage())? })
    }

    fn read(mut self) -> (Piece, Option<Self>) {
        let mut piece = Piece::default();
        while !piece.is_full() {
            piece.add(self.documents.next().or_else(|| self.counters.next()));
            if piece.end.is_some() {
                return (piece, None);
            }
        }
        (piece, Some(self))
    }
}

fn parse(piece: Piece) -> Parsed {
    let mut damaged = None;
    let mut records = Vec::with_capacity(piece.stored.len());
    for stored in &piece.stored {
        match record(stored) {
            Ok(record) => records.push(Ok(record)),
            Err(error) => drop(damaged.get_or_insert(error)),
        }
    }
    Parsed { records, damaged, end: piece.end }
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
