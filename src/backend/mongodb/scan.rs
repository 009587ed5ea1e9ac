//! Queries of many documents, from one snapshot if the server has snapshots.

use std::{pin::pin, sync::Arc};

use mongodb::{
    ClientSession, Collection, SessionCursor,
    action::Find,
    bson::{Document, RawDocument, RawDocumentBuf, doc},
    error::Result as DriverResult,
    options::{Collation, ReadConcern},
};

use super::{
    CONCURRENT_CHUNKS, MongoDb,
    command::{CollectionOf, any_of, in_range},
    document,
    pool::{Permit, Pool},
    server::Call,
};
use crate::{
    Found, Key, Result,
    backend::remote::{
        batch, keyed,
        listing::{PAGE, PAGE_BYTES, Page},
    },
    error::Kind,
    model::KeyRange,
};

/// A session whose queries all read the snapshot that the first one takes.
async fn snapshot_session(permit: &Permit) -> DriverResult<ClientSession> {
    let has_snapshots = permit.has_snapshots(permit.writable);
    permit.client.start_session().snapshot(has_snapshots).causal_consistency(!has_snapshots).await
}

/// A query for such a session. Its read concern must be set: otherwise the driver sends the client's own.
fn in_snapshot<'f>(permit: &Permit, find: Find<'f, RawDocumentBuf>) -> Find<'f, RawDocumentBuf> {
    if permit.has_snapshots(permit.writable) { find.read_concern(ReadConcern::snapshot()) } else { find }
}

/// Reads each document that a query finds.
pub(super) async fn collect<T>(
    permit: &Permit,
    find: Find<'_, RawDocumentBuf>,
    read: impl Fn(&RawDocument) -> Result<T>,
) -> DriverResult<Result<Vec<T>>> {
    let mut session = snapshot_session(permit).await?;
    let mut found = in_snapshot(permit, find).session(&mut session).await?;
    let mut items = Vec::new();
    while found.advance(&mut session).await? {
        match read(found.current()) {
            Ok(item) => items.push(item),
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(items))
}

/// Reads the documents that have these keys.
pub(super) async fn get_documents<V: Clone>(
    call: &Call<'_>,
    (kind, collection): (Kind, CollectionOf),
    keys: &[Key],
    read: fn(&Key, &RawDocument) -> Result<V>,
) -> Result<Found<V>> {
    let distinct = keyed::distinct(keys);
    let chunks = batch::run(
        &distinct,
        |_| 0,
        CONCURRENT_CHUNKS,
        |chunk| async move {
            let find = |permit: Permit| async move {
                let find = collection(&permit).find(any_of(chunk.iter().copied()));
                // One more than there are: then the server knows that the first reply is the last one.
                let most = u32::try_from(chunk.len() + 1).unwrap_or(u32::MAX);
                let read = |document: &RawDocument| {
                    let key = document::key(document)?;
                    let value = read(&key, document);
                    Ok((key, value))
                };
                collect(&permit, find.batch_size(most), read).await
            };
            call.read(find).await?
        },
    );
    keyed::found(kind, keys, chunks.await)
}

/// Sorts by bytes, whatever the collation of the collection is.
fn bytewise() -> Collation {
    Collation::builder().locale("simple").build()
}

impl MongoDb {
    /// Reads a page of a list. No cursor is kept after it.
    pub(super) async fn page<V>(
        &self,
        collection: CollectionOf,
        range: KeyRange,
        most: usize,
        read: fn(&Key, &RawDocument) -> Result<V>,
    ) -> Result<Page<V>> {
        let (call, query) =
            (self.call()?, Document::try_from(&*in_range(&range)).map_err(document::damaged)?);
        let find = |permit: Permit| {
            let (query, limit) = (query.clone(), u32::try_from(most).unwrap_or(u32::MAX));
            async move {
                let find = collection(&permit).find(query).sort(doc! { "_id": 1 }).collation(bytewise());
                let mut found = find.limit(limit.into()).batch_size(limit).await?;
                let (mut records, mut bytes) = (Vec::new(), 0);
                while bytes < PAGE_BYTES && found.advance().await? {
                    let document = found.current();
                    bytes += document.as_bytes().len();
                    let record = document::key(document).and_then(|key| {
                        let value = read(&key, document)?;
                        Ok((key, value))
                    });
                    match record {
                        Ok(record) => records.push(record),
                        Err(error) => return Ok(Err(error)),
                    }
                }
                let is_last = records.len() < most && bytes < PAGE_BYTES;
                Ok(Ok(Page { records, is_last }))
            }
        };
        call.read(find).await?
    }
}

/// Reads collections one after another from one snapshot. Each page is a call with its own deadline.
pub(super) struct Pages {
    pub(super) mongodb: MongoDb,
    pool: Option<Arc<Pool>>,
    session: Option<ClientSession>,
    cursor: Option<SessionCursor<RawDocumentBuf>>,
}

impl Pages {
    /// Sends nothing yet.
    pub(super) fn of(mongodb: &MongoDb) -> Self {
        Self { mongodb: mongodb.clone(), pool: None, session: None, cursor: None }
    }

    /// Reads the next page of a collection, sorted by the bytes of the fields whatever its collation is.
    /// Returns false at its end; the next call may read another collection.
    pub(super) async fn read(
        &mut self,
        collection: impl FnOnce(&Permit) -> Collection<RawDocumentBuf>,
        sort: Document,
        mut each: impl FnMut(&RawDocument) -> Result<()>,
    ) -> Result<bool> {
        let call = self.mongodb.call()?;
        // A session belongs to one client.
        let permit = call.permit_of(self.pool.as_ref()).await?;
        self.pool = Some(permit.pool.clone());
        let session = match &mut self.session {
            Some(session) => session,
            none => none.insert(call.ask(pin!(snapshot_session(&permit))).await?),
        };
        let cursor = match &mut self.cursor {
            Some(cursor) => cursor,
            none => {
                let collection = collection(&permit);
                let find = collection.find(doc! {}).sort(sort).collation(bytewise()).allow_disk_use(true);
                let find = in_snapshot(&permit, find.batch_size(PAGE as u32)).session(&mut *session);
                none.insert(call.ask(find.into_future()).await?)
            }
        };
        let (mut documents, mut bytes) = (0, 0);
        while documents < PAGE && bytes < PAGE_BYTES {
            if !call.ask(pin!(cursor.advance(session))).await? {
                self.cursor = None;
                return Ok(false);
            }
            let document = cursor.current();
            (documents, bytes) = (documents + 1, bytes + document.as_bytes().len());
            each(document)?;
        }
        Ok(true)
    }
}
