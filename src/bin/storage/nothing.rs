//! A store that is not there yet: what a dry run would write to.

use std::time::Duration;

use futures_util::{Stream, stream};
use gateway_storage::{
    Backend, BatchReport, Error, ErrorKind, Exportable, Record, RecordKind, Result, StorageStats,
};

/// Empty, with a place for these kinds of records.
#[derive(Clone, Debug)]
pub(crate) struct Nothing(pub(crate) &'static [RecordKind]);

impl Backend for Nothing {
    fn label(&self) -> &'static str {
        "nothing"
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

impl Exportable for Nothing {
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
