//! Credentials: a table of JSON.

use std::collections::BTreeMap;

use futures_core::Stream;

use super::{
    CONCURRENT_CHUNKS, Postgres,
    server::Call,
    statement::{Json, Parameter, Sql, column, key},
};
use crate::{
    BatchReport, Credential, CredentialStore, Error, Found, Key, Result,
    backend::remote::{Effect, batch, keyed},
    codec::{decode_credential, encode_credential},
    error::Kind,
    model::ListOptions,
};

pub(super) fn read(id: &Key, row: &tokio_postgres::Row, at: usize) -> Result<Credential> {
    let Json(text) = column(row, at)?;
    decode_credential(text).map_err(|error| error.with_key(id))
}

/// Stores values under their keys. Returns the error of each that failed.
pub(super) fn set_documents<'k, V>(
    call: &Call<'_>,
    statement: Sql,
    values: BTreeMap<&'k Key, &V>,
    encode: fn(&V) -> Vec<u8>,
) -> impl Future<Output = BTreeMap<&'k Key, Error>> {
    let documents: Vec<_> = values.into_iter().map(|(key, value)| (key, encode(value))).collect();
    async move {
        let bytes = |(key, text): &(&Key, Vec<u8>)| key.as_str().len() + text.len();
        let chunks = batch::run(&documents, bytes, CONCURRENT_CHUNKS, |chunk| async move {
            let names = chunk.iter().map(|(key, _)| key.as_str()).collect();
            let texts = chunk.iter().map(|(_, text)| Json(text)).collect();
            call.run(Effect::Write, statement, &[Parameter::Texts(names), Parameter::Jsons(texts)]).await
        });
        failures(chunks.await)
    }
}

/// The errors of the items in chunks that failed as a whole.
pub(super) fn failures<'c, K: Copy + Ord + 'c, V: 'c, R>(
    chunks: impl IntoIterator<Item = (&'c [(K, V)], Result<R>)>,
) -> BTreeMap<K, Error> {
    let failed = chunks.into_iter().filter_map(|(chunk, result)| Some((chunk, result.err()?)));
    failed.flat_map(|(chunk, error)| chunk.iter().map(move |(key, _)| (*key, error.clone()))).collect()
}

pub(super) fn names<'k>(ids: &[&'k Key]) -> Parameter<'k> {
    Parameter::Texts(ids.iter().map(|id| id.as_str()).collect())
}

/// Reads documents that a statement finds by their keys.
pub(super) async fn get_documents<V: Clone>(
    call: &Call<'_>,
    (kind, statement): (Kind, Sql),
    keys: &[Key],
    read: fn(&Key, &tokio_postgres::Row, usize) -> Result<V>,
) -> Result<Found<V>> {
    let distinct = keyed::distinct(keys);
    let chunks = batch::run(
        &distinct,
        |_| 0,
        CONCURRENT_CHUNKS,
        |chunk| async move {
            let reply = call.run(Effect::Read, statement, &[names(chunk)]).await?;
            let read = |row| {
                let key = key(row, 0)?;
                let value = read(&key, row, 1);
                Ok((key, value))
            };
            reply.rows.iter().map(read).collect()
        },
    );
    keyed::found(kind, keys, chunks.await)
}

/// Deletes the credentials of a chunk, and returns the failures.
async fn delete_chunk<'k>(call: &Call<'_>, chunk: &[&'k Key]) -> BTreeMap<&'k Key, Error> {
    let reply = call.run(Effect::Write, Sql::DeleteCredentials, &[names(chunk)]).await;
    let deleted = reply.and_then(|reply| reply.rows.iter().map(|row| key(row, 0)).collect());
    keyed::not_deleted(chunk, &deleted).collect()
}

impl CredentialStore for Postgres {
    async fn get_credential(&self, id: &Key) -> Result<Credential> {
        let name = [Parameter::Text(id.as_str())];
        let reply = self.call()?.run(Effect::Read, Sql::GetCredential, &name).await?;
        read(id, reply.rows.first().ok_or_else(|| Error::not_found(Kind::Credential, id))?, 0)
    }

    async fn set_credential(&self, id: &Key, credential: &Credential) -> Result<()> {
        let text = encode_credential(credential);
        let record = [Parameter::Text(id.as_str()), Parameter::Json(&text)];
        self.call()?.run(Effect::Write, Sql::SetCredential, &record).await.map(drop)
    }

    async fn delete_credential(&self, id: &Key) -> Result<()> {
        let name = [Parameter::Text(id.as_str())];
        let deleted = self.call()?.run(Effect::Write, Sql::DeleteCredential, &name).await?;
        Error::unless_found(deleted.count > 0, Kind::Credential, id)
    }

    async fn list_credentials(&self) -> Result<Vec<Key>> {
        let reply = self.call()?.run(Effect::Read, Sql::ListCredentials, &[]).await?;
        reply.rows.iter().map(|row| key(row, 0)).collect()
    }

    async fn get_credentials(&self, ids: &[Key]) -> Result<Found<Credential>> {
        get_documents(&self.call()?, (Kind::Credential, Sql::GetCredentials), ids, read).await
    }

    async fn set_credentials(&self, credentials: &[(Key, Credential)]) -> Result<BatchReport> {
        let call = self.call()?;
        let last: BTreeMap<&Key, &Credential> = credentials.iter().map(|(id, fields)| (id, fields)).collect();
        let failed = set_documents(&call, Sql::SetCredentials, last, encode_credential).await;
        batch::report(credentials.iter().map(|(id, _)| id), &failed)
    }

    async fn delete_credentials(&self, ids: &[Key]) -> Result<BatchReport> {
        let (call, distinct) = (self.call()?, keyed::distinct(ids));
        let chunks = batch::run(&distinct, |_| 0, CONCURRENT_CHUNKS, |chunk| delete_chunk(&call, chunk));
        let failed = chunks.await.into_iter().flat_map(|(_, failed)| failed).collect();
        batch::report(ids.iter(), &failed)
    }

    fn stream_credentials(
        &self,
        options: ListOptions,
    ) -> impl Stream<Item = Result<(Key, Credential)>> + Send {
        self.list(options, Self::page_of_credentials)
    }
}
