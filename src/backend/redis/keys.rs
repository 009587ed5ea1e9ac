//! The keys of one kind, sorted, some at a time.

use std::vec;

use futures_core::Stream;

use super::{Redis, layout::Space};
use crate::{
    Found, Key, Result,
    capability::{existing, pages},
    model::{KeyRange, ListOptions},
};

/// How many records are read at a time.
pub(super) const PAGE: usize = 100;

/// How many keys are held in memory at a time.
pub(super) const MAX_KEYS: usize = 200_000;

/// The kinds of records in the order of an export.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Credentials,
    Configs,
    Usage,
}

impl Part {
    /// None: the records are fields of one hash.
    const fn space(self) -> Option<Space> {
        match self {
            Self::Credentials => Some(Space::Credential),
            Self::Configs => None,
            Self::Usage => Some(Space::Usage),
        }
    }
}

/// The keys of the records that a stream returns.
pub(super) struct Keys {
    pub(super) redis: Redis,
    pub(super) part: Part,
    prefix: String,
    /// The range that was not listed yet.
    rest: Option<KeyRange>,
    /// The listed keys that were not returned yet.
    listed: vec::IntoIter<Key>,
    /// How many records are still wanted.
    left: usize,
}

impl Keys {
    pub(super) fn new(redis: &Redis, part: Part, options: ListOptions) -> Self {
        Self {
            redis: redis.clone(),
            part,
            rest: KeyRange::of(&options),
            prefix: options.prefix,
            listed: Vec::new().into_iter(),
            left: options.limit.unwrap_or(usize::MAX),
        }
    }

    /// The keys of the next page. None are left if it is empty.
    pub(super) async fn next(&mut self) -> Result<Vec<Key>> {
        while self.left > 0 && self.listed.as_slice().is_empty() && self.rest.is_some() {
            let call = self.redis.long_call()?;
            let listed = match self.part.space() {
                Some(space) => {
                    let most = self.left.min(MAX_KEYS);
                    self.redis.scan_first(&call, space, &self.prefix, &mut self.rest, most).await?
                }
                None => self.redis.config_keys(&call, &self.prefix, self.rest.take()).await?,
            };
            self.listed = listed.into_iter();
        }
        Ok(self.listed.by_ref().take(PAGE.min(self.left)).collect())
    }

    /// The records of these keys. `read` reads those of a page.
    pub(super) fn stream<V: Send, F: Future<Output = Result<Found<V>>> + Send>(
        self,
        read: impl Fn(Redis, Vec<Key>) -> F + Copy + Send,
    ) -> impl Stream<Item = Result<(Key, V)>> + Send {
        pages(self, move |mut keys| async move {
            let page = keys.next().await?;
            if page.is_empty() {
                return Ok(None);
            }
            let records = existing(read(keys.redis.clone(), page).await?)?;
            keys.left -= records.len();
            Ok(Some((records, keys)))
        })
    }
}
