//! What a store keeps about its watch: the feed, and where the streams go on after a cut.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use mongodb::bson::oid::ObjectId;
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

use crate::{backend::feed::Feed, event::Cursor};

/// How many marks are kept. They are some seconds apart.
const MARKS: usize = 4;

/// The watch of a store.
#[derive(Clone)]
pub(in super::super) struct Watching {
    pub(in super::super) feed: Feed,
    past: Arc<Mutex<Past>>,
    /// One client at a time: the next one waits until the streams of the last one are closed at the server.
    turn: Arc<Turn<()>>,
}

/// Where the streams go on.
#[derive(Default)]
pub(super) struct Past {
    /// The election of the primary that told of the changes. None: it is not known, as behind a router.
    election: Option<ObjectId>,
    /// The newest cursors at which nothing was missed. Without one the streams begin anew.
    marks: VecDeque<Cursor>,
}

impl Past {
    /// Where to go on at the primary of this election.
    ///
    /// At another primary it is some seconds before the last cursor: for a moment after its election, it may
    /// return what was stored before changes that the last one has told of, to a reader that they woke.
    pub(super) fn place(&self, last: Option<Cursor>, election: Option<ObjectId>) -> Option<Cursor> {
        let earlier = self.marks.front().cloned()?;
        let is_same = election.is_some() && election == self.election;
        Some(last.filter(|_| is_same).unwrap_or(earlier))
    }

    /// Nothing was missed at this cursor, which the primary of this election told.
    pub(super) fn mark(&mut self, cursor: Option<Cursor>, election: Option<ObjectId>) {
        self.election = election;
        self.marks.extend(cursor);
        if self.marks.len() > MARKS {
            self.marks.pop_front();
        }
    }
}

impl Watching {
    pub(in super::super) fn new(label: &'static str) -> Self {
        Self { feed: Feed::new(label), past: Arc::default(), turn: Arc::default() }
    }

    /// Waits until the streams of earlier watches are closed.
    pub(in super::super) async fn turn(&self) -> OwnedMutexGuard<()> {
        self.turn.clone().lock_owned().await
    }

    /// Takes the past. If it is not kept again, the next watch begins anew.
    pub(super) fn take(&self) -> Past {
        std::mem::take(&mut *self.past.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn keep(&self, past: Past) {
        *self.past.lock().unwrap_or_else(PoisonError::into_inner) = past;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(place: usize) -> Option<Cursor> {
        Some(Cursor::at("test", place))
    }

    #[test]
    fn another_primary_goes_on_some_seconds_earlier() {
        let [first, second] = [1, 2].map(|byte| Some(ObjectId::from_bytes([byte; 12])));
        let mut past = Past::default();
        assert_eq!(past.place(at(9), first), None, "without a mark it begins anew");
        (1..=6).for_each(|place| past.mark(at(place), first));
        past.mark(None, first);
        assert_eq!(past.place(at(9), first), at(9));
        assert_eq!(past.place(None, first), at(3));
        assert_eq!(past.place(at(9), second), at(3));
        assert_eq!(past.place(at(9), None), at(3));
        past.mark(at(7), second);
        assert_eq!(past.place(at(9), second), at(9));
        past.mark(at(8), None);
        assert_eq!(past.place(at(9), None), at(5), "a router's shards may have other primaries");
    }
}
