//! What is asked of the thread that speaks to the remote, and what both sides know of it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool, mpsc::Sender},
    time::{Duration, Instant},
};

use git2::Oid;

use crate::Result;

/// What became of commits that were sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Accepted,
    /// The remote has others, or does not want these: then in its own words, if it has any.
    Rejected(Option<String>),
    /// Somebody else is sending at this moment.
    Busy,
}

pub(super) struct Errand {
    pub(super) asked: Instant,
    /// Set by who comes first: the thread when it begins to send, or the caller when it waits no more.
    pub(super) begun: Arc<AtomicBool>,
    pub(super) task: Task,
}

pub(super) enum Task {
    Fetch(Sender<Result<Option<Oid>>>),
    Push { commit: Oid, expected: Option<Oid>, reply: Sender<Result<Sent>> },
}

/// What both sides know of a thread.
#[derive(Default)]
pub(super) struct Line(Mutex<Heard>);

#[derive(Default)]
pub(super) struct Heard {
    /// Since when the remote owes it a word. None: it has nothing to do.
    silent_since: Option<Instant>,
    /// Nobody listens to it any more: it may neither send nor note anything.
    pub(super) is_left: bool,
}

impl Line {
    pub(super) fn heard(&self) -> MutexGuard<'_, Heard> {
        // Each change of it is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the remote has owed the thread a word.
    pub(super) fn silence(&self) -> Duration {
        self.heard().silent_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    pub(super) fn leave(&self) {
        self.heard().is_left = true;
    }

    /// Whether the thread is still wanted. Notes since when it waits.
    pub(super) fn waits(&self, since: Option<Instant>) -> bool {
        let mut heard = self.heard();
        heard.silent_since = since;
        !heard.is_left
    }
}
