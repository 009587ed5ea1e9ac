//! Export and import.

use futures_core::Stream;
use futures_util::stream;
use gateway_storage::{BatchReport, Error, ErrorKind, Exportable, Record, Result};

use super::{Own, Store, documents::document_of};

impl Store {
    /// Every record, in the order of an export.
    fn records(&self) -> Vec<Result<Record>> {
        let counters = self.usage.iter().flat_map(|(key, record)| {
            let counter =
                |(field, count)| Record::Usage { key: key.clone(), field: Clone::clone(field), count };
            record.iter().map(counter).map(Ok)
        });
        self.documents.records().chain(counters).collect()
    }

    fn import(&mut self, record: &Record) -> Result<()> {
        match (document_of(record), record) {
            (Some((name, text)), _) => self.documents.put(name, Some(&text)),
            (None, Record::Usage { key, field, count }) => {
                self.usage.entry(key.clone()).or_default().set(field.clone(), *count);
            }
            (None, _) => {
                return Err(Error::new(ErrorKind::Unsupported, "records of this kind are not stored"));
            }
        }
        Ok(())
    }
}

impl Exportable for Own {
    fn export(&self) -> impl Stream<Item = Result<Record>> + Send {
        let records = self.lock().map(|store| store.records());
        stream::iter(records.unwrap_or_else(|error| vec![Err(error)]))
    }

    fn exports_snapshot(&self) -> bool {
        true
    }

    async fn import(&self, records: &[Record]) -> Result<BatchReport> {
        let (mut store, mut report) = (self.lock()?, BatchReport::default());
        for (index, record) in records.iter().enumerate() {
            report.record(index, record.key(), store.import(record));
        }
        Ok(report)
    }
}
