//! Credentials: strings of JSON.

use std::collections::HashSet;

use futures_core::Stream;
use redis::{Cmd, Value, cmd};

use super::{
    Redis, error,
    keys::{Keys, Part},
    layout::Space,
    many::{self, in_chunks},
    reply,
    server::Call,
};
use crate::{
    BatchReport, Credential, CredentialStore, Error, Found, Key, Result,
    backend::remote::Effect,
    codec::{decode_credential, encode_credential},
    error::Kind,
    model::ListOptions,
};

impl Redis {
    fn credential(&self, id: &Key) -> String {
        self.layout.name(Space::Credential, id)
    }

    /// One MGET, or in a cluster, where MGET is limited to one slot, pipelines of GET.
    pub(super) async fn get_chunk(&self, call: &Call<'_>, ids: &[Key]) -> Vec<Result<Credential>> {
        let replies = if call.takes_many_keys() {
            self.get_at_once(call, ids).await
        } else {
            call.send_all(Effect::Read, ids.iter().map(|id| self.get(id)).collect()).await
        };
        ids.iter()
            .zip(replies)
            .map(|(id, reply)| {
                let text = reply.map_err(|error| error.with_key(id)).and_then(reply::bytes)?;
                read(id, text)
            })
            .collect()
    }

    async fn get_at_once(&self, call: &Call<'_>, ids: &[Key]) -> Vec<Result<Value>> {
        let mut mget = cmd("MGET");
        for id in ids {
            mget.arg(self.credential(id));
        }
        let replies = match call.send(Effect::Read, &mget).await.and_then(reply::list) {
            Ok(replies) if replies.len() == ids.len() => replies,
            Ok(_) => return vec![Err(error::unexpected_reply(Effect::Read)); ids.len()],
            Err(error) => return vec![Err(error); ids.len()],
        };
        // MGET replies nil for a key of another type, too. GET reports WRONGTYPE.
        let nils = ids.iter().zip(&replies).filter(|(_, reply)| **reply == Value::Nil);
        let gets = nils.map(|(id, _)| self.get(id)).collect();
        let mut checked = call.send_all(Effect::Read, gets).await.into_iter();
        replies
            .into_iter()
            .map(|reply| match reply {
                Value::Nil => checked.next().unwrap_or(Ok(Value::Nil)),
                found => Ok(found),
            })
            .collect()
    }

    /// One MSET, or in a cluster pipelines of SET.
    async fn set_chunk(&self, call: &Call<'_>, items: &[(&Key, Vec<u8>)]) -> Vec<Result<()>> {
        if !call.takes_many_keys() {
            let sets = items.iter().map(|(id, text)| self.set(id, text)).collect();
            let replies = call.send_all(Effect::Write, sets).await.into_iter();
            return replies.map(|reply| reply.and_then(reply::done)).collect();
        }
        let mut mset = cmd("MSET");
        for (id, text) in items {
            mset.arg(self.credential(id)).arg(text);
        }
        vec![call.send(Effect::Write, &mset).await.and_then(reply::done); items.len()]
    }

    /// One pipeline: a single UNLINK of all ids would only return how many existed, not which.
    async fn delete_chunk(&self, call: &Call<'_>, ids: &[&Key]) -> Vec<Result<()>> {
        let replies = call.send_all(Effect::Write, ids.iter().map(|id| self.unlink(id)).collect()).await;
        ids.iter().zip(replies).map(|(id, reply)| reply::deleted(Kind::Credential, id, reply?)).collect()
    }

    fn get(&self, id: &Key) -> Cmd {
        cmd("GET").arg(self.credential(id)).take()
    }

    pub(super) fn set(&self, id: &Key, text: &[u8]) -> Cmd {
        cmd("SET").arg(self.credential(id)).arg(text).take()
    }

    fn unlink(&self, id: &Key) -> Cmd {
        cmd("UNLINK").arg(self.credential(id)).take()
    }
}

fn read(id: &Key, text: Option<Vec<u8>>) -> Result<Credential> {
    let text = text.ok_or_else(|| Error::not_found(Kind::Credential, id))?;
    decode_credential(&text).map_err(|error| error.with_key(id))
}

impl CredentialStore for Redis {
    async fn get_credential(&self, id: &Key) -> Result<Credential> {
        let reply =
            self.call()?.send(Effect::Read, &self.get(id)).await.map_err(|error| error.with_key(id))?;
        read(id, reply::bytes(reply)?)
    }

    async fn set_credential(&self, id: &Key, credential: &Credential) -> Result<()> {
        let set = self.set(id, &encode_credential(credential));
        reply::done(self.call()?.send(Effect::Write, &set).await?)
    }

    async fn delete_credential(&self, id: &Key) -> Result<()> {
        reply::deleted(Kind::Credential, id, self.call()?.send(Effect::Write, &self.unlink(id)).await?)
    }

    async fn list_credentials(&self) -> Result<Vec<Key>> {
        self.scan(&self.call()?, Space::Credential).await
    }

    async fn get_credentials(&self, ids: &[Key]) -> Result<Found<Credential>> {
        let (call, distinct) = (self.call()?, many::distinct(ids));
        let results = in_chunks(&distinct, |_| 0, |chunk| self.get_chunk(&call, chunk)).await;
        many::found(ids, &distinct, results)
    }

    async fn set_credentials(&self, credentials: &[(Key, Credential)]) -> Result<BatchReport> {
        let call = self.call()?;
        let items = many::last(credentials).into_iter().map(|(id, item)| (id, encode_credential(item)));
        let items: Vec<_> = items.collect();
        let results = in_chunks(&items, |(_, text)| text.len(), |chunk| self.set_chunk(&call, chunk)).await;
        many::report(credentials.iter().map(|(id, _)| id), items.iter().map(|(id, _)| *id).zip(results))
    }

    async fn delete_credentials(&self, ids: &[Key]) -> Result<BatchReport> {
        let call = self.call()?;
        let distinct: Vec<&Key> = ids.iter().collect::<HashSet<_>>().into_iter().collect();
        let results = in_chunks(&distinct, |_| 0, |chunk| self.delete_chunk(&call, chunk)).await;
        many::report(ids.iter(), distinct.iter().copied().zip(results))
    }

    /// Each list of ids is a scan of the whole database. See [`Redis`].
    fn stream_credentials(
        &self,
        options: ListOptions,
    ) -> impl Stream<Item = Result<(Key, Credential)>> + Send {
        let keys = Keys::new(self, Part::Credentials, options);
        keys.stream(|redis, ids| async move { redis.get_credentials(&ids).await })
    }
}
