//! Legacy data, read record by record: an unreadable record does not affect the others.

use std::collections::BTreeSet;

use futures_core::Stream;

use super::{
    Redis,
    export::{NO_KEY, Unread, of_field},
    keys::{PAGE, Part},
    layout::Space,
};
use crate::{ErrorKind, Key, Record, Result, capability::pages, codec::decode_key, model::Piece};

/// Keys of one kind whose records are read together.
type Page = (Part, Vec<Key>);

impl Redis {
    /// Every record under the prefix, sorted, and a remark for every other key. Not a snapshot. Holds all
    /// keys, and the values of one page.
    pub(crate) fn legacy(&self) -> impl Stream<Item = Result<Piece>> + Send + 'static {
        pages((self.clone(), None::<std::vec::IntoIter<Page>>), |(redis, listed)| async move {
            let (pieces, listed) = match listed {
                None => {
                    let (pages, remarks) = redis.list().await?;
                    (remarks, pages.into_iter())
                }
                Some(mut listed) => {
                    let Some((part, keys)) = listed.next() else { return Ok(None) };
                    let records = redis.page(part, &keys).await?;
                    (records.into_iter().map(piece).collect(), listed)
                }
            };
            Ok(Some((pieces, (redis, Some(listed)))))
        })
    }

    async fn list(&self) -> Result<(Vec<Page>, Vec<Piece>)> {
        let call = self.long_call()?;
        let (mut keys, mut others, mut remarks) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        let (layout, config) = (&self.layout, self.layout.config());
        self.scan_names(&call, &layout.pattern(None, ""), |name| {
            match layout.record(name) {
                Some((Space::Credential, Ok(id))) => drop(keys.insert((Part::Credentials, id))),
                Some((Space::Usage, Ok(key))) => drop(keys.insert((Part::Usage, key))),
                _ => drop(others.insert(name.to_vec())),
            }
            Ok(())
        })
        .await?;
        if others.remove(config.as_bytes()) {
            match self.config_names(&call).await {
                Ok(names) => {
                    for name in names {
                        match decode_key(&name) {
                            Ok(key) => drop(keys.insert((Part::Configs, key))),
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
        remarks.extend(others.iter().map(|name| self.remark(name)));
        let keys: Vec<(Part, Key)> = keys.into_iter().collect();
        let parts = keys.chunk_by(|(left, _), (right, _)| left == right);
        let pages = parts.flat_map(|keys| keys.chunks(PAGE));
        let pages =
            pages.map(|page| (page[0].0, page.iter().map(|(_, key)| key.clone()).collect())).collect();
        Ok((pages, remarks))
    }

    /// Why a key is not a record.
    fn remark(&self, name: &[u8]) -> Piece {
        let key = String::from_utf8_lossy(name).into_owned();
        let (go_plans, own) = (self.layout.go_plans(), self.layout.beside_config());
        match self.layout.record(name).map(|(space, _)| space) {
            Some(Space::Cache) => Piece::left_out(key, "a cache value, which expires"),
            Some(Space::Lease) => Piece::left_out(key, "a lease, which ends by itself"),
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
}

fn piece(record: std::result::Result<Record, Unread>) -> Piece {
    match record {
        Ok(record) => Piece::Record(record),
        Err(Unread { place, reason: Some(reason), .. }) => Piece::not_understood(place, reason),
        Err(Unread { place, error, .. }) => Piece::unreadable(place, &error),
    }
}
