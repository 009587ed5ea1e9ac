//! Credentials: strings of JSON.

use std::collections::{BTreeMap, BTreeSet};

use redis::{Cmd, cmd};

use super::{
    Redis, batch,
    layout::Space,
    reply,
    server::{Call, Effect},
};
use crate::{
    BatchFailure, BatchReport, Credential, CredentialStore, Error, Found, Key, Result,
    codec::{decode_credential, encode_credential},
    error::Kind,
};

fn missing() -> Error {
    Error::not_found(Kind::Credential)
}

impl Redis {
    fn credential(&self, id: &Key) -> String {
        self.layout.name(Space::Credential, id)
    }

    /// One MGET; in a cluster, whose servers take keys of one slot, pipelines of GET.
    pub(super) async fn get_chunk(&self, call: &Call<'_>, ids: &[Key]) -> Vec<(Key, Result<Credential>)> {
        let replies = if call.takes_many_keys() {
            let mut mget = cmd("MGET");
            for id in ids {
                mget.arg(self.credential(id));
            }
            match call.send(Effect::Read, &mget).await.and_then(reply::list) {
                Ok(replies) => replies.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error); ids.len()],
            }
        } else {
            call.send_all(Effect::Read, ids.iter().map(|id| self.get(id)).collect()).await
        };
        ids.iter()
            .zip(replies)
            .map(|(id, reply)| {
                let found = reply.and_then(reply::bytes).and_then(|found| found.ok_or_else(missing));
                (id.clone(), found.and_then(|text| read(id, &text)))
            })
            .collect()
    }

    /// One MSET; in a cluster pipelines of SET.
    async fn set_chunk(&self, call: &Call<'_>, items: &[(&Key, Vec<u8>)]) -> Vec<(Key, Result<()>)> {
        let results = if call.takes_many_keys() {
            let mut mset = cmd("MSET");
            for (id, text) in items {
                mset.arg(self.credential(id)).arg(text);
            }
            vec![call.send(Effect::Write, &mset).await; items.len()]
        } else {
            call.send_all(Effect::Write, items.iter().map(|(id, text)| self.set(id, text)).collect()).await
        };
        items
            .iter()
            .zip(results)
            .map(|((id, _), reply)| ((*id).clone(), reply.and_then(reply::done)))
            .collect()
    }

    /// One pipeline: a single UNLINK of all would only tell how many were there, not which.
    async fn delete_chunk(&self, call: &Call<'_>, ids: &[&Key]) -> Vec<(Key, Result<()>)> {
        let replies = call.send_all(Effect::Write, ids.iter().map(|id| self.unlink(id)).collect()).await;
        ids.iter().zip(replies).map(|(id, reply)| ((*id).clone(), reply.and_then(deleted))).collect()
    }

    fn get(&self, id: &Key) -> Cmd {
        let mut get = cmd("GET");
        get.arg(self.credential(id));
        get
    }

    pub(super) fn set(&self, id: &Key, text: &[u8]) -> Cmd {
        let mut set = cmd("SET");
        set.arg(self.credential(id)).arg(text);
        set
    }

    fn unlink(&self, id: &Key) -> Cmd {
        let mut unlink = cmd("UNLINK");
        unlink.arg(self.credential(id));
        unlink
    }
}

fn read(id: &Key, text: &[u8]) -> Result<Credential> {
    decode_credential(text).map_err(|error| error.with_key(id))
}

fn deleted(reply: redis::Value) -> Result<()> {
    if reply::number(reply)? == 0 { Err(missing()) } else { Ok(()) }
}

impl CredentialStore for Redis {
    async fn get_credential(&self, id: &Key) -> Result<Credential> {
        let reply =
            self.call()?.send(Effect::Read, &self.get(id)).await.map_err(|error| error.with_key(id))?;
        read(id, &reply::bytes(reply)?.ok_or_else(missing)?)
    }

    async fn set_credential(&self, id: &Key, credential: &Credential) -> Result<()> {
        let set = self.set(id, &encode_credential(credential));
        reply::done(self.call()?.send(Effect::Write, &set).await?)
    }

    async fn delete_credential(&self, id: &Key) -> Result<()> {
        deleted(self.call()?.send(Effect::Write, &self.unlink(id)).await?)
    }

    async fn list_credentials(&self) -> Result<Vec<Key>> {
        self.scan(&self.call()?, Space::Credential).await
    }

    async fn get_credentials(&self, ids: &[Key]) -> Result<Found> {
        let call = self.call()?;
        let unique: Vec<Key> = ids.iter().collect::<BTreeSet<_>>().into_iter().cloned().collect();
        let results = batch::run(&unique, |_| 0, |chunk| self.get_chunk(&call, chunk)).await;
        let mut found = Found::default();
        for (index, id) in ids.iter().enumerate() {
            if let Err(error) = &results[id] {
                found.failures.push(BatchFailure { index, key: id.clone(), error: error.clone() });
            }
        }
        found.credentials = results.into_iter().filter_map(|(id, result)| Some((id, result.ok()?))).collect();
        Ok(found)
    }

    async fn set_credentials(&self, credentials: &[(Key, Credential)]) -> Result<BatchReport> {
        let call = self.call()?;
        let last: BTreeMap<&Key, &Credential> = credentials.iter().map(|(id, item)| (id, item)).collect();
        let items: Vec<_> = last.into_iter().map(|(id, item)| (id, encode_credential(item))).collect();
        let results = batch::run(&items, |(_, text)| text.len(), |chunk| self.set_chunk(&call, chunk)).await;
        Ok(batch::report(credentials.iter().map(|(id, _)| id), &results))
    }

    async fn delete_credentials(&self, ids: &[Key]) -> Result<BatchReport> {
        let call = self.call()?;
        let unique: Vec<&Key> = ids.iter().collect::<BTreeSet<_>>().into_iter().collect();
        let results = batch::run(&unique, |_| 0, |chunk| self.delete_chunk(&call, chunk)).await;
        Ok(batch::report(ids.iter(), &results))
    }
}
