//! The state that the thread for the remote shares with its handle, and the result of a push.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The result of a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Accepted,
    /// The remote's branch has moved, or the remote refuses the commits: then with its message, if any.
    Rejected(Option<String>),
    /// Another program is updating the branch.
    Locked,
}

/// The state that both sides share.
#[derive(Default)]
pub(super) struct Status(Mutex<StatusState>);

#[derive(Default)]
pub(super) struct StatusState {
    /// Since when the thread waits for the remote. None: it has no request.
    silent_since: Option<Instant>,
    /// The thread was replaced: it may no longer send anything or change a reference.
    pub(super) is_abandoned: bool,
}

impl Status {
    pub(super) fn lock(&self) -> MutexGuard<'_, StatusState> {
        // Each change is complete, so a poisoned lock is safe to use.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the thread has waited for the remote.
    pub(super) fn silence(&self) -> Duration {
        self.lock().silent_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    pub(super) fn abandon(&self) {
        self.lock().is_abandoned = true;
    }

    /// Records since when the thread waits. Returns false if it was abandoned.
    pub(super) fn set_waiting(&self, since: Option<Instant>) -> bool {
        let mut state = self.lock();
        state.silent_since = since;
        !state.is_abandoned
    }
}
