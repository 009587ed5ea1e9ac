//! Everything out, in bounded memory but for the names of config values, and records in.

use std::future;

use futures_core::Stream;
use futures_util::{StreamExt, TryStreamExt, stream};
use redis::{Arg, Cmd, Value, cmd};

use super::{Redis, config, layout, layout::Space, reply, server::Call};
use crate::{
    BatchReport, ErrorKind, Exportable, Key, Record, Result,
    backend::remote::{Effect, batch},
    codec::{encode_config, encode_credential},
};

/// How many records are read at a time.
const PAGE: usize = 100;

/// How many keys are held at a time.
const HELD: usize = 200_000;

/// Where a list of keys goes on.
enum Next {
    After(Option<Key>),
    Nothing,
}

#[derive(Clone, Copy)]
enum Part {
    Credentials,
    Configs,
    Usage,
}

impl Redis {
    /// The next keys, and where those behind them begin.
    async fn keys(&self, part: Part, next: Next) -> Result<Option<(Vec<Key>, Next)>> {
        let Next::After(after) = next else { return Ok(None) };
        let call = self.long_call()?;
        let space = match part {
            Part::Credentials => Space::Credential,
            Part::Usage => Space::Usage,
            // A hash gives its names all at once, or with its values.
            Part::Configs => return Ok(Some((self.config_keys(&call).await?, Next::Nothing))),
        };
        let keys = self.scan_after(&call, space, after.as_ref(), HELD).await?;
        let next = if keys.len() == HELD { Next::After(keys.last().cloned()) } else { Next::Nothing };
        Ok(Some((keys, next)))
    }

    async fn config_keys(&self, call: &Call<'_>) -> Result<Vec<Key>> {
        let mut names = cmd("HKEYS");
        names.arg(self.layout.config());
        let mut keys = reply::list(call.send(Effect::Read, &names).await?)?
            .into_iter()
            .map(|name| layout::parse_key(&reply::bytes(name)?.unwrap_or_default()))
            .collect::<Result<Vec<Key>>>()?;
        keys.sort_unstable();
        Ok(keys)
    }

    /// The records of some keys. Those that are gone meanwhile are left out.
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
                let mut values = cmd("HMGET");
                values.arg(self.layout.config());
                for key in keys {
                    values.arg(key.as_str());
                }
                let replies = reply::list(call.send(Effect::Read, &values).await?)?;
                for (key, reply) in keys.iter().zip(replies) {
                    if let Some(text) = reply::bytes(reply)? {
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

    fn put(&self, record: &Record) -> Cmd {
        match record {
            Record::Credential { id, credential } => self.set(id, &encode_credential(credential)),
            Record::Config { key, value } => {
                let mut set = cmd("HSET");
                set.arg(self.layout.config()).arg(key.as_str()).arg(encode_config(value));
                set
            }
            Record::Usage { key, field, count } => {
                let mut set = cmd("HSET");
                set.arg(self.layout.name(Space::Usage, key)).arg(field.as_str()).arg(*count);
                set
            }
        }
    }
}

impl Exportable for Redis {
    /// Not a snapshot. It holds 200,000 keys, and of credentials and usage records looks through all keys again for the next
    /// 200,000, since a SCAN has no order; the names of all config values; and the values of 100 keys: at most 100 MiB.
    fn export(&self) -> impl Stream<Item = Result<Record>> + Send {
        let redis = self.clone();
        stream::iter([Part::Credentials, Part::Configs, Part::Usage])
            .flat_map(move |part| redis.clone().part(part))
            .scan(false, |failed, record| {
                let ended = std::mem::replace(failed, record.is_err());
                future::ready((!ended).then_some(record))
            })
    }

    /// One pipeline a chunk, one after the other: of several records under one key the last one stays.
    async fn import(&self, records: &[Record]) -> Result<BatchReport> {
        let call = self.call()?;
        let commands: Vec<Cmd> = records.iter().map(|record| self.put(record)).collect();
        let mut report = BatchReport::default();
        for range in batch::chunks(&commands, |command| command.args_iter().map(length).sum()) {
            let replies = call.send_all(Effect::Write, commands[range.clone()].to_vec()).await;
            let results = replies.into_iter().map(|reply| reply.and_then(stored));
            for (index, result) in range.zip(results) {
                report.record(index, records[index].key(), result);
            }
        }
        batch::settle(report)
    }
}

fn length(word: Arg<&[u8]>) -> usize {
    if let Arg::Simple(word) = word { word.len() } else { 0 }
}

/// SET says OK, HSET how many fields are new.
fn stored(reply: Value) -> Result<()> {
    match reply {
        Value::Int(_) => Ok(()),
        other => reply::done(other),
    }
}
