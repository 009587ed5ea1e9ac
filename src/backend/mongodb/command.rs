//! Many upserts in one `update` command, whose reply names those that failed.

use std::collections::BTreeMap;

use mongodb::{
    Collection,
    bson::{Document, RawArrayBuf, RawDocumentBuf, raw::cstr},
    options::{Acknowledgment, WriteConcern},
};

use super::{
    document::ID,
    error,
    pool::{Lane, Lease},
    server::{Call, UPSERT_ATTEMPTS},
};
use crate::{
    Error, Key, Result,
    backend::remote::{Effect, batch},
};

/// Which collection of a lane.
pub(super) type Of = fn(&Lane) -> &Collection<RawDocumentBuf>;

/// `{ _id: key }`
fn id_of(key: &Key) -> RawDocumentBuf {
    let mut query = RawDocumentBuf::new();
    query.append(ID, key.as_str());
    query
}

/// An upsert of one document of an `update` command.
pub(super) fn upsert(key: &Key, change: RawDocumentBuf) -> RawDocumentBuf {
    let mut statement = RawDocumentBuf::new();
    statement.append(cstr!("q"), id_of(key));
    statement.append(cstr!("u"), change);
    statement.append(cstr!("upsert"), true);
    statement
}

/// `{ _id: { $in: keys } }`
pub(super) fn any_of<'k>(keys: impl Iterator<Item = &'k Key>) -> Document {
    let keys: Vec<&str> = keys.map(Key::as_str).collect();
    mongodb::bson::doc! { "_id": { "$in": keys } }
}

/// Carries statements out, chunk by chunk, so many at once, and says which failed, by the names that they have here.
pub(super) async fn upsert_all<K: Copy + Ord + Send + Sync>(
    call: &Call<'_>,
    of: Of,
    statements: &[(K, RawDocumentBuf)],
    at_once: usize,
) -> BTreeMap<K, Error> {
    let bytes = |(_, statement): &(K, RawDocumentBuf)| statement.as_bytes().len();
    let chunks = batch::run(statements, bytes, at_once, |chunk| call.upsert_chunk(of, chunk));
    chunks.await.into_iter().flat_map(|(_, failed)| failed).collect()
}

/// The places of the statements that failed, each with its code; and the failure of what the others should have got.
type Answer = (Vec<(usize, i32)>, Option<Error>);

impl Call<'_> {
    /// One command. Statements that an upsert of somebody else came before are sent again.
    async fn upsert_chunk<K: Copy + Ord + Send + Sync>(
        &self,
        of: Of,
        chunk: &[(K, RawDocumentBuf)],
    ) -> BTreeMap<K, Error> {
        let mut failed = BTreeMap::new();
        let mut left: Vec<usize> = (0..chunk.len()).collect();
        for attempt in 1..=UPSERT_ATTEMPTS {
            let sent = std::mem::take(&mut left);
            let (refused, others) = match self.update(of, sent.iter().map(|at| &chunk[*at].1)).await {
                Ok(answer) => answer,
                // What an earlier attempt did stays done.
                Err(error) => (Vec::new(), Some(error)),
            };
            if let Some(error) = others {
                failed.extend(sent.iter().map(|at| (chunk[*at].0, error.clone())));
            }
            for (at, code) in refused {
                let name = chunk[sent[at]].0;
                failed.remove(&name);
                if code == error::DUPLICATE_KEY && attempt < UPSERT_ATTEMPTS {
                    left.push(sent[at]);
                } else {
                    failed.insert(name, error::of_item(code));
                }
            }
            if left.is_empty() {
                break;
            }
        }
        failed
    }

    async fn update(
        &self,
        of: Of,
        statements: impl ExactSizeIterator<Item = &RawDocumentBuf> + Clone,
    ) -> Result<Answer> {
        let count = statements.len();
        let update = |lease: Lease| {
            let mut items = RawArrayBuf::new();
            statements.clone().for_each(|statement| items.push(statement));
            let mut command = RawDocumentBuf::new();
            command.append(cstr!("update"), of(&lease).name());
            command.append(cstr!("updates"), items);
            command.append(cstr!("ordered"), false);
            // The driver adds no write concern to a command that it does not make itself.
            command.append(cstr!("writeConcern"), write_concern(&lease.write_concern));
            let patience = i64::try_from(self.server_time().as_millis()).unwrap_or(i64::MAX);
            command.append(cstr!("maxTimeMS"), patience);
            async move { lease.database.run_raw_command(command).await }
        };
        let reply = self.write(self.lease().await?, update).await?;
        let wrong = || error::unexpected_reply(Effect::Write);
        let mut refused = Vec::new();
        for failure in reply.get_array("writeErrors").into_iter().flatten() {
            let failure = failure.as_document().ok_or_else(wrong)?;
            let at = failure.get_i32("index").ok().and_then(|at| usize::try_from(at).ok());
            let at = at.filter(|at| *at < count).ok_or_else(wrong)?;
            refused.push((at, failure.get_i32("code").map_err(|_| wrong())?));
        }
        Ok((refused, error::of_write_concern(&reply)))
    }
}

fn write_concern(concern: &WriteConcern) -> RawDocumentBuf {
    let mut document = RawDocumentBuf::new();
    match concern.w {
        Some(Acknowledgment::Nodes(count)) => document.append(cstr!("w"), i64::from(count)),
        _ => document.append(cstr!("w"), "majority"),
    }
    document.append(cstr!("j"), concern.journal.unwrap_or(true));
    document
}
