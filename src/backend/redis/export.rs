//! Export and import. Except for the keys of config values, memory is bounded.

use futures_core::Stream;
use redis::{Cmd, Value, cmd};

use super::{
    Redis, config,
    keys::{Keys, Part},
    layout::Space,
    reply, wide,
};
use crate::{
    BatchReport, Error, ErrorKind, Exportable, Key, Record, Result,
    backend::remote::{Effect, batch},
    capability::pages,
    codec::{decode_key, encode_config, encode_credential},
    model::ListOptions,
};

pub(super) const NO_KEY: &str = "its name is not 1 to 255 bytes of UTF-8 without control characters";

/// A record that can't be read.
pub(super) struct Unread {
    /// The Redis key, and the field of a hash.
    pub(super) place: String,
    /// Why, if the error does not say it.
    pub(super) reason: Option<&'static str>,
    pub(super) error: Error,
}

/// Where an export continues.
struct Position {
    keys: Keys,
    /// The parts after that of the keys.
    parts: &'static [Part],
    options: ListOptions,
}

impl Position {
    fn first(redis: &Redis, prefix: String) -> Self {
        let options = ListOptions::default().with_prefix(prefix);
        let keys = Keys::new(redis, Part::Credentials, options.clone());
        Self { keys, parts: &[Part::Configs, Part::Usage], options }
    }

    /// The next records, and where the export continues after them.
    async fn read(mut self) -> Result<Option<(Vec<Record>, Self)>> {
        let keys = loop {
            let keys = self.keys.next().await?;
            if !keys.is_empty() {
                break keys;
            }
            let Some((part, rest)) = self.parts.split_first() else { return Ok(None) };
            self.keys = Keys::new(&self.keys.redis, *part, self.options.clone());
            self.parts = rest;
        };
        let records = self.keys.redis.page(self.keys.part, &keys).await?.into_iter();
        let records = records.map(|record| record.map_err(|unread| unread.error)).collect::<Result<_>>()?;
        Ok(Some((records, self)))
    }
}

impl Redis {
    /// The records of these keys, without those that have been deleted since they were listed.
    pub(super) async fn page(
        &self,
        part: Part,
        keys: &[Key],
    ) -> Result<Vec<std::result::Result<Record, Unread>>> {
        let call = self.call()?;
        let unread = |place, error| Err(Unread { place, reason: None, error });
        let mut records = Vec::with_capacity(keys.len());
        match part {
            Part::Credentials => {
                for (id, found) in keys.iter().zip(self.get_chunk(&call, keys).await) {
                    match found {
                        Ok(credential) => records.push(Ok(Record::Credential { id: id.clone(), credential })),
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        Err(error) if error.kind() == ErrorKind::Corrupt => {
                            records.push(unread(self.layout.name(Space::Credential, id), error));
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
            Part::Configs => {
                for (key, text) in keys.iter().zip(self.config_texts(&call, keys).await?) {
                    let Some(text) = text else { continue };
                    records.push(match config::read(key, &text) {
                        Ok(value) => Ok(Record::Config { key: key.clone(), value }),
                        Err(error) => unread(of_field(&self.layout.config(), key.as_str().as_bytes()), error),
                    });
                }
            }
            Part::Usage => {
                let commands = keys.iter().map(|key| self.whole_record(key)).collect();
                for (key, reply) in keys.iter().zip(call.send_all(Effect::Read, commands).await) {
                    let name = self.layout.name(Space::Usage, key);
                    match reply.and_then(reply::fields).map_err(|error| error.with_key(key)) {
                        Ok(mut counters) => {
                            counters.sort_unstable();
                            let counters = counters.iter();
                            records.extend(counters.map(|(field, count)| counter(key, &name, field, count)));
                        }
                        Err(error) if error.kind() == ErrorKind::Corrupt => records.push(unread(name, error)),
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(records)
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
        pages(Position::first(self, String::new()), Position::read)
    }

    /// The servers select the keys. Otherwise as `export`.
    fn export_prefix(&self, prefix: String) -> impl Stream<Item = Result<Record>> + Send {
        pages(Position::first(self, prefix), Position::read)
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
        report.settle()
    }
}

/// The record of one counter.
fn counter(key: &Key, name: &str, field: &[u8], count: &[u8]) -> std::result::Result<Record, Unread> {
    let reason = match (decode_key(field), reply::counter(count)) {
        (Ok(field), Some(count)) => return Ok(Record::Usage { key: key.clone(), field, count }),
        (Err(_), _) => NO_KEY,
        (Ok(_), None) => "the counter is not an integer of 64 bits",
    };
    Err(Unread { place: of_field(name, field), reason: Some(reason), error: reply::no_counter(key) })
}

/// How a field of a hash is named.
pub(super) fn of_field(name: &str, field: &[u8]) -> String {
    format!("{name} {}", String::from_utf8_lossy(field))
}

/// SET replies OK, HSET the number of new fields.
fn stored(reply: Value) -> Result<()> {
    match reply {
        Value::Int(_) => Ok(()),
        other => reply::done(other),
    }
}
