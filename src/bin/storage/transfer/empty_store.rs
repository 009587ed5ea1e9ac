//! Stands in for a store that does not exist yet, as the target of a dry run.

use std::time::Duration;

use futures_util::{Stream, stream};
use gateway_storage::{
    Backend, BatchReport, Error, ErrorKind, Exportable, Record, RecordKind, Result, StorageStats,
};

/// An empty store that accepts these kinds of records.
#[derive(Clone, Debug)]
pub(crate) struct EmptyStore(pub(crate) &'static [RecordKind]);

impl Backend for EmptyStore {
    fn label(&self) -> &'static str {
        "empty"
    }

    fn set_deadline(&mut self, _: Duration) {}

    async fn health(&self) -> Result<()> {
        Ok(())
    }

    async fn stats(&self) -> Result<StorageStats> {
        Ok(StorageStats::new(self.label()))
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

impl Exportable for EmptyStore {
    fn export(&self) -> impl Stream<Item = Result<Record>> + Send {
        stream::empty()
    }

    fn imports(&self, kind: RecordKind) -> bool {
        self.0.contains(&kind)
    }

    async fn import(&self, _: &[Record]) -> Result<BatchReport> {
        Err(Error::new(ErrorKind::Internal, "a dry run writes nothing"))
    }
}
