//! Many upserts in one `update` command, whose reply names those that failed.

use std::collections::BTreeMap;

use mongodb::{
    Collection,
    bson::{Document, RawArrayBuf, RawDocumentBuf, raw::cstr},
    options::{Acknowledgment, WriteConcern},
};

use super::{document::ID, failure, pool::Lane, server::Call};
use crate::{Error, Key, Result, backend::remote::Effect};

/// How often the statements are sent again that another upsert of the same new document came before.
const UPSERT_ATTEMPTS: u32 = 10;

/// `{ _id: key }`
pub(super) fn id_of(key: &Key) -> RawDocumentBuf {
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

impl Call<'_> {
    /// Upserts, in order, in one command; says which failed, and with what code. Those that an upsert of somebody else came
    /// before are sent again.
    pub(super) async fn upsert_many(
        &self,
        lane: &Lane,
        collection: &Collection<RawDocumentBuf>,
        statements: &[&RawDocumentBuf],
    ) -> Result<BTreeMap<usize, i32>> {
        let mut failed = BTreeMap::new();
        let mut left: Vec<usize> = (0..statements.len()).collect();
        let mut attempts = 0;
        while !left.is_empty() {
            attempts += 1;
            let command = update(lane, collection, left.iter().map(|at| statements[*at]));
            let refused = self.write(lane, command).await?;
            let sent = std::mem::take(&mut left);
            for (at, code) in refused {
                let at = *sent.get(at).ok_or_else(|| failure::unexpected_reply(Effect::Write))?;
                if code == failure::DUPLICATE_KEY && attempts < UPSERT_ATTEMPTS {
                    left.push(at);
                } else {
                    failed.insert(at, code);
                }
            }
        }
        Ok(failed)
    }

    /// The statements that failed, by place and code.
    async fn write(&self, lane: &Lane, command: RawDocumentBuf) -> Result<Vec<(usize, i32)>> {
        let reply = self.ask(Effect::Write, lane.database.run_raw_command(command)).await?;
        let wrong = || failure::unexpected_reply(Effect::Write);
        if let Some(error) = failure::of_write_concern(&reply) {
            return Err(error);
        }
        let mut failed = Vec::new();
        for failure in reply.get_array("writeErrors").into_iter().flatten() {
            let failure = failure.as_document().ok_or_else(wrong)?;
            let at =
                failure.get_i32("index").ok().and_then(|at| usize::try_from(at).ok()).ok_or_else(wrong)?;
            failed.push((at, failure.get_i32("code").map_err(|_| wrong())?));
        }
        Ok(failed)
    }
}

/// The driver adds no write concern to a command that it does not make itself.
fn update<'s>(
    lane: &Lane,
    collection: &Collection<RawDocumentBuf>,
    statements: impl Iterator<Item = &'s RawDocumentBuf>,
) -> RawDocumentBuf {
    let mut items = RawArrayBuf::new();
    for statement in statements {
        items.push(statement);
    }
    let mut command = RawDocumentBuf::new();
    command.append(cstr!("update"), collection.name());
    command.append(cstr!("updates"), items);
    command.append(cstr!("ordered"), false);
    command.append(cstr!("writeConcern"), write_concern(&lane.write_concern));
    command
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

/// The same error for each item of a chunk.
pub(super) fn all_failed<'k, K: Copy + Ord + 'k>(
    chunk: impl Iterator<Item = K>,
    error: &Error,
) -> BTreeMap<K, Error> {
    chunk.map(|key| (key, error.clone())).collect()
}
