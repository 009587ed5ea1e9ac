//! A watcher: one stream of events.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Arc, atomic::Ordering},
};

use futures_core::Stream;
use futures_util::stream;
use tokio::task::consume_budget;

use super::{
    ring::{Change, Place},
    shared::Shared,
    source::{Pauses, Source, run},
};
use crate::{
    Error, ErrorKind, Result,
    event::{Cursor, Event, WatchOptions},
};

/// The stream of a new watcher.
pub(super) fn watch<S: Source>(
    shared: Arc<Shared>,
    source: S,
    options: WatchOptions,
) -> impl Stream<Item = Result<Event>> + Send + use<S> {
    let first = Watcher { shared, source, options, at: At::Begin, is_counted: false };
    stream::unfold(Some(first), |watcher| async {
        let mut watcher = watcher?;
        // A stream that is always ready would starve other tasks.
        consume_budget().await;
        match watcher.next().await {
            Ok(event) => Some((Ok(event), Some(watcher))),
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// A watcher, and where it is.
struct Watcher<S> {
    shared: Arc<Shared>,
    source: S,
    options: WatchOptions,
    at: At,
    is_counted: bool,
}

enum At {
    /// Before the first event.
    Begin,
    /// The changes since its cursor come first.
    Behind {
        changes: VecDeque<Change>,
        from: Cursor,
        then: Place,
    },
    Ring(Place),
}

impl<S: Source> Watcher<S> {
    async fn next(&mut self) -> Result<Event> {
        loop {
            let shared = self.shared.clone();
            let mut changed = pin!(shared.changed.notified());
            changed.as_mut().enable();
            self.join();
            if matches!(self.at, At::Begin)
                && let Some(then) = self.end()
            {
                self.at = match self.options.from.take() {
                    None => return Ok(self.resync(then)),
                    Some(from) => match self.since(&from).await? {
                        None => return Ok(self.resync(then)),
                        Some(changes) => At::Behind { changes: changes.into(), from, then },
                    },
                };
            }
            match &mut self.at {
                At::Begin => {}
                At::Behind { changes, from, then } => {
                    let of_kind = |(kind, _): &Change| self.options.includes(*kind);
                    while let Some(change) = changes.pop_front() {
                        if of_kind(&change) {
                            let (kind, key) = change;
                            return Ok(Event::Changed { kind, key, cursor: from.clone() });
                        }
                    }
                    // It has caught up.
                    let (next, idles, cursor) = (then.next, then.idles, then.cursor.clone());
                    self.at = At::Ring(Place { next, idles, cursor: cursor.clone() });
                    return Ok(Event::Idle { cursor });
                }
                At::Ring(place) => {
                    if let Some(event) = shared.read(place, &self.options) {
                        return Ok(event);
                    }
                }
            }
            if let Some(error) = shared.lock().ended.clone() {
                return Err(error);
            }
            changed.await;
        }
    }

    /// Counts as a watcher, and runs the source.
    fn join(&mut self) {
        if !self.is_counted {
            self.is_counted = true;
            self.shared.was_watched.store(true, Ordering::SeqCst);
            self.shared.lock().watchers += 1;
        }
        run(&self.shared, &self.source);
    }

    /// The end of the ring, once the source tells every change.
    fn end(&self) -> Option<Place> {
        let state = self.shared.lock();
        state.is_live.then(|| self.shared.end_of(&state))
    }

    fn resync(&mut self, place: Place) -> Event {
        let cursor = place.cursor.clone();
        self.at = At::Ring(place);
        Event::Resync { cursor }
    }

    /// The changes since the cursor. Waits while the store can't be reached.
    async fn since(&self, cursor: &Cursor) -> Result<Option<Vec<Change>>> {
        let mut pauses = Pauses::default();
        loop {
            match self.source.since(cursor).await {
                Err(error) if error.passes() => pauses.next().await,
                known => return known,
            }
        }
    }
}

impl<S> Drop for Watcher<S> {
    fn drop(&mut self) {
        if !self.is_counted {
            return;
        }
        let mut state = self.shared.lock();
        state.watchers -= 1;
        if state.watchers > 0 {
            return;
        }
        state.is_live = false;
        // The next watch tries again what was refused.
        let is_closed = |error: &mut Error| error.kind() == ErrorKind::Closed;
        let refused = state.ended.take_if(|error| !is_closed(error));
        let task = state.task.take();
        drop((state, refused));
        if let Some(task) = task {
            task.abort();
        }
    }
}
