//! Writes: one commit each, in step with the remote.

use std::time::{Duration, Instant};

use super::{
    state::{Draft, State},
    writer::{Writer, pause},
};
use crate::{Error, ErrorKind, Outcome, Result};

/// Attempts to move a branch that another program has locked.
const MAX_LOCKED: usize = 5;

impl Writer {
    /// Makes a change: one commit, or none if nothing changes.
    ///
    /// Repeats the change after a concurrent one, until the deadline of the call.
    pub(super) fn commit<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut change: impl FnMut(&mut Draft<'_>) -> Result<T>,
    ) -> Result<T> {
        let _writing = self.local.begin()?;
        self.local.refresh()?;
        self.pull_before_write();
        let (begun, mut locked) = (Instant::now(), 0);
        while begun.elapsed() < deadline {
            let state = self.local.snapshot();
            let mut draft = Draft::new(State::clone(&state), self.local.branch.files(state.head)?);
            let value = change(&mut draft)?;
            let is_conditional = draft.is_conditional;
            let (mut next, changes) = draft.into_parts();
            let Some(commit) = self.local.branch.write(state.head, &changes, what)? else { return Ok(value) };
            next.head = Some(commit);
            let Some(is_sent) = self.send_write(state.head, commit, begun, is_conditional)? else {
                pause();
                continue;
            };
            return match self.local.move_to(commit, next) {
                Ok(()) => Ok(value),
                // The remote has the write, or may have it, but another program has locked the branch here.
                Err(error) if is_sent => Err(error.with_outcome(Outcome::Unknown)),
                Err(error)
                    if error.outcome() == Outcome::NotApplied
                        && error.kind() == ErrorKind::Busy
                        && locked < MAX_LOCKED =>
                {
                    locked += 1;
                    pause();
                    self.local.refresh()?;
                    continue;
                }
                Err(error) => Err(error),
            };
        }
        Err(Error::new(ErrorKind::Timeout, "the deadline passed before the change could be committed"))
    }
}
