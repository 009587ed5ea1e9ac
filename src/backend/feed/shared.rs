//! The state of a feed, which its watchers, its source and its committers share.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

use super::ring::{Change, Place, State};
use crate::{
    Error,
    event::{Cursor, Event, WatchOptions},
};

pub(super) struct Shared {
    pub(super) label: &'static str,
    /// Marks the cursors that are places in this ring.
    pub(super) id: u64,
    /// Whether there was a watcher: from then on committers tell what they change.
    pub(super) was_watched: AtomicBool,
    pub(super) state: Mutex<State>,
    pub(super) changed: Notify,
}

impl Shared {
    pub(super) fn new(label: &'static str) -> Self {
        Self {
            label,
            id: fastrand::u64(..),
            was_watched: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a committer has to tell what it changes. Ask after the change can be read.
    #[inline]
    pub(super) fn is_watched(&self) -> bool {
        self.was_watched.load(Ordering::SeqCst)
    }

    #[cold]
    pub(super) fn tell_all(&self, changes: impl IntoIterator<Item = Change>) {
        let mut state = self.lock();
        changes.into_iter().for_each(|change| state.push(Some(change)));
        drop(state);
        self.changed.notify_waiters();
    }

    pub(super) fn end(&self, error: Error) {
        let mut state = self.lock();
        state.is_live = false;
        state.ended.get_or_insert(error);
        let task = state.task.take();
        drop(state);
        self.changed.notify_waiters();
        if let Some(task) = task {
            task.abort();
        }
    }

    /// The cursor of the source, or of a place in the ring.
    pub(super) fn cursor(&self, of_source: Option<&Cursor>, place: u64) -> Cursor {
        let of_ring = || Cursor::at(self.label, format_args!("{:x}.{place}", self.id));
        of_source.cloned().unwrap_or_else(of_ring)
    }

    pub(super) fn end_of(&self, state: &State) -> Place {
        let next = state.end();
        Place { next, idles: state.idles, cursor: self.cursor(state.cursor.as_ref(), next) }
    }

    /// The next event for a watcher at this place.
    pub(super) fn read(&self, place: &mut Place, options: &WatchOptions) -> Option<Event> {
        let state = self.lock();
        if place.next < state.first {
            *place = self.end_of(&state);
            return Some(Event::Resync { cursor: place.cursor.clone() });
        }
        while place.next < state.end() {
            let told = &state.ring[(place.next - state.first) as usize];
            place.next += 1;
            let cursor = || self.cursor(told.cursor.as_ref(), place.next);
            match &told.change {
                None => return Some(Event::Resync { cursor: cursor() }),
                Some((kind, key)) if options.includes(*kind) => {
                    return Some(Event::Changed { kind: *kind, key: key.clone(), cursor: cursor() });
                }
                Some(_) => {}
            }
        }
        (place.idles != state.idles).then(|| {
            place.idles = state.idles;
            Event::Idle { cursor: self.cursor(state.cursor.as_ref(), place.next) }
        })
    }
}
