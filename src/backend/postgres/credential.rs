//! Credentials: a table of JSON.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    CONCURRENT_CHUNKS, Postgres,
    server::Call,
    statement::{Json, Parameter, Sql, column, key},
};
use crate::{
    BatchReport, Credential, CredentialStore, Error, Found, Key, Result,
    backend::remote::{Effect, batch},
    codec::{decode_credential, encode_credential},
    error::Kind,
};

pub(super) fn read(id: &Key, row: &tokio_postgres::Row, at: usize) -> Result<Credential> {
    let Json(text) = column(row, at)?;
    decode_credential(text).map_err(|error| error.with_key(id))
}

/// Stores documents under distinct keys, given in order. Returns the error of each that failed.
pub(super) async fn set_documents<'k>(
    call: &Call<'_>,
    statement: Sql,
    documents: &[(&'k Key, Vec<u8>)],
) -> BTreeMap<&'k Key, Error> {
    let chunks = batch::run(
        documents,
        |(key, text)| key.as_str().len() + text.len(),
        CONCURRENT_CHUNKS,
        |chunk| async move {
            let names = chunk.iter().map(|(key, _)| key.as_str()).collect();
            let texts = chunk.iter().map(|(_, text)| Json(text)).collect();
            call.run(Effect::Write, statement, &[Parameter::Texts(names), Parameter::Jsons(texts)]).await
        },
    );
    let failed =
        chunks.await.into_iter().filter_map(|(chunk, result)| result.err().map(|error| (chunk, error)));
    failed.flat_map(|(chunk, error)| chunk.iter().map(move |(key, _)| (*key, error.clone()))).collect()
}

/// Each id once, in order.
fn distinct(ids: &[Key]) -> Vec<&Key> {
    ids.iter().collect::<BTreeSet<_>>().into_iter().collect()
}

fn names<'k>(ids: &[&'k Key]) -> Parameter<'k> {
    Parameter::Texts(ids.iter().map(|id| id.as_str()).collect())
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
        match self.call()?.run(Effect::Write, Sql::DeleteCredential, &name).await?.count {
            0 => Err(Error::not_found(Kind::Credential, id)),
            _ => Ok(()),
        }
    }

    async fn list_credentials(&self) -> Result<Vec<Key>> {
        let reply = self.call()?.run(Effect::Read, Sql::ListCredentials, &[]).await?;
        reply.rows.iter().map(|row| key(row, 0)).collect()
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
                    let reply = call.run(Effect::Read, Sql::GetCredentials, &[names(chunk)]).await?;
                    let read = |row| {
                        let id = key(row, 0)?;
                        let credential = read(&id, row, 1);
                        Ok((id, credential))
                    };
                    reply.rows.iter().map(read).collect::<Result<Vec<(Key, Result<Credential>)>>>()
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
        batch::found(ids, results)
    }

    async fn set_credentials(&self, credentials: &[(Key, Credential)]) -> Result<BatchReport> {
        let call = self.call()?;
        let last: BTreeMap<&Key, &Credential> = credentials.iter().map(|(id, fields)| (id, fields)).collect();
        let documents: Vec<_> =
            last.into_iter().map(|(id, credential)| (id, encode_credential(credential))).collect();
        let failed = set_documents(&call, Sql::SetCredentials, &documents).await;
        batch::report(credentials.iter().map(|(id, _)| id), &failed)
    }

    async fn delete_credentials(&self, ids: &[Key]) -> Result<BatchReport> {
        let (call, distinct) = (self.call()?, distinct(ids));
        let chunks = batch::run(
            &distinct,
            |_| 0,
            CONCURRENT_CHUNKS,
            |chunk| {
                let call = &call;
                async move {
                    let reply = call.run(Effect::Write, Sql::DeleteCredentials, &[names(chunk)]).await?;
                    reply.rows.iter().map(|row| key(row, 0)).collect::<Result<BTreeSet<Key>>>()
                }
            },
        );
        let mut failed = BTreeMap::new();
        for (chunk, result) in chunks.await {
            for id in chunk {
                match &result {
                    Ok(deleted) if deleted.contains(*id) => {}
                    Ok(_) => drop(failed.insert(*id, Error::not_found(Kind::Credential, id))),
                    Err(error) => drop(failed.insert(*id, error.clone())),
                }
            }
        }
        batch::report(ids.iter(), &failed)
    }
}
