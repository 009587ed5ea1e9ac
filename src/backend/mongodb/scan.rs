//! Many documents, as they were at one moment.

use std::{pin::pin, sync::Arc};

use mongodb::{
    ClientSession, Collection, SessionCursor,
    action::Find,
    bson::{Document, RawDocument, RawDocumentBuf, doc},
    error::Result as DriverResult,
    options::{Collation, ReadConcern},
};

use super::{
    MongoDb,
    pool::{Lane, Lease},
};
use crate::Result;

/// A session whose queries all see what was there at the first one.
async fn snapshot(lease: &Lease) -> DriverResult<ClientSession> {
    let has_snapshots = lease.has_snapshots(lease.writable);
    lease.client.start_session().snapshot(has_snapshots).causal_consistency(!has_snapshots).await
}

/// A query for such a session. Unless told, the driver asks with the client's own read concern there.
fn of_snapshot<'f>(lease: &Lease, find: Find<'f, RawDocumentBuf>) -> Find<'f, RawDocumentBuf> {
    if lease.has_snapshots(lease.writable) { find.read_concern(ReadConcern::snapshot()) } else { find }
}

/// What a query finds, read while it comes.
pub(super) async fn collect<T>(
    lease: &Lease,
    find: Find<'_, RawDocumentBuf>,
    read: impl Fn(&RawDocument) -> Result<T>,
) -> DriverResult<Result<Vec<T>>> {
    let mut session = snapshot(lease).await?;
    let mut found = of_snapshot(lease, find).session(&mut session).await?;
    let mut items = Vec::new();
    while found.advance(&mut session).await? {
        match read(found.current()) {
            Ok(item) => items.push(item),
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(items))
}

/// A page ends after this many documents, or this many bytes.
const PAGE: u32 = 250;
const PAGE_BYTES: usize = 4 << 20;

/// Whole collections, one after the other, as they were at one moment. Read a page at a time, each with the deadline of a call.
pub(super) struct Pages {
    pub(super) mongodb: MongoDb,
    lane: Option<Arc<Lane>>,
    session: Option<ClientSession>,
    cursor: Option<SessionCursor<RawDocumentBuf>>,
}

impl Pages {
    /// Nothing is asked yet.
    pub(super) fn of(mongodb: &MongoDb) -> Self {
        Self { mongodb: mongodb.clone(), lane: None, session: None, cursor: None }
    }

    /// Reads on in a collection, and says whether there may be more; else the next call begins with the next one. Sorted by
    /// the bytes of these fields, whatever the collection's language is.
    pub(super) async fn read(
        &mut self,
        collection: impl FnOnce(&Lease) -> Collection<RawDocumentBuf>,
        sort: Document,
        mut each: impl FnMut(&RawDocument) -> Result<()>,
    ) -> Result<bool> {
        let call = self.mongodb.call()?;
        let lease = match &self.lane {
            // The session is good for no other client.
            Some(lane) => call.lease_of(lane).await?,
            None => call.lease().await?,
        };
        self.lane = Some(lease.lane.clone());
        let session = match &mut self.session {
            Some(session) => session,
            none => none.insert(call.ask(pin!(snapshot(&lease))).await?),
        };
        let cursor = match &mut self.cursor {
            Some(cursor) => cursor,
            none => {
                let collection = collection(&lease);
                let bytes = Collation::builder().locale("simple").build();
                let find = collection.find(doc! {}).sort(sort).collation(bytes).allow_disk_use(true);
                let find = of_snapshot(&lease, find.batch_size(PAGE)).session(&mut *session);
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
