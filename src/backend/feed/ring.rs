//! The newest changes of a store, for its watchers.

use std::collections::VecDeque;

use tokio::task::AbortHandle;

use crate::{Error, Key, Record, event::Cursor, history::DocumentKind};

/// The changes that are kept for watchers that have not read them.
const RING: usize = 8192;

/// What changed: a record, or if the backend doesn't know which, any of a kind.
pub(crate) type Change = (DocumentKind, Option<Key>);

#[derive(Default)]
pub(super) struct State {
    /// The newest changes. The first one has this number.
    pub(super) ring: VecDeque<Told>,
    pub(super) first: u64,
    /// The cursor of the source, if it has its own.
    pub(super) cursor: Option<Cursor>,
    /// How often the source has said that nothing was missed.
    pub(super) idles: u64,
    /// Whether the source tells every change now.
    pub(super) is_live: bool,
    pub(super) watchers: usize,
    pub(super) task: Option<AbortHandle>,
    /// The number of tasks that were begun. An earlier one can still run when the next one begins.
    pub(super) tasks: u64,
    pub(super) ended: Option<Error>,
}

pub(super) struct Told {
    /// None: changes may have been missed.
    pub(super) change: Option<Change>,
    /// Where to go on after it, if the source has its own cursors.
    pub(super) cursor: Option<Cursor>,
}

impl State {
    /// The number of the next change.
    pub(super) fn end(&self) -> u64 {
        self.first + self.ring.len() as u64
    }

    pub(super) fn push(&mut self, change: Option<Change>) {
        if self.ring.len() == RING {
            self.ring.pop_front();
            self.first += 1;
        }
        self.ring.push_back(Told { change, cursor: self.cursor.clone() });
    }

    /// What was told from this number on. `None`: some of it is no longer there, or changes were missed.
    pub(super) fn told_since(&self, place: u64) -> Option<Vec<Change>> {
        let skipped = usize::try_from(place.checked_sub(self.first)?).ok()?;
        if skipped > self.ring.len() {
            return None;
        }
        self.ring.range(skipped..).map(|told| told.change.clone()).collect()
    }
}

/// A place in the ring.
pub(super) struct Place {
    /// The number of the next change.
    pub(super) next: u64,
    /// How often the source had said that nothing was missed.
    pub(super) idles: u64,
    /// Where a later watch goes on. For the first event only.
    pub(super) cursor: Cursor,
}

/// The change of this record, if records of its kind are watched.
pub(crate) fn change_of(record: &Record) -> Option<Change> {
    match record {
        Record::Credential { id, .. } => Some((DocumentKind::Credential, Some(id.clone()))),
        Record::Config { key, .. } => Some((DocumentKind::Config, Some(key.clone()))),
        Record::Usage { .. } => None,
    }
}
