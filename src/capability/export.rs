//! [`Exportable`]: export and import of all records.

use std::future::ready;

use futures_core::Stream;
use futures_util::TryStreamExt;

use crate::{Backend, BatchReport, Record, RecordKind, Result, capability};

/// Exports all records as a stream, and imports records.
#[capability(wrapper = ExportableWrapper)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be exported or imported",
    note = "backends that export and import: `File`, `Git`, `Memory`, `MongoDb`, `Postgres`, `Redis`"
)]
pub trait Exportable: Backend {
    /// Streams every credential, then every config value, then every counter, each sorted by key (counters by
    /// key and field).
    ///
    /// - The stream ends after the first error.
    /// - Writes may continue meanwhile. `File`, `Git` and `Memory` export a snapshot from the moment when the
    ///   stream was created, `Postgres` and `MongoDb` (except on a standalone server) one from the moment
    ///   when it was first polled.
    #[operation(read, backup)]
    fn export(&self) -> impl Stream<Item = Result<Record>> + Send;

    /// Streams the records whose keys begin with these bytes, in the order of [`export`](Exportable::export).
    ///
    /// - The bullets of `export` hold. It is not a backup of the store.
    /// - The default body reads all records and drops the others.
    #[operation(read)]
    fn export_prefix(&self, prefix: String) -> impl Stream<Item = Result<Record>> + Send {
        self.export().try_filter(move |record| ready(record.key().as_str().starts_with(&prefix)))
    }

    /// Whether an export is a snapshot of the store even while it is written to. The default is `false`. A
    /// backend's answer may depend on the server's topology, as far as it is known.
    #[forward]
    fn exports_snapshot(&self) -> bool {
        false
    }

    /// Whether the backend stores records of this kind. If not, an import fails for each of them with
    /// [`Unsupported`](crate::ErrorKind::Unsupported). The default is `true`.
    #[forward]
    fn imports(&self, kind: RecordKind) -> bool {
        let _ = kind;
        true
    }

    /// Whether records can be imported during an export of the same store. The default is `true`. It is
    /// `false` for a handle whose export may hold the only connection.
    #[forward]
    fn imports_while_exporting(&self) -> bool {
        true
    }

    /// Stores many records, and replaces those under the same keys. Other records in the store are kept.
    ///
    /// - A counter is set to its count, so repeating an import is harmless unless other callers write
    ///   meanwhile. A layer never repeats it after an [unknown outcome](crate::Outcome::Unknown).
    /// - A failed record does not stop the others; of several under one key the last one is stored.
    #[operation(write, batch = records)]
    fn import(&self, records: &[Record]) -> impl Future<Output = Result<BatchReport>> + Send;
}
