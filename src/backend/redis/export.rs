//! Export and import. Except for the keys of config values, memory is bounded.

use futures_core::Stream;
use futures_util::{StreamExt, TryStreamExt, stream};
use redis::{Cmd, Value, cmd};

use super::{Redis, config, layout::Space, reply, server::Call, wide};
use crate::{
    BatchReport, ErrorKind, Exportable, Key, Record, Result,
    backend::remote::{Effect, batch, pages::until_error},
    codec::{decode_key, encode_config, encode_credential},
};

/// How many records are read at a time.
const PAGE: usize = 100;

/// How many keys are held in memory at a time.
const MAX_KEYS: usize = 200_000;

/// Where the list of keys continues.
enum Next {
    After(Option<Key>),
    End,
}

#[derive(Clone, Copy)]
pub(super) enum Part {
    Credentials,
    Configs,
    Usage,
}

impl Redis {
    /// The next keys, and where the list continues after them.
    async fn keys(&self, part: Part, next: Next) -> Result<Option<(Vec<Key>, Next)>> {
        let Next::After(after) = next else { return Ok(None) };
        let call = self.long_call()?;
        let space = match part {
            Part::Credentials => Space::Credential,
            Part::Usage => Space::Usage,
            // Only HKEYS returns fields without their values, and it returns all of them.
            Part::Configs => return Ok(Some((self.config_keys(&call).await?, Next::End))),
        };
        let keys = self.scan_after(&call, space, after.as_ref(), MAX_KEYS).await?;
        let next = if keys.len() == MAX_KEYS { Next::After(keys.last().cloned()) } else { Next::End };
        Ok(Some((keys, next)))
    }

    async fn config_keys(&self, call: &Call<'_>) -> Result<Vec<Key>> {
        let names = call.send_wide(Effect::Read, cmd("HKEYS").arg(self.layout.config())).await?;
        let mut keys = reply::list(names)?
            .into_iter()
            .map(|name| decode_key(&reply::bytes(name)?.unwrap_or_default()))
            .collect::<Result<Vec<Key>>>()?;
        keys.sort_unstable();
        Ok(keys)
    }

    /// The records of these keys, without those that have been deleted since they were listed.
    async fn page(&self, part: Part, keys: &[Key]) -> Result<Vec<Record>> {
        let call = self.call()?;
        let mut records = Vec::with_capacity(keys.len());
        match part {
            Part::Credentials => {
                for (id, found) in keys.iter().zip(self.get_chunk(&call, keys).await) {
                    match found {
                        Ok(credential) => records.push(Record::Credential { id: id.clone(), credential }),
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            Part::Configs => {
                for (key, text) in keys.iter().zip(self.config_texts(&call, keys).await?) {
                    if let Some(text) = text {
                        let value = config::read(key, &text)?;
                        records.push(Record::Config { key: key.clone(), value });
                    }
                }
            }
            Part::Usage => {
                for (key, record) in keys.iter().zip(self.usage_chunk(&call, keys).await) {
                    for (field, count) in record?.unwrap_or_default() {
                        records.push(Record::Usage { key: key.clone(), field, count });
                    }
                }
            }
        }
        Ok(records)
    }

    fn part(self, part: Part) -> impl Stream<Item = Result<Record>> + Send {
        let lister = self.clone();
        stream::try_unfold(Next::After(None), move |next| {
            let lister = lister.clone();
            async move { lister.keys(part, next).await }
        })
        .map_ok(move |keys| {
            let reader = self.clone();
            let pages: Vec<Vec<Key>> = keys.chunks(PAGE).map(<[Key]>::to_vec).collect();
            stream::iter(pages)
                .then(move |keys| {
                    let reader = reader.clone();
                    async move { reader.page(part, &keys).await }
                })
                .map_ok(|records| stream::iter(records).map(Ok))
                .try_flatten()
        })
        .try_flatten()
    }

    fn set_record(&self, record: &Record) -> Cmd {
        match record {
            Record::Credential { id, credential } => self.set(id, &encode_credential(credential)),
            Record::Config { key, value } => {
                cmd("HSET").arg(self.layout.config()).arg(key.as_str()).arg(encode_config(value)).take()
            }
            Record::Usage { key, field, count } => {
                let name = self.layout.name(Space::Usage, key);
                cmd("HSET").arg(name).arg(field.as_str()).arg(*count).take()
            }
        }
    }
}

impl Exportable for Redis {
    /// Not a snapshot. Holds 200,000 keys of credentials or usage records, or the keys of all config values,
    /// and the values of 100 keys: at most 100 MiB. SCAN has no order, so each further 200,000 keys need
    /// another scan of the whole database.
    fn export(&self) -> impl Stream<Item = Result<Record>> + Send {
        let redis = self.clone();
        let parts = stream::iter([Part::Credentials, Part::Configs, Part::Usage]);
        until_error(parts.flat_map(move |part| redis.clone().part(part)))
    }

    /// One pipeline per chunk, one after another: of several records with the same key the last one is kept.
    async fn import(&self, records: &[Record]) -> Result<BatchReport> {
        let call = self.call()?;
        let commands: Vec<Cmd> = records.iter().map(|record| self.set_record(record)).collect();
        let mut report = BatchReport::default();
        for range in batch::chunks(&commands, wide::length) {
            let replies = call.send_all(Effect::Write, commands[range.clone()].to_vec()).await;
            let results = replies.into_iter().map(|reply| reply.and_then(stored));
            for (index, result) in range.zip(results) {
                report.record(index, records[index].key(), result);
            }
        }
        batch::settle(report)
    }
}

/// SET replies OK, HSET the number of new fields.
fn stored(reply: Value) -> Result<()> {
    match reply {
        Value::Int(_) => Ok(()),
        other => reply::done(other),
    }
}
