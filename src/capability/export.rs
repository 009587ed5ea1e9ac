//! [`Exportable`]: everything out as a stream, and in again.

use futures_core::Stream;

use crate::{Backend, BatchReport, Record, RecordKind, Result, capability};

/// Streams all records out, and takes records in.
#[capability]
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be exported or imported",
    note = "backends that export and import: `File`, `Git`, `Memory`, `MongoDb`, `Postgres`, `Redis`"
)]
pub trait Exportable: Backend {
    /// Streams every credential, then every config value, then every counter, each sorted by key (and field).
    ///
    /// - Ends after the first error.
    /// - Writes may go on; `File`, `Git` and `Memory` export the store as it was when the stream was made, `Postgres` and
    ///   `MongoDb` (but on a standalone server) as it was when the stream was first asked for a record.
    #[operation(read, backup)]
    fn export(&self) -> impl Stream<Item = Result<Record>> + Send;

    /// Whether an export is one state of the store, although writes go on. No, unless the backend says so; a server's topology may
    /// decide it, as far as it is known.
    #[forward]
    fn exports_snapshot(&self) -> bool {
        false
    }

    /// Whether it has a place for records of this kind. Where it says no, each of them is a failure of an import,
    /// [`Unsupported`](crate::ErrorKind::Unsupported). Yes, unless the backend says so.
    #[forward]
    fn imports(&self, kind: RecordKind) -> bool {
        let _ = kind;
        true
    }

    /// Whether records can be imported while an export of the same store is under way. Yes, unless the backend says so: an export may
    /// hold the only connection.
    #[forward]
    fn imports_while_exporting(&self) -> bool {
        true
    }

    /// Stores many records, in place of those that are there under the same keys. Others stay.
    ///
    /// - A counter is set to its count, so that repeating an import is harmless as long as no one else writes. A layer never does.
    /// - One bad record does not stop the others; of several under one key the last one stays.
    #[operation(write, batch = records)]
    fn import(&self, records: &[Record]) -> impl Future<Output = Result<BatchReport>> + Send;
}
