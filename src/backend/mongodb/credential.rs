//! Credentials: a collection of documents.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};
use mongodb::{
    Collection,
    bson::{Document, RawDocument, RawDocumentBuf, doc},
};
use tokio::time::{Instant, timeout_at};

use super::{
    CONCURRENT_CHUNKS, MongoDb,
    command::{all_failed, any_of, upsert},
    document, failure,
    pool::{Lane, Lease},
    scan::collect,
    server::{Call, no_reply},
    session::Session,
    topology::Writable,
    transaction::{Pauses, commit, of_statement},
};
use crate::{
    BatchFailure, BatchReport, Credential, CredentialStore, Error, ErrorKind, Found, Key, Result,
    backend::remote::{Effect, batch},
    error::Kind,
};

/// Keys are small: all of them in few replies.
const KEYS_A_REPLY: u32 = 100_000;

pub(super) fn missing() -> Error {
    Error::not_found(Kind::Credential)
}

/// Stores documents under different keys, and says which failed.
pub(super) async fn set_documents<'k>(
    call: &Call<'_>,
    collection: fn(&Lane) -> &Collection<RawDocumentBuf>,
    documents: Vec<(&'k Key, RawDocumentBuf)>,
) -> BTreeMap<&'k Key, Error> {
    let statements: Vec<_> = documents.into_iter().map(|(key, body)| (key, upsert(key, body))).collect();
    let chunks = batch::run(
        &statements,
        |(_, statement)| statement.as_bytes().len(),
        CONCURRENT_CHUNKS,
        |chunk| async move {
            let lane = call.lease().await?;
            let sent: Vec<_> = chunk.iter().map(|(_, statement)| statement).collect();
            call.upsert_many(&lane, collection(&lane), &sent).await
        },
    );
    let mut failed = BTreeMap::new();
    for (chunk, result) in chunks.await {
        match result {
            Ok(codes) => {
                failed.extend(codes.into_iter().map(|(at, code)| (chunk[at].0, failure::of_code(code))));
            }
            Err(error) => failed.extend(all_failed(chunk.iter().map(|(key, _)| *key), &error)),
        }
    }
    failed
}

/// Each id once, in order.
fn distinct(ids: &[Key]) -> Vec<&Key> {
    ids.iter().collect::<BTreeSet<_>>().into_iter().collect()
}

impl CredentialStore for MongoDb {
    async fn get_credential(&self, id: &Key) -> Result<Credential> {
        let call = self.call()?;
        let lane = call.lease().await?;
        let found = call.ask(Effect::Read, lane.credentials.find_one(doc! { "_id": id.as_str() })).await?;
        document::credential(id, &found.ok_or_else(missing)?)
    }

    async fn set_credential(&self, id: &Key, credential: &Credential) -> Result<()> {
        let body = document::of_credential(credential);
        let call = self.call()?;
        let lane = call.lease().await?;
        let set = || lane.credentials.replace_one(doc! { "_id": id.as_str() }, &body).upsert(true);
        call.upsert(set).await.map(drop)
    }

    async fn delete_credential(&self, id: &Key) -> Result<()> {
        delete(&self.call()?, id).await
    }

    async fn list_credentials(&self) -> Result<Vec<Key>> {
        let call = self.call()?;
        let lane = call.lease().await?;
        let find = lane.credentials.find(doc! {}).projection(doc! { "_id": 1 }).sort(doc! { "_id": 1 });
        call.ask(Effect::Read, std::pin::pin!(collect(&lane, find.batch_size(KEYS_A_REPLY), document::key)))
            .await?
    }

    async fn get_credentials(&self, ids: &[Key]) -> Result<Found> {
        let (call, distinct) = (self.call()?, distinct(ids));
        let chunks = batch::run(
            &distinct,
            |_| 0,
            CONCURRENT_CHUNKS,
            |chunk| {
                let call = &call;
                async move {
                    let lane = call.lease().await?;
                    let find = lane.credentials.find(any_of(chunk.iter().copied()));
                    let read = |document: &RawDocument| {
                        let id = document::key(document)?;
                        let credential = document::credential(&id, document);
                        Ok((id, credential))
                    };
                    let most = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
                    let found = std::pin::pin!(collect(&lane, find.batch_size(most), read));
                    call.ask(Effect::Read, found).await?
                }
            },
        );
        let mut results: BTreeMap<Key, Result<Credential>> = BTreeMap::new();
        for (chunk, result) in chunks.await {
            match result {
                Ok(found) => results.extend(found),
                Err(error) => results.extend(chunk.iter().map(|id| ((*id).clone(), Err(error.clone())))),
            }
        }
        let mut failures = Vec::new();
        for (index, id) in ids.iter().enumerate() {
            let error = match results.get(id) {
                Some(Ok(_)) => continue,
                Some(Err(error)) => error.clone(),
                None => missing(),
            };
            failures.push(BatchFailure { index, key: id.clone(), error });
        }
        let credentials = results.into_iter().filter_map(|(id, result)| Some((id, result.ok()?))).collect();
        Ok(Found { credentials, failures })
    }

    async fn set_credentials(&self, credentials: &[(Key, Credential)]) -> Result<BatchReport> {
        let call = self.call()?;
        let last: BTreeMap<&Key, &Credential> = credentials.iter().map(|(id, fields)| (id, fields)).collect();
        let documents =
            last.into_iter().map(|(id, credential)| (id, document::of_credential(credential))).collect();
        let failed = set_documents(&call, |lane| &lane.credentials, documents).await;
        Ok(batch::report(credentials.iter().map(|(id, _)| id), &failed))
    }

    /// The server says how many documents it deleted, not which. So a chunk is a transaction, which looks them up first; on a
    /// standalone server, which has none, each is deleted by a command of its own.
    async fn delete_credentials(&self, ids: &[Key]) -> Result<BatchReport> {
        let (call, distinct) = (self.call()?, distinct(ids));
        let (lane, call) = (self.server.lane()?, &call);
        if lane.topology.writable() == Writable::Standalone {
            // A loop, since a closure over the ids is not general enough to be spawned.
            let mut deletes = Vec::with_capacity(distinct.len());
            for id in &distinct {
                deletes.push(delete(call, id));
            }
            let results: Vec<Result<()>> = stream::iter(deletes).buffered(CONCURRENT_CHUNKS).collect().await;
            let results = distinct.iter().copied().zip(results);
            let failed = results.filter_map(|(id, result)| Some((id, result.err()?))).collect();
            return Ok(batch::report(ids.iter(), &failed));
        }
        let chunks = batch::run(&distinct, |_| 0, CONCURRENT_CHUNKS, |chunk| delete_chunk(call, chunk));
        let mut failed = BTreeMap::new();
        for (chunk, result) in chunks.await {
            match result {
                Ok(deleted) => failed
                    .extend(chunk.iter().filter(|id| !deleted.contains(**id)).map(|id| (*id, missing()))),
                Err(error) => failed.extend(all_failed(chunk.iter().copied(), &error)),
            }
        }
        Ok(batch::report(ids.iter(), &failed))
    }
}

async fn delete(call: &Call<'_>, id: &Key) -> Result<()> {
    let lane = call.lease().await?;
    let delete = lane.credentials.delete_one(doc! { "_id": id.as_str() });
    match call.ask(Effect::Write, delete).await?.deleted_count {
        0 => Err(missing()),
        _ => Ok(()),
    }
}

/// Deletes what is there of a chunk, and says what it was. Tried again when another one comes between.
async fn delete_chunk(call: &Call<'_>, chunk: &[&Key]) -> Result<BTreeSet<Key>> {
    let (ids, mut pauses) = (any_of(chunk.iter().copied()), Pauses::until(call.deadline()));
    loop {
        let lease = call.lease().await?;
        let session = Session::begin(call, &lease).await?;
        let attempt = tokio::spawn(delete_in(lease, session, ids.clone(), call.deadline()));
        match timeout_at(call.deadline(), attempt).await {
            Ok(Ok(Err(error))) if error.kind() == ErrorKind::Conflict && pauses.pause().await => {}
            Ok(Ok(result)) => return result,
            Ok(Err(_)) => {
                let panicked = Error::new(ErrorKind::Internal, "a batch of deletes panicked");
                return Err(panicked.with_outcome(Effect::Write.when_lost()));
            }
            Err(_) => return Err(no_reply(Effect::Write)),
        }
    }
}

async fn delete_in(
    lane: Lease,
    mut session: Session,
    ids: Document,
    deadline: Instant,
) -> Result<BTreeSet<Key>> {
    let work = async {
        let find = lane.credentials.find(ids).projection(doc! { "_id": 1 }).batch_size(KEYS_A_REPLY);
        let mut found = find.session(session.driver()).await?;
        let mut there = BTreeSet::new();
        while found.advance(session.driver()).await? {
            match document::key(found.current()) {
                Ok(id) => there.insert(id),
                Err(error) => return Ok(Err(error)),
            };
        }
        if !there.is_empty() {
            lane.credentials.delete_many(any_of(there.iter())).session(session.driver()).await?;
        }
        Ok(Ok(there))
    };
    let there = work.await.map_err(|error| of_statement(&error))??;
    if !there.is_empty() {
        commit(session, deadline).await?;
    }
    Ok(there)
}
