//! What the writer of a store tells its watches.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use git2::Oid;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{LABEL, branch, name::record_of};
use crate::backend::feed::{Change, Feed};

/// A state that readers see, by its commit, and what it changes.
pub(super) struct Move {
    pub(super) head: Option<Oid>,
    pub(super) changes: BTreeSet<Change>,
}

/// The watchers of a store.
#[derive(Clone)]
pub(super) struct Watchers {
    pub(super) feed: Feed,
    /// To the task that tells them.
    task: Arc<Mutex<Option<UnboundedSender<Move>>>>,
}

impl Watchers {
    pub(super) fn new() -> Self {
        Self { feed: Feed::new(LABEL), task: Arc::default() }
    }

    /// Tells that readers see this commit now, in which these files differ.
    pub(super) fn tell(&self, head: Option<Oid>, changes: &[branch::Change]) {
        if !self.feed.is_watched() {
            return;
        }
        let moved = || Move { head, changes: records_of(changes).collect() };
        // The task is gone if nothing watches any more.
        self.task().take_if(|task| task.send(moved()).is_err());
    }

    /// Tells that the store is closed.
    pub(super) fn close(&self) {
        *self.task() = None;
    }

    /// What is told from now on.
    pub(super) fn moves(&self) -> UnboundedReceiver<Move> {
        let (task, moves) = unbounded_channel();
        *self.task() = Some(task);
        moves
    }

    fn task(&self) -> MutexGuard<'_, Option<UnboundedSender<Move>>> {
        // Each change is complete, so a poisoned lock is safe to use.
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn records_of(changes: &[branch::Change]) -> impl Iterator<Item = Change> {
    changes.iter().filter_map(|change| record_of(&change.path)).map(|(kind, key)| (kind, Some(key)))
}
