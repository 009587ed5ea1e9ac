//! Everything out, from one snapshot where the server can, and records in.

use std::{collections::BTreeMap, sync::Arc, vec};

use futures_core::Stream;
use futures_util::stream;
use mongodb::{
    ClientSession, SessionCursor,
    bson::{RawDocumentBuf, doc, raw::cstr},
};

use super::{
    CONCURRENT_CHUNKS, MongoDb,
    command::{upsert, upsert_all},
    document,
    pool::Lane,
    scan::{of_snapshot, snapshot},
    usage,
};
use crate::{BatchReport, Exportable, Key, Record, Result};

/// A page ends after this many documents, or this many bytes.
const PAGE: u32 = 250;
const PAGE_BYTES: usize = 4 << 20;

/// What an export is at.
#[derive(Clone, Copy)]
enum Place {
    Credentials,
    Configs,
    Usage,
    End,
}

struct Export {
    mongodb: MongoDb,
    lane: Option<Arc<Lane>>,
    session: Option<ClientSession>,
    cursor: Option<SessionCursor<RawDocumentBuf>>,
    page: vec::IntoIter<Record>,
    place: Place,
}

impl Export {
    async fn next(&mut self) -> Result<Option<Record>> {
        loop {
            if let Some(record) = self.page.next() {
                return Ok(Some(record));
            }
            if matches!(self.place, Place::End) {
                (self.cursor, self.session) = (None, None);
                return Ok(None);
            }
            self.page = self.read_page().await?.into_iter();
        }
    }

    async fn read_page(&mut self) -> Result<Vec<Record>> {
        let mongodb = self.mongodb.clone();
        let call = mongodb.call()?;
        let lease = match &self.lane {
            // The session is good for no other client.
            Some(lane) => call.lease_of(lane).await?,
            None => call.lease().await?,
        };
        self.lane = Some(lease.lane.clone());
        let session = match &mut self.session {
            Some(session) => session,
            none => none.insert(call.ask(std::pin::pin!(snapshot(&lease))).await?),
        };
        let cursor = match &mut self.cursor {
            Some(cursor) => cursor,
            none => {
                let collection = match self.place {
                    Place::Credentials => &lease.credentials,
                    Place::Configs => &lease.configs,
                    Place::Usage | Place::End => &lease.usage,
                };
                let find = collection.find(doc! {}).sort(doc! { "_id": 1 }).batch_size(PAGE);
                let find = of_snapshot(&lease, find).session(&mut *session);
                none.insert(call.ask(find.into_future()).await?)
            }
        };
        let (mut page, mut bytes, mut documents) = (Vec::new(), 0, 0);
        while documents < PAGE && bytes < PAGE_BYTES {
            if !call.ask(std::pin::pin!(cursor.advance(session))).await? {
                self.cursor = None;
                self.place = match self.place {
                    Place::Credentials => Place::Configs,
                    Place::Configs => Place::Usage,
                    Place::Usage | Place::End => Place::End,
                };
                break;
            }
            let document = cursor.current();
            (documents, bytes) = (documents + 1, bytes + document.as_bytes().len());
            let key = document::key(document)?;
            match self.place {
                Place::Credentials => {
                    let credential = document::credential(&key, document)?;
                    page.push(Record::Credential { id: key, credential });
                }
                Place::Configs => {
                    let value = document::config(&key, document)?;
                    page.push(Record::Config { key, value });
                }
                Place::Usage | Place::End => {
                    let record = usage::record(document).map_err(|error| error.with_key(&key))?;
                    let counters = record.into_iter();
                    page.extend(counters.map(|(field, count)| Record::Usage {
                        key: key.clone(),
                        field,
                        count,
                    }));
                }
            }
        }
        Ok(page)
    }
}

/// How many counters of a record are set by one statement, which must be smaller than a document.
const COUNTERS: usize = 1000;

/// Statements that set counters: those of a record together.
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
    /// A snapshot, taken when the stream is first asked for a record, but on a standalone server, which has none: what changes
    /// there meanwhile may be seen or not. The server keeps a snapshot for five minutes (`minSnapshotHistoryWindowInSeconds`);
    /// a stream that takes longer may end with [`Unavailable`](crate::ErrorKind::Unavailable).
    fn export(&self) -> impl Stream<Item = Result<Record>> + Send {
        let export = Export {
            mongodb: self.clone(),
            lane: None,
            session: None,
            cursor: None,
            page: Vec::new().into_iter(),
            place: Place::Credentials,
        };
        stream::unfold(Some(export), |export| async {
            let mut export = export?;
            match export.next().await {
                Ok(record) => record.map(|record| (Ok(record), Some(export))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// Yes, unless the server that takes writes is known to be alone, or reads or writes are of less than the majority.
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
        let credential = |(id, of)| (id, upsert(id, document::of_credential(of)));
        let credentials: Vec<_> = credentials.into_iter().map(credential).collect();
        let config = |(key, of)| (key, upsert(key, document::of_config(of)));
        let configs: Vec<_> = configs.into_iter().map(config).collect();
        let counters = set_counters(counters);
        let credentials = upsert_all(&call, |lane| &lane.credentials, &credentials, CONCURRENT_CHUNKS).await;
        let configs = upsert_all(&call, |lane| &lane.configs, &configs, CONCURRENT_CHUNKS).await;
        let counters = upsert_all(&call, |lane| &lane.usage, &counters, CONCURRENT_CHUNKS).await;
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
        Ok(report)
    }
}
