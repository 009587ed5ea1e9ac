//! Batches and imports in which each key is sent once.

use std::collections::{BTreeMap, BTreeSet};

use crate::{ConfigValue, Credential, Error, Found, Key, Record, Result, error::Kind};

/// Each key once, in order.
pub(crate) fn distinct(keys: &[Key]) -> Vec<&Key> {
    keys.iter().collect::<BTreeSet<_>>().into_iter().collect()
}

/// The values of a chunk that exist, each with the result of decoding it.
pub(crate) type FoundChunk<V> = Result<Vec<(Key, Result<V>)>>;

/// The result of reading a batch in which a key may occur several times, from the result of each chunk.
pub(crate) fn found<V: Clone>(
    kind: Kind,
    keys: &[Key],
    chunks: Vec<(&[&Key], FoundChunk<V>)>,
) -> Result<Found<V>> {
    let mut results = BTreeMap::new();
    for (chunk, result) in chunks {
        match result {
            Ok(found) => results.extend(found),
            Err(error) => results.extend(chunk.iter().map(|key| ((*key).clone(), Err(error.clone())))),
        }
    }
    Found::collect(keys, |key| results.get(key).cloned().unwrap_or_else(|| Err(Error::not_found(kind, key))))
        .settle()
}

/// The errors of the ids that a request did not delete, given those that it deleted.
pub(crate) fn not_deleted<'k>(
    ids: &[&'k Key],
    deleted: &Result<BTreeSet<Key>>,
) -> impl Iterator<Item = (&'k Key, Error)> {
    ids.iter().filter_map(move |id| match deleted {
        Ok(deleted) if deleted.contains(*id) => None,
        Ok(_) => Some((*id, Error::not_found(Kind::Credential, id))),
        Err(error) => Some((*id, error.clone())),
    })
}

/// The kinds of records in the order of an export.
pub(crate) const EXPORTED: [Kind; 3] = [Kind::Credential, Kind::Config, Kind::Usage];

/// The records of an import by kind. Of several records with the same key, the last one counts.
#[derive(Default)]
pub(crate) struct Records<'r> {
    pub(crate) credentials: BTreeMap<&'r Key, &'r Credential>,
    pub(crate) configs: BTreeMap<&'r Key, &'r ConfigValue>,
    /// By the keys of the usage record and of the counter.
    pub(crate) counters: BTreeMap<(&'r Key, &'r Key), i64>,
}

impl<'r> Records<'r> {
    pub(crate) fn of(records: &'r [Record]) -> Self {
        let mut found = Self::default();
        for record in records {
            match record {
                Record::Credential { id, credential } => drop(found.credentials.insert(id, credential)),
                Record::Config { key, value } => drop(found.configs.insert(key, value)),
                Record::Usage { key, field, count } => drop(found.counters.insert((key, field), *count)),
            }
        }
        found
    }
}
