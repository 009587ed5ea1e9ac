//! Export, from one snapshot if the server has snapshots, and import.

use futures_core::Stream;
use mongodb::bson::{RawDocument, RawDocumentBuf, doc, raw::cstr};

use super::{
    MongoDb,
    command::{set_documents, upsert, upsert_all},
    counters, document,
    increments::COUNTERS,
    pool::Permit,
    scan::Pages,
};
use crate::{
    BatchReport, Exportable, Key, Record, Result,
    backend::remote::{
        batch,
        keyed::{EXPORTED, Records},
    },
    capability::pages,
    error::Kind,
};

struct Export {
    pages: Pages,
    /// The kinds of records that are left, the current one first.
    kinds: &'static [Kind],
}

impl Export {
    /// The next page, and the export after it.
    async fn next(mut self) -> Result<Option<(Vec<Record>, Self)>> {
        let [kind, left @ ..] = self.kinds else { return Ok(None) };
        let collection = |permit: &Permit| match kind {
            Kind::Credential => permit.credentials.clone(),
            Kind::Config => permit.configs.clone(),
            Kind::Usage | Kind::Cache => permit.usage.clone(),
        };
        let mut page = Vec::new();
        let read = |document: &RawDocument| {
            let key = document::key(document)?;
            match kind {
                Kind::Credential => {
                    let credential = document::credential(&key, document)?;
                    page.push(Record::Credential { id: key, credential });
                }
                Kind::Config => {
                    let value = document::config(&key, document)?;
                    page.push(Record::Config { key, value });
                }
                Kind::Usage | Kind::Cache => {
                    let record = counters::record(document).map_err(|error| error.with_key(&key))?;
                    let counter = |(field, count)| Record::Usage { key: key.clone(), field, count };
                    page.extend(record.into_iter().map(counter));
                }
            }
            Ok(())
        };
        if !self.pages.read(collection, doc! { "_id": 1 }, read).await? {
            self.kinds = left;
        }
        Ok(Some((page, self)))
    }
}

/// Statements that set counters, sorted and grouped by record.
fn set_counters<'k>(counters: &[((&'k Key, &'k Key), i64)]) -> Vec<(&'k Key, RawDocumentBuf)> {
    let of_a_record = counters.chunk_by(|((key, _), _), ((next, _), _)| key == next);
    of_a_record
        .flat_map(|counters| counters.chunks(COUNTERS))
        .map(|counters| {
            let ((key, _), _) = counters[0];
            let counts = counters.iter().map(|((_, field), count)| (*field, *count));
            (key, upsert(key, counters::change(cstr!("$set"), counts)))
        })
        .collect()
}

impl Exportable for MongoDb {
    /// Reads a snapshot, taken when the stream is first polled. A standalone server has no snapshots: its
    /// export may or may not see concurrent changes. The server keeps a snapshot for five minutes
    /// (`minSnapshotHistoryWindowInSeconds`); a stream that takes longer may end with
    /// [`Unavailable`](crate::ErrorKind::Unavailable).
    fn export(&self) -> impl Stream<Item = Result<Record>> + Send {
        pages(Export { pages: Pages::of(self), kinds: &EXPORTED }, Export::next)
    }

    /// True on replica sets and clusters with majority concerns. False while no server is known.
    fn exports_snapshot(&self) -> bool {
        self.server.has_snapshots()
    }

    async fn import(&self, records: &[Record]) -> Result<BatchReport> {
        let call = self.call()?;
        let Records { credentials, configs, counters } = Records::of(records);
        let counters = set_counters(&counters.into_iter().collect::<Vec<_>>());
        let (credential, config) = (document::from_credential, document::from_config);
        let credentials = set_documents(&call, |pool| &pool.credentials, credentials, credential).await;
        let configs = set_documents(&call, |pool| &pool.configs, configs, config).await;
        let counters = upsert_all(&call, |pool| &pool.usage, &counters).await;
        let failed = |record: &Record| match record {
            Record::Credential { .. } => credentials.get(record.key()).cloned(),
            Record::Config { .. } => configs.get(record.key()).cloned(),
            Record::Usage { .. } => counters.get(record.key()).cloned(),
        };
        batch::report_each(records.iter().map(|record| (record.key(), failed(record))))
    }
}
