//! Credentials, one document each.

use std::collections::{BTreeMap, BTreeSet};

use futures_core::Stream;
use mongodb::bson::doc;

use super::{
    CONCURRENT_CHUNKS, MongoDb,
    command::{CollectionOf, FindOneAnd, any_of, by_id, delete, find_one, find_one_and, set_documents},
    commit::commit,
    document, error, parts,
    pool::Permit,
    scan::{collect, get_documents},
    server::Call,
};
use crate::{
    BatchReport, Credential, CredentialStore, Error, Found, Key, Result,
    backend::remote::{Effect, batch, keyed, listing},
    error::Kind,
    model::ListOptions,
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
        let of = (Kind::Credential, (|pool| &pool.credentials) as CollectionOf);
        get_documents(&self.call()?, of, ids, document::credential).await
    }

    async fn set_credentials(&self, credentials: &[(Key, Credential)]) -> Result<BatchReport> {
        let call = self.call()?;
        let last: BTreeMap<&Key, &Credential> = credentials.iter().map(|(id, fields)| (id, fields)).collect();
        let body = document::from_credential;
        let failed = set_documents(&call, |pool| &pool.credentials, last, body).await;
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

    fn stream_credentials(
        &self,
        options: ListOptions,
    ) -> impl Stream<Item = Result<(Key, Credential)>> + Send {
        let page = |range, most| self.page(|pool| &pool.credentials, range, most, document::credential);
        listing::list(options, page)
    }
}

async fn delete_one(call: &Call<'_>, id: &Key) -> Result<()> {
    delete(call, |pool| &pool.credentials, Kind::Credential, id).await
}

/// Deletes the credentials of a chunk, and returns the failures.
async fn delete_chunk<'k>(call: &Call<'_>, chunk: &[&'k Key]) -> BTreeMap<&'k Key, Error> {
    let one = |id: &&'k Key| {
        let id = *id;
        async move { delete_one(call, id).await.map(|()| BTreeSet::from([id.clone()])) }
    };
    let parts = parts::run(call, chunk, |_| false, one, |part| delete_part(call, part)).await;
    parts.iter().flat_map(|(part, deleted)| keyed::not_deleted(part, deleted)).collect()
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
