//! Watches: each write tells the feed.

use std::convert::Infallible;

use futures_core::Stream;

use super::Memory;
use crate::{
    Key, Result,
    backend::feed::{Change, Feed, IDLE_EVERY, Source, Teller},
    capability::Watch,
    event::{Cursor, Event, WatchOptions},
    history::DocumentKind,
};

impl Memory {
    /// Tells watchers that these records were changed, after they were.
    pub(super) fn tell<'k>(&self, kind: DocumentKind, keys: impl IntoIterator<Item = &'k Key>) {
        self.feed.tell(|| keys.into_iter().map(move |key| (kind, Some(key.clone()))));
    }
}

/// The writes tell the feed by themselves.
#[derive(Clone)]
struct Writes(Feed);

impl Source for Writes {
    async fn follow(&self, teller: &Teller) -> Result<Infallible> {
        teller.resumed();
        loop {
            tokio::time::sleep(IDLE_EVERY).await;
            teller.idle(None);
        }
    }

    async fn since(&self, cursor: &Cursor) -> Result<Option<Vec<Change>>> {
        Ok(self.0.since(cursor))
    }
}

impl Watch for Memory {
    fn watch(&self, options: WatchOptions) -> impl Stream<Item = Result<Event>> + Send {
        self.feed.watch(Writes(self.feed.clone()), options)
    }
}
