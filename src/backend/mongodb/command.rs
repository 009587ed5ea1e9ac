//! Commands on one document, and batches of upserts in `update` commands.

use std::collections::BTreeMap;

use mongodb::{
    Collection,
    bson::{
        Bson, Document, RawArrayBuf, RawDocumentBuf, doc, raw::cstr, rawdoc, serialize_to_raw_document_buf,
    },
    error::Result as DriverResult,
    options::ReturnDocument,
};

use super::{
    CONCURRENT_CHUNKS,
    document::ID,
    error,
    pool::{Permit, Pool},
    server::Call,
};
use crate::{
    Error, Key, Outcome, Result,
    backend::remote::{Effect, batch},
    error::Kind,
    model::KeyRange,
};

/// How many times an upsert is sent when a concurrent one creates the same document first.
const UPSERT_ATTEMPTS: u32 = 10;

/// Selects one of a pool's collections.
pub(super) type CollectionOf = fn(&Pool) -> &Collection<RawDocumentBuf>;

/// `{ _id: key }`
pub(super) fn by_id(key: &Key) -> Document {
    doc! { "_id": key.as_str() }
}

/// Reads one document.
pub(super) async fn find_one(
    call: &Call<'_>,
    collection: CollectionOf,
    kind: Kind,
    key: &Key,
) -> Result<RawDocumentBuf> {
    let find = |permit: Permit| async move { collection(&permit).find_one(by_id(key)).await };
    call.read(find).await?.ok_or_else(|| Error::not_found(kind, key))
}

/// A change of one document, by `findAndModify`: the driver's other writes can't send `maxTimeMS`.
pub(super) enum FindOneAnd {
    /// Creates or replaces the document.
    Replace(RawDocumentBuf),
    /// Replaces the document if there is one.
    ReplaceExisting(RawDocumentBuf),
    /// Creates the document if there is none.
    Create(Document),
    /// Sets fields of the document if there is one. Returns all of it, as it was before.
    Set(Document),
    /// Adds to the counters at these paths, and returns them. Creates the document if needed.
    Increment(Vec<(String, i64)>),
    /// Changes a counter by a pipeline, and returns it as it was before. May create the document.
    Compute {
        path: String,
        pipeline: Vec<Document>,
        creates: bool,
    },
    Delete,
}

/// Changes the document that matches a query by its `_id`. None: there was none before, except for
/// `Increment`.
pub(super) async fn find_one_and(
    call: &Call<'_>,
    collection: CollectionOf,
    query: &Document,
    change: impl Fn() -> FindOneAnd,
) -> Result<Option<RawDocumentBuf>> {
    let request = |permit: Permit| {
        let (query, change, max_time) = (query.clone(), change(), call.server_time());
        async move {
            let collection = collection(&permit);
            let send = || async {
                let (query, id) = (query.clone(), doc! { "_id": 1 });
                match &change {
                    FindOneAnd::Replace(body) => {
                        let replace = collection.find_one_and_replace(query, body).upsert(true);
                        replace.projection(id).max_time(max_time).await
                    }
                    FindOneAnd::ReplaceExisting(body) => {
                        let replace = collection.find_one_and_replace(query, body);
                        replace.projection(id).max_time(max_time).await
                    }
                    FindOneAnd::Create(body) => {
                        let create = collection.find_one_and_update(query, doc! { "$setOnInsert": body });
                        create.upsert(true).projection(id).max_time(max_time).await
                    }
                    FindOneAnd::Set(fields) => {
                        let set = collection.find_one_and_update(query, doc! { "$set": fields });
                        set.max_time(max_time).await
                    }
                    FindOneAnd::Increment(counters) => {
                        let deltas: Document =
                            counters.iter().map(|(path, delta)| (path.clone(), (*delta).into())).collect();
                        let increment = collection.find_one_and_update(query, doc! { "$inc": deltas });
                        let increment = increment.upsert(true).return_document(ReturnDocument::After);
                        let paths = of_paths(counters.iter().map(|(path, _)| path.clone()));
                        increment.projection(paths).max_time(max_time).await
                    }
                    FindOneAnd::Compute { path, pipeline, creates } => {
                        let compute = collection.find_one_and_update(query, pipeline.clone());
                        let compute = compute.upsert(*creates).projection(doc! { path: 1 });
                        compute.max_time(max_time).await
                    }
                    FindOneAnd::Delete => {
                        collection.find_one_and_delete(query).projection(id).max_time(max_time).await
                    }
                }
            };
            retry_upsert(send).await
        }
    };
    call.write(call.permit().await?, request).await
}

/// `{ path: 1, .. }`
pub(super) fn of_paths(paths: impl Iterator<Item = String>) -> Document {
    paths.map(|path| (path, 1.into())).collect()
}

/// Deletes one document.
pub(super) async fn delete(call: &Call<'_>, collection: CollectionOf, kind: Kind, key: &Key) -> Result<()> {
    let deleted = find_one_and(call, collection, &by_id(key), || FindOneAnd::Delete).await?;
    Error::unless_found(deleted.is_some(), kind, key)
}

/// Sends an upsert, and sends it again while a concurrent one creates the same document first.
pub(super) async fn retry_upsert<T, R: IntoFuture<Output = DriverResult<T>>>(
    request: impl Fn() -> R,
) -> DriverResult<T> {
    for _ in 1..UPSERT_ATTEMPTS {
        match request().await {
            Err(error) if error::code_of(&error) == Some(error::DUPLICATE_KEY) => {}
            result => return result,
        }
    }
    request().await
}

/// One upsert, as a statement of an `update` command.
pub(super) fn upsert(key: &Key, change: RawDocumentBuf) -> RawDocumentBuf {
    let mut statement = RawDocumentBuf::new();
    let mut query = RawDocumentBuf::new();
    query.append(ID, key.as_str());
    statement.append(cstr!("q"), query);
    statement.append(cstr!("u"), change);
    statement.append(cstr!("upsert"), true);
    statement
}

/// `{ _id: { $in: keys } }`
pub(super) fn any_of<'k>(keys: impl Iterator<Item = &'k Key>) -> Document {
    let keys: Vec<&str> = keys.map(Key::as_str).collect();
    doc! { "_id": { "$in": keys } }
}

/// `{ _id: { $gte: first, $lt: end } }`, or with `$gt`.
pub(super) fn in_range(range: &KeyRange) -> RawDocumentBuf {
    let first = if range.has_first() { cstr!("$gte") } else { cstr!("$gt") };
    let (mut keys, mut query) = (RawDocumentBuf::new(), RawDocumentBuf::new());
    keys.append(first, range.first());
    keys.append(cstr!("$lt"), range.end());
    query.append(ID, keys);
    query
}

/// Runs keyed statements chunk by chunk, and returns the errors of those that failed.
pub(super) async fn upsert_all<K: Copy + Ord + Send + Sync>(
    call: &Call<'_>,
    collection: CollectionOf,
    statements: &[(K, RawDocumentBuf)],
) -> BTreeMap<K, Error> {
    let bytes = |(_, statement): &(K, RawDocumentBuf)| statement.as_bytes().len();
    let upsert = |chunk| call.upsert_chunk(collection, chunk);
    let chunks = batch::run(statements, bytes, CONCURRENT_CHUNKS, upsert);
    chunks.await.into_iter().flat_map(|(_, failed)| failed).collect()
}

/// Stores values under their keys. Returns the error of each that failed.
pub(super) async fn set_documents<'k, V>(
    call: &Call<'_>,
    collection: CollectionOf,
    values: BTreeMap<&'k Key, &V>,
    body: fn(&V) -> RawDocumentBuf,
) -> BTreeMap<&'k Key, Error> {
    let statements: Vec<_> = values.into_iter().map(|(key, value)| (key, upsert(key, body(value)))).collect();
    upsert_all(call, collection, &statements).await
}

/// An `update` command. The driver adds no write concern to raw commands.
pub(super) fn update<'s>(
    collection: &Collection<RawDocumentBuf>,
    statements: impl Iterator<Item = &'s RawDocumentBuf>,
    is_ordered: bool,
) -> RawDocumentBuf {
    let mut updates = RawArrayBuf::new();
    statements.for_each(|statement| updates.push(statement));
    let mut command = RawDocumentBuf::new();
    command.append(cstr!("update"), collection.name());
    command.append(cstr!("updates"), updates);
    command.append(cstr!("ordered"), is_ordered);
    command
}

/// The index and code of each refused statement, and the error that all others share, if any.
type Refusals = (Vec<(usize, i32)>, Option<Error>);

impl Call<'_> {
    /// Runs a raw command, with the server's time limit and the write concern.
    async fn run_write(&self, command: impl Fn(&Permit) -> RawDocumentBuf) -> Result<Document> {
        let request = |permit: Permit| {
            let mut command = command(&permit);
            let max_time = i64::try_from(self.server_time().as_millis()).unwrap_or(i64::MAX);
            command.append(cstr!("maxTimeMS"), max_time);
            async move {
                let concern = serialize_to_raw_document_buf(&permit.write_concern)?;
                command.append(cstr!("writeConcern"), concern);
                permit.database.run_raw_command(command).await
            }
        };
        self.write(self.permit().await?, request).await
    }

    /// Deletes the documents whose keys are in a range, and returns their number. The server deletes one after
    /// another, so some may be deleted after an error.
    pub(super) async fn delete_range(&self, collection: CollectionOf, range: &KeyRange) -> Result<u64> {
        let delete = |permit: &Permit| {
            let (mut statement, mut statements) = (RawDocumentBuf::new(), RawArrayBuf::new());
            statement.append(cstr!("q"), in_range(range));
            statement.append(cstr!("limit"), 0);
            statement.append(cstr!("collation"), rawdoc! { "locale": "simple" });
            statements.push(statement);
            let mut command = RawDocumentBuf::new();
            command.append(cstr!("delete"), collection(permit).name());
            command.append(cstr!("deletes"), statements);
            command
        };
        let reply = self.run_write(delete).await?;
        let deleted = match reply.get("n") {
            Some(Bson::Int32(deleted)) => u64::try_from(*deleted).ok(),
            Some(Bson::Int64(deleted)) => u64::try_from(*deleted).ok(),
            _ => None,
        };
        let deleted = deleted.ok_or_else(|| error::unexpected_reply(Effect::Write))?;
        match error::of_write_error(&reply) {
            Some(error) if deleted > 0 => Err(error.with_outcome(Outcome::Unknown)),
            Some(error) => Err(error),
            None => error::of_write_concern(&reply).map_or(Ok(deleted), Err),
        }
    }

    /// Sends one command. Statements whose document a concurrent upsert created first are sent again.
    async fn upsert_chunk<K: Copy + Ord + Send + Sync>(
        &self,
        collection: CollectionOf,
        chunk: &[(K, RawDocumentBuf)],
    ) -> BTreeMap<K, Error> {
        let mut failed = BTreeMap::new();
        let mut left: Vec<usize> = (0..chunk.len()).collect();
        for attempt in 1..=UPSERT_ATTEMPTS {
            let sent = std::mem::take(&mut left);
            let statements = sent.iter().map(|index| &chunk[*index].1);
            // If this attempt fails, the statements of earlier ones stay applied.
            let (refused, shared) =
                self.update(collection, statements).await.unwrap_or_else(|error| (Vec::new(), Some(error)));
            if let Some(error) = shared {
                failed.extend(sent.iter().map(|index| (chunk[*index].0, error.clone())));
            }
            for (index, code) in refused {
                let key = chunk[sent[index]].0;
                failed.remove(&key);
                if code == error::DUPLICATE_KEY && attempt < UPSERT_ATTEMPTS {
                    left.push(sent[index]);
                } else {
                    failed.insert(key, error::of_item(code));
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
        collection: CollectionOf,
        statements: impl ExactSizeIterator<Item = &RawDocumentBuf> + Clone,
    ) -> Result<Refusals> {
        let count = statements.len();
        let update = |permit: &Permit| update(collection(permit), statements.clone(), false);
        let reply = self.run_write(update).await?;
        let unexpected = || error::unexpected_reply(Effect::Write);
        let mut refused = Vec::new();
        for failure in reply.get_array("writeErrors").into_iter().flatten() {
            let failure = failure.as_document().ok_or_else(unexpected)?;
            let index = failure.get_i32("index").ok().and_then(|index| usize::try_from(index).ok());
            let index = index.filter(|index| *index < count).ok_or_else(unexpected)?;
            refused.push((index, failure.get_i32("code").map_err(|_| unexpected())?));
        }
        Ok((refused, error::of_write_concern(&reply)))
    }
}
