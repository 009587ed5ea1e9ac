//! Legacy data, read record by record: an unreadable record does not affect the others.

use std::collections::BTreeSet;

use futures_core::Stream;
use futures_util::{StreamExt, TryStreamExt, stream};
use redis::cmd;

use super::{Redis, config, export::Part, layout::Space, reply};
use crate::{
    ErrorKind, Key, Record, Result,
    backend::remote::{Effect, pages::until_error},
    codec::decode_key,
    model::Piece,
};

/// How many records are read at a time.
const PAGE: usize = 100;

const NO_KEY: &str = "its name is not 1 to 255 bytes of UTF-8 without control characters";

/// All keys under the prefix.
#[derive(Default)]
struct Names {
    credentials: BTreeSet<Key>,
    configs: BTreeSet<Key>,
    usage: BTreeSet<Key>,
    others: BTreeSet<Vec<u8>>,
}

/// Keys of one kind whose records are read together.
type Page = (Part, Vec<Key>);

impl Redis {
    /// Every record under the prefix, sorted, and a remark for every other key. Not a snapshot. Holds all
    /// keys, and the values of one page.
    pub(crate) fn legacy(&self) -> impl Stream<Item = Result<Piece>> + Send + 'static {
        let lister = self.clone();
        let reader = self.clone();
        let pieces = stream::once(async move { lister.list().await })
            .map_ok(move |(pages, remarks)| {
                let reader = reader.clone();
                let pages = stream::iter(pages).then(move |page| {
                    let reader = reader.clone();
                    async move { reader.legacy_page(page).await }
                });
                stream::iter([Ok(remarks)])
                    .chain(pages)
                    .map_ok(|pieces| stream::iter(pieces).map(Ok))
                    .try_flatten()
            })
            .try_flatten();
        until_error(pieces)
    }

    async fn list(&self) -> Result<(Vec<Page>, Vec<Piece>)> {
        let call = self.long_call()?;
        let (mut names, mut remarks) = (Names::default(), Vec::new());
        let (layout, config) = (&self.layout, self.layout.config());
        self.scan_names(&call, &layout.pattern(None), |name| {
            let space = layout.space(name);
            match space.map(|space| (space, layout.key(space, name))) {
                Some((Space::Credential, Ok(id))) => drop(names.credentials.insert(id)),
                Some((Space::Usage, Ok(key))) => drop(names.usage.insert(key)),
                _ => drop(names.others.insert(name.to_vec())),
            }
            Ok(())
        })
        .await?;
        if names.others.remove(config.as_bytes()) {
            match call.send_wide(Effect::Read, cmd("HKEYS").arg(&config)).await.and_then(reply::list) {
                Ok(fields) => {
                    for name in fields {
                        let name = reply::bytes(name)?.unwrap_or_default();
                        match decode_key(&name) {
                            Ok(key) => drop(names.configs.insert(key)),
                            Err(_) => remarks.push(Piece::not_understood(of_field(&config, &name), NO_KEY)),
                        }
                    }
                }
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    remarks.push(Piece::unreadable(config, &error));
                }
                Err(error) => return Err(error),
            }
        }
        remarks.extend(names.others.iter().map(|name| self.remark(name)));
        let mut pages = Vec::new();
        for (part, keys) in [
            (Part::Credentials, names.credentials),
            (Part::Configs, names.configs),
            (Part::Usage, names.usage),
        ] {
            let keys: Vec<Key> = keys.into_iter().collect();
            pages.extend(keys.chunks(PAGE).map(|keys| (part, keys.to_vec())));
        }
        Ok((pages, remarks))
    }

    /// Why a key is not a record.
    fn remark(&self, name: &[u8]) -> Piece {
        let key = String::from_utf8_lossy(name).into_owned();
        let (go_plans, own) = (self.layout.go_plans(), self.layout.beside_config());
        match self.layout.space(name) {
            Some(Space::Cache) => Piece::left_out(key, "a cache value, which expires"),
            Some(Space::Credential | Space::Usage) => Piece::not_understood(key, NO_KEY),
            None if name.starts_with(go_plans.as_bytes()) => {
                Piece::left_out(key, "the record of a config plan of the Go program, which expires")
            }
            None if name.starts_with(own.as_bytes()) => {
                Piece::left_out(key, "a plan or the audit of this crate")
            }
            None => Piece::not_understood(key, "a key that is not part of the layout"),
        }
    }

    /// The records of these keys, without those that have been deleted since they were listed.
    async fn legacy_page(&self, (part, keys): Page) -> Result<Vec<Piece>> {
        let call = self.call()?;
        let mut pieces = Vec::new();
        match part {
            Part::Credentials => {
                for (id, found) in keys.iter().zip(self.get_chunk(&call, &keys).await) {
                    match found {
                        Ok(credential) => {
                            pieces.push(Piece::Record(Record::Credential { id: id.clone(), credential }));
                        }
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        Err(error) if error.kind() == ErrorKind::Corrupt => {
                            pieces.push(Piece::unreadable(self.layout.name(Space::Credential, id), &error));
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
            Part::Configs => {
                let name = self.layout.config();
                for (key, text) in keys.iter().zip(self.config_texts(&call, &keys).await?) {
                    let Some(text) = text else { continue };
                    pieces.push(match config::read(key, &text) {
                        Ok(value) => Piece::Record(Record::Config { key: key.clone(), value }),
                        Err(error) => Piece::unreadable(of_field(&name, key.as_str().as_bytes()), &error),
                    });
                }
            }
            Part::Usage => {
                let replies =
                    call.send_all(Effect::Read, keys.iter().map(|key| self.whole_record(key)).collect());
                for (key, reply) in keys.iter().zip(replies.await) {
                    let name = self.layout.name(Space::Usage, key);
                    match reply.and_then(reply::fields) {
                        Ok(mut counters) => {
                            counters.sort_unstable();
                            let counters = counters.iter();
                            pieces.extend(counters.map(|(field, count)| counter(key, &name, field, count)));
                        }
                        Err(error) if error.kind() == ErrorKind::Corrupt => {
                            pieces.push(Piece::unreadable(name, &error));
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(pieces)
    }
}

fn counter(key: &Key, name: &str, field: &[u8], count: &[u8]) -> Piece {
    let location = || of_field(name, field);
    match (decode_key(field), reply::counter(count)) {
        (Ok(field), Some(count)) => Piece::Record(Record::Usage { key: key.clone(), field, count }),
        (Err(_), _) => Piece::not_understood(location(), NO_KEY),
        (Ok(_), None) => Piece::not_understood(location(), "the counter is not an integer of 64 bits"),
    }
}

/// How a remark names a field of a hash.
fn of_field(name: &str, field: &[u8]) -> String {
    format!("{name} {}", String::from_utf8_lossy(field))
}
