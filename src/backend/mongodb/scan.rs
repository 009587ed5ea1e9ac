//! Many documents, as they were at one moment.

use mongodb::{
    ClientSession,
    action::Find,
    bson::{RawDocument, RawDocumentBuf},
    error::Result as DriverResult,
    options::ReadConcern,
};

use super::pool::Lease;
use crate::Result;

/// A session whose queries all see what was there at the first one.
pub(super) async fn snapshot(lease: &Lease) -> DriverResult<ClientSession> {
    let has_snapshots = lease.has_snapshots(lease.writable);
    lease.client.start_session().snapshot(has_snapshots).causal_consistency(!has_snapshots).await
}

/// A query for such a session. Unless told, the driver asks with the client's own read concern there.
pub(super) fn of_snapshot<'f>(lease: &Lease, find: Find<'f, RawDocumentBuf>) -> Find<'f, RawDocumentBuf> {
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
