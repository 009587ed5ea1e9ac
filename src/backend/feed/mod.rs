//! Tells the watchers of one store what changes: one source, many watchers.
//!
//! ```text
//! a task runs Source::follow while there are watchers
//!          |  tells
//!       [ ring of the newest changes ]        the committers of File and Memory tell it directly
//!          |         |         |
//!       watcher   watcher   watcher           each at a place of its own
//! ```

mod ring;
mod shared;
mod source;
#[cfg(test)]
mod tests;
mod watcher;

use std::{pin::pin, sync::Arc};

use futures_core::Stream;

pub(crate) use ring::{Change, change_of};
use shared::Shared;
pub(crate) use source::{IDLE_EVERY, Pauses, Source, Teller};

use crate::{
    Error, Key, Result,
    capability::Wake,
    event::{Cursor, Event, WatchOptions},
    history::DocumentKind,
};

/// The feed of one store, which handles to the store share.
#[derive(Clone)]
pub(crate) struct Feed(Arc<Shared>);

impl Feed {
    pub(crate) fn new(label: &'static str) -> Self {
        Self(Arc::new(Shared::new(label)))
    }

    /// Whether a committer has to tell what it changes. Ask after the change can be read.
    #[inline]
    pub(crate) fn is_watched(&self) -> bool {
        self.0.is_watched()
    }

    /// Tells what a committer has changed, if something has ever watched.
    #[inline]
    pub(crate) fn tell<I: IntoIterator<Item = Change>>(&self, changes: impl FnOnce() -> I) {
        if self.is_watched() {
            self.0.tell_all(changes());
        }
    }

    /// Ends all watches, with [`Closed`](ErrorKind::Closed).
    pub(crate) fn close(&self) {
        self.0.end(Error::closed());
    }

    /// The changes since a cursor that is a place in this ring.
    pub(crate) fn since(&self, cursor: &Cursor) -> Option<Vec<Change>> {
        let (id, place) = cursor.place(self.0.label)?.split_once('.')?;
        let is_own = u64::from_str_radix(id, 16) == Ok(self.0.id);
        let place = place.parse().ok().filter(|_| is_own)?;
        self.0.lock().told_since(place)
    }

    /// Ends at the next change of this record. `None` if nothing watches.
    pub(crate) fn next_change(&self, kind: DocumentKind, key: &Key) -> Option<Wake> {
        let place = Some(self.0.lock()).filter(|state| state.is_live)?.end();
        let (shared, key) = (self.0.clone(), key.clone());
        Some(Box::pin(async move {
            loop {
                let mut changed = pin!(shared.changed.notified());
                changed.as_mut().enable();
                let concerns = |(of, changed): &Change| {
                    *of == kind && changed.as_ref().is_none_or(|changed| *changed == key)
                };
                let is_awaited = {
                    let state = shared.lock();
                    let told = state.told_since(place);
                    state.is_live && told.is_some_and(|told| !told.iter().any(concerns))
                };
                if !is_awaited {
                    return;
                }
                changed.await;
            }
        }))
    }

    /// The stream of a watcher. The source is followed while there are watchers.
    pub(crate) fn watch<S: Source>(
        &self,
        source: S,
        options: WatchOptions,
    ) -> impl Stream<Item = Result<Event>> + Send + use<S> {
        watcher::watch(self.0.clone(), source, options)
    }
}
