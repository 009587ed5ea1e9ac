//! Export, from one snapshot if the server has snapshots, and import.

use std::{collections::BTreeMap, vec};

use futures_core::Stream;
use futures_util::stream;
use mongodb::bson::{RawDocument, RawDocumentBuf, doc, raw::cstr};

use super::{
    CONCURRENT_CHUNKS, MongoDb,
    command::{upsert, upsert_all},
    document,
    pool::Permit,
    scan::Pages,
    usage,
};
use crate::{BatchReport, Exportable, Key, Record, Result, backend::remote::batch};

/// The collection that an export is reading.
#[derive(Clone, Copy)]
enum Position {
    Credentials,
    Configs,
    Usage,
    End,
}

struct Export {
    pages: Pages,
    page: vec::IntoIter<Record>,
    position: Position,
}

impl Export {
    async fn next(&mut self) -> Result<Option<Record>> {
        loop {
            if let Some(record) = self.page.next() {
                return Ok(Some(record));
            }
            if matches!(self.position, Position::End) {
                return Ok(None);
            }
            self.page = self.read_page().await?.into_iter();
        }
    }

    async fn read_page(&mut self) -> Result<Vec<Record>> {
        let position = self.position;
        let collection = |permit: &Permit| match position {
            Position::Credentials => permit.credentials.clone(),
            Position::Configs => permit.configs.clone(),
            Position::Usage | Position::End => permit.usage.clone(),
        };
        let mut page = Vec::new();
        let read = |document: &RawDocument| {
            let key = document::key(document)?;
            match position {
                Position::Credentials => {
                    let credential = document::credential(&key, document)?;
                    page.push(Record::Credential { id: key, credential });
                }
                Position::Configs => {
                    let value = document::config(&key, document)?;
                    page.push(Record::Config { key, value });
                }
                Position::Usage | Position::End => {
                    let record = usage::record(document).map_err(|error| error.with_key(&key))?;
                    let counter = |(field, count)| Record::Usage { key: key.clone(), field, count };
                    page.extend(record.into_iter().map(counter));
                }
            }
            Ok(())
        };
        if !self.pages.read(collection, doc! { "_id": 1 }, read).await? {
            self.position = match position {
                Position::Credentials => Position::Configs,
                Position::Configs => Position::Usage,
                Position::Usage | Position::End => Position::End,
            };
        }
        Ok(page)
    }
}

/// How many counters one statement sets: a statement is limited to the size of a document.
const COUNTERS: usize = 1000;

/// Statements that set counters, grouped by record.
fn set_counters<'k>(records: BTreeMap<&'k Key, BTreeMap<&'k Key, i64>>) -> Vec<(&'k Key, RawDocumentBuf)> {
    let mut statements = Vec::new();
    for (key, counts) in records {
        let counts: Vec<(&Key, i64)> = counts.into_iter().collect();
        let parts = counts.chunks(COUNTERS).map(|part| usage::change(cstr!("$set"), part.iter().copied()));
        statements.extend(parts.map(|change| (key, upsert(key, change))));
    }
    statements
}

impl Exportable for MongoDb {
    /// Reads a snapshot, taken when the stream is first polled. A standalone server has no snapshots: its
    /// export may or may not see concurrent changes. The server keeps a snapshot for five minutes
    /// (`minSnapshotHistoryWindowInSeconds`); a stream that takes longer may end with
    /// [`Unavailable`](crate::ErrorKind::Unavailable).
    fn export(&self) -> impl Stream<Item = Result<Record>> + Send {
        let export =
            Export { pages: Pages::of(self), page: Vec::new().into_iter(), position: Position::Credentials };
        stream::try_unfold(export, async |mut export| Ok(export.next().await?.map(|item| (item, export))))
    }

    /// True on replica sets and clusters with majority concerns. False while no server is known.
    fn exports_snapshot(&self) -> bool {
        self.server.has_snapshots()
    }

    async fn import(&self, records: &[Record]) -> Result<BatchReport> {
        let call = self.call()?;
        let (mut credentials, mut configs) = (BTreeMap::new(), BTreeMap::new());
        let mut counters: BTreeMap<&Key, BTreeMap<&Key, i64>> = BTreeMap::new();
        // The last one stays.
        for record in records {
            match record {
                Record::Credential { id, credential } => drop(credentials.insert(id, credential)),
                Record::Config { key, value } => drop(configs.insert(key, value)),
                Record::Usage { key, field, count } => {
                    counters.entry(key).or_default().insert(field, *count);
                }
            }
        }
        let credential = |(id, of)| (id, upsert(id, document::from_credential(of)));
        let credentials: Vec<_> = credentials.into_iter().map(credential).collect();
        let config = |(key, of)| (key, upsert(key, document::from_config(of)));
        let configs: Vec<_> = configs.into_iter().map(config).collect();
        let counters = set_counters(counters);
        let credentials = upsert_all(&call, |pool| &pool.credentials, &credentials, CONCURRENT_CHUNKS).await;
        let configs = upsert_all(&call, |pool| &pool.configs, &configs, CONCURRENT_CHUNKS).await;
        let counters = upsert_all(&call, |pool| &pool.usage, &counters, CONCURRENT_CHUNKS).await;
        let mut report = BatchReport::default();
        for (index, record) in records.iter().enumerate() {
            let failed = match record {
                Record::Credential { .. } => &credentials,
                Record::Config { .. } => &configs,
                Record::Usage { .. } => &counters,
            };
            let failed = failed.get(record.key());
            report.record(index, record.key(), failed.map_or(Ok(()), |error| Err(error.clone())));
        }
        batch::settle(report)
    }
}
