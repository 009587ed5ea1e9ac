//! A snapshot as a stream, and records in.

use futures_core::Stream;

use super::{Data, Memory};
use crate::{BatchReport, Exportable, Record, Result, backend::snapshot::stream_of};

impl Data {
    fn records(&self) -> impl Iterator<Item = Record> {
        let credentials = self
            .credentials
            .iter()
            .map(|(id, credential)| Record::Credential { id: id.clone(), credential: credential.clone() });
        let configs =
            self.configs.iter().map(|(key, value)| Record::Config { key: key.clone(), value: value.clone() });
        let counters = self.usage.iter().flat_map(|(key, record)| {
            record.iter().map(|(field, count)| Record::Usage {
                key: key.clone(),
                field: field.clone(),
                count,
            })
        });
        credentials.chain(configs).chain(counters)
    }

    fn put(&mut self, record: Record) {
        match record {
            Record::Credential { id, credential } => {
                self.credentials.insert(id, credential);
            }
            Record::Config { key, value } => {
                self.configs.insert(key, value);
            }
            Record::Usage { key, field, count } => self.usage.entry(key).or_default().set(field, count),
        }
    }
}

impl Exportable for Memory {
    fn export(&self) -> impl Stream<Item = Result<Record>> + Send {
        let records: Result<Vec<Record>> = self.read(|data| Ok(data.records().collect()));
        stream_of(records.map(Vec::into_iter))
    }

    fn exports_snapshot(&self) -> bool {
        true
    }

    async fn import(&self, records: &[Record]) -> Result<BatchReport> {
        self.write(|data| {
            records.iter().cloned().for_each(|record| data.put(record));
            Ok(BatchReport { succeeded: records.len(), failures: Vec::new() })
        })
    }
}
