//! Export and import.

use std::pin::pin;

use futures_core::Stream;
use futures_util::StreamExt;
use tokio::task::consume_budget;

use super::Storage;
use crate::{BatchReport, Error, Exportable, Outcome, Record, RecordKind, Result};

/// The most records that [`Storage::import`] passes to the backend in one call. A call has fewer once they
/// reach 4 MiB.
pub const IMPORT_CHUNK: usize = 500;

/// The size in bytes at which a chunk is full.
const CHUNK_BYTES: usize = 4 << 20;

/// The records for one call of [`Exportable::import`].
#[derive(Default)]
pub(crate) struct Chunk {
    pub(crate) records: Vec<Record>,
    bytes: usize,
}

impl Chunk {
    pub(crate) fn is_full(&self, max_records: usize) -> bool {
        self.records.len() >= max_records || self.bytes >= CHUNK_BYTES
    }

    pub(crate) fn push(&mut self, record: Record) {
        self.bytes += record.size();
        self.records.push(record);
    }
}

/// Export and import. See [`Exportable`].
impl<B> Storage<B> {
    /// Streams all records. See [`Exportable::export`].
    pub fn export(&self) -> impl Stream<Item = Result<Record>> + Send
    where
        B: Exportable,
    {
        self.backend.export()
    }

    /// Streams the records whose keys begin with these bytes. See [`Exportable::export_prefix`].
    pub fn export_prefix(&self, prefix: impl Into<String>) -> impl Stream<Item = Result<Record>> + Send
    where
        B: Exportable,
    {
        self.backend.export_prefix(prefix.into())
    }

    /// Whether an export is a snapshot. See [`Exportable::exports_snapshot`].
    #[must_use]
    pub fn exports_snapshot(&self) -> bool
    where
        B: Exportable,
    {
        self.backend.exports_snapshot()
    }

    /// Whether the backend stores records of this kind. See [`Exportable::imports`].
    #[must_use]
    pub fn imports(&self, kind: RecordKind) -> bool
    where
        B: Exportable,
    {
        self.backend.imports(kind)
    }

    /// Whether records can be imported during an export. See [`Exportable::imports_while_exporting`].
    #[must_use]
    pub fn imports_while_exporting(&self) -> bool
    where
        B: Exportable,
    {
        self.backend.imports_while_exporting()
    }

    /// Imports a stream of records, [`IMPORT_CHUNK`] at a time, or fewer if they are large. See
    /// [`Exportable::import`].
    ///
    /// # Errors
    ///
    /// The first error of the stream, or of the import of a whole chunk, ends it. The records before an error
    /// of the stream are still imported, and imported records stay: the error's outcome is then
    /// [`Unknown`](Outcome::Unknown), and the report on single records is lost. Importing again is harmless;
    /// [`migrate::copy`](crate::migrate::copy()) counts its progress.
    pub async fn import(&self, records: impl Stream<Item = Result<Record>> + Send) -> Result<BatchReport>
    where
        B: Exportable,
    {
        let mut records = pin!(records);
        let (mut report, mut offset) = (BatchReport::default(), 0);
        loop {
            let (mut chunk, mut end) = (Chunk::default(), None);
            while end.is_none() && !chunk.is_full(IMPORT_CHUNK) {
                // A stream that is always ready would starve other tasks.
                consume_budget().await;
                match records.next().await {
                    Some(Ok(record)) => chunk.push(record),
                    Some(Err(error)) => end = Some(Err(error)),
                    None => end = Some(Ok(())),
                }
            }
            let ends =
                |error: Error, offset| if offset > 0 { error.with_outcome(Outcome::Unknown) } else { error };
            if !chunk.records.is_empty() {
                let imported = self.backend.import(&chunk.records).await;
                report.append(offset, imported.map_err(|error| ends(error, offset))?);
                offset += chunk.records.len();
            }
            match end {
                None => {}
                Some(Ok(())) => return Ok(report),
                Some(Err(error)) => return Err(ends(error, offset)),
            }
        }
    }
}
