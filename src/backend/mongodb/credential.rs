//! Credentials, one document each.

use std::collections::{BTreeMap, BTreeSet};

use mongodb::bson::{RawDocument, doc};

use super::{
    CONCURRENT_CHUNKS, MongoDb,
    command::{FindOneAnd, any_of, by_id, delete, find_one, find_one_and, upsert, upsert_all},
    commit::commit,
    document, error,
    pool::Permit,
    scan::collect,
    server::Call,
};
use crate::{
    BatchReport, Credential, CredentialStore, Error, ErrorKind, Found, Key, Result,
    backend::remote::{Backoff, Effect, batch, keyed},
    error::Kind,
};

/// Keys are small, so a reply can hold many.
const KEYS_PER_REPLY: u32 = 100_000;

impl CredentialStore for MongoDb {
    async fn get_credential(&self, id: &Key) -> Result<Credential> {
        let found = find_one(&self.call()?, |pool| &pool.credentials, Kind::Credential, id).await?;
        document::credential(id, &found)
    }

    async fn set_credential(&self, id: &Key, credential: &Credential) -> Result<()> {
        let replace = || FindOneAnd::Replace(document::from_credential(credential));
        find_one_and(&self.call()?, |pool| &pool.credentials, &by_id(id), replace).await.map(drop)
    }

    async fn delete_credential(&self, id: &Key) -> Result<()> {
        delete_one(&self.call()?, id).await
    }

    async fn list_credentials(&self) -> Result<Vec<Key>> {
        let call = self.call()?;
        let list = |permit: Permit| async move {
            let find = permit.credentials.find(doc! {}).projection(doc! { "_id": 1 }).sort(doc! { "_id": 1 });
            collect(&permit, find.batch_size(KEYS_PER_REPLY), document::key).await
        };
        call.read(list).await?
    }

    async fn get_credentials(&self, ids: &[Key]) -> Result<Found<Credential>> {
        let (call, distinct) = (self.call()?, keyed::distinct(ids));
        let chunks = batch::run(&distinct, |_| 0, CONCURRENT_CHUNKS, |chunk| get_chunk(&call, chunk));
        keyed::found(Kind::Credential, ids, chunks.await)
    }

    async fn set_credentials(&self, credentials: &[(Key, Credential)]) -> Result<BatchReport> {
        let call = self.call()?;
        let last: BTreeMap<&Key, &Credential> = credentials.iter().map(|(id, fields)| (id, fields)).collect();
        let statements: Vec<_> = last
            .into_iter()
            .map(|(id, credential)| (id, upsert(id, document::from_credential(credential))))
            .collect();
        let failed = upsert_all(&call, |pool| &pool.credentials, &statements, CONCURRENT_CHUNKS).await;
        batch::report(credentials.iter().map(|(id, _)| id), &failed)
    }

    /// The server reports how many documents it deleted, not which. So each chunk is a transaction that looks
    /// them up first. On a standalone server, which has no transactions, each document is a chunk of its own.
    async fn delete_credentials(&self, ids: &[Key]) -> Result<BatchReport> {
        let (call, distinct) = (&self.call()?, keyed::distinct(ids));
        let has_transactions = call.permit().await?.writable.has_transactions();
        let bytes = |_: &&Key| if has_transactions { 0 } else { batch::CHUNK_BYTES };
        let chunks = batch::run(&distinct, bytes, CONCURRENT_CHUNKS, |chunk| delete_chunk(call, chunk));
        let failed = chunks.await.into_iter().flat_map(|(_, failed)| failed).collect();
        batch::report(ids.iter(), &failed)
    }
}

async fn get_chunk(call: &Call<'_>, chunk: &[&Key]) -> keyed::FoundChunk<Credential> {
    let find = |permit: Permit| async move {
        let find = permit.credentials.find(any_of(chunk.iter().copied()));
        let read = |document: &RawDocument| {
            let id = document::key(document)?;
            let credential = document::credential(&id, document);
            Ok((id, credential))
        };
        let most = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        collect(&permit, find.batch_size(most), read).await
    };
    call.read(find).await?
}

async fn delete_one(call: &Call<'_>, id: &Key) -> Result<()> {
    delete(call, |pool| &pool.credentials, Kind::Credential, id).await
}

/// Deletes the credentials of a chunk, and returns the failures. After a conflict it is halved.
async fn delete_chunk<'k>(call: &Call<'_>, chunk: &[&'k Key]) -> BTreeMap<&'k Key, Error> {
    let (mut failed, mut parts) = (BTreeMap::new(), vec![chunk]);
    let mut backoff = Backoff::until(call.deadline);
    while let Some(part) = parts.pop() {
        if let [id] = part {
            failed.extend(delete_one(call, id).await.err().map(|error| (*id, error)));
            continue;
        }
        let deleted = delete_part(call, part).await;
        let is_conflict = deleted.as_ref().is_err_and(|error| error.kind() == ErrorKind::Conflict);
        if is_conflict && backoff.pause().await {
            let (left, right) = part.split_at(part.len() / 2);
            parts.extend([right, left]);
        } else {
            failed.extend(keyed::not_deleted(part, &deleted));
        }
    }
    failed
}

async fn delete_part(call: &Call<'_>, part: &[&Key]) -> Result<BTreeSet<Key>> {
    let permit = call.permit().await?;
    let mut session = call.ask(permit.begin_session()).await?;
    let (ids, deadline) = (any_of(part.iter().copied()), call.deadline);
    let delete = async move {
        let delete = async {
            let find = permit.credentials.find(ids).projection(doc! { "_id": 1 }).batch_size(KEYS_PER_REPLY);
            let mut found = find.session(session.driver()).await?;
            let mut existing = BTreeSet::new();
            while found.advance(session.driver()).await? {
                match document::key(found.current()) {
                    Ok(id) => existing.insert(id),
                    Err(error) => return Ok(Err(error)),
                };
            }
            if !existing.is_empty() {
                permit.credentials.delete_many(any_of(existing.iter())).session(session.driver()).await?;
            }
            Ok(Ok(existing))
        };
        let deleted = delete.await.map_err(|error| error::of_statement(&error))??;
        commit(session, deadline).await?;
        Ok(deleted)
    };
    call.detached(Effect::Write, delete).await?
}
