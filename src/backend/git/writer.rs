//! The writes: one commit each, in step with the remote.

use std::{
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::{Duration, Instant},
};

use tokio::runtime::Handle;

use super::{
    GitOptions,
    clone::LocalClone,
    error::refused,
    state::{Draft, State},
    sync::{Delivery, RemoteSync, SyncStatus, pause},
};
use crate::{Error, ErrorKind, Outcome, Result};

/// Attempts to move a branch that another program has locked.
const MAX_LOCKED: usize = 5;

/// Makes all changes of the store. Used by one thread.
pub(super) struct Writer {
    pub(super) local: LocalClone,
    /// None without a remote.
    sync: Option<RemoteSync>,
}

impl Writer {
    /// Opens the repository and reads its records.
    ///
    /// It stops waiting for the remote once `is_dropped` is set.
    pub(super) fn open(options: &GitOptions, runtime: Handle, is_dropped: Arc<AtomicBool>) -> Result<Self> {
        let local = LocalClone::open(options)?;
        let sync = RemoteSync::start(&local, options, runtime, is_dropped)?;
        let mut writer = Self { local, sync };
        if let Err(error) = writer.start() {
            // An empty store would look like a clone of the remote.
            if writer.local.branch.head().is_ok_and(|head| head.is_none()) {
                writer.local.locked_repository.remove_new();
            }
            return Err(error);
        }
        Ok(writer)
    }

    fn start(&mut self) -> Result<()> {
        let _writing = self.local.begin()?;
        self.local.start()?;
        self.sync.as_mut().map_or(Ok(()), |sync| sync.pull_at_start(&mut self.local))
    }

    /// The state of the remote, if there is one.
    pub(super) fn sync_status(&self) -> Arc<Mutex<SyncStatus>> {
        self.sync.as_ref().map(RemoteSync::shared_status).unwrap_or_default()
    }

    fn with_remote(&mut self) -> Result<(&mut RemoteSync, &mut LocalClone)> {
        let sync = self.sync.as_mut();
        let sync = sync.ok_or_else(|| refused("the options of the store name no remote"))?;
        Ok((sync, &mut self.local))
    }

    /// Fetches the remote's commits and puts ours on top of them.
    pub(super) fn pull(&mut self) -> Result<()> {
        let (sync, local) = self.with_remote()?;
        sync.pull(local)
    }

    /// Sends our commits on top of the remote's.
    pub(super) fn push(&mut self, deadline: Duration) -> Result<()> {
        self.local.refresh()?;
        let (sync, local) = self.with_remote()?;
        sync.push(local, deadline)
    }

    /// Makes a change: one commit, or none if nothing changes.
    ///
    /// Repeats the change after a concurrent one, until the deadline of the call.
    pub(super) fn commit<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut change: impl FnMut(&mut Draft<'_>) -> Result<T>,
    ) -> Result<T> {
        let Self { local, sync } = self;
        let _writing = local.begin()?;
        local.refresh()?;
        if let Some(sync) = sync {
            sync.pull_before_write(local);
        }
        let (begun, mut locked) = (Instant::now(), 0);
        while begun.elapsed() < deadline {
            let state = local.snapshot();
            let mut draft = Draft::new(State::clone(&state), local.branch.files(state.head)?);
            let value = change(&mut draft)?;
            let (next, changes) = draft.into_parts();
            let Some(commit) = local.branch.write(state.head, &changes, what)? else { return Ok(value) };
            // A record that can't be read is not sent.
            let next = match next {
                Some(mut next) => {
                    next.head = Some(commit);
                    next
                }
                None => local.state_at(&state, Some(commit))?,
            };
            let delivery = match sync {
                Some(sync) => sync.send_write(local, state.head, commit, begun)?,
                None => Some(Delivery::No),
            };
            let Some(delivery) = delivery else {
                pause();
                continue;
            };
            return match local.move_to(commit, next) {
                Ok(()) => Ok(value),
                // The remote has the write, or may have it, but another program has locked the branch here.
                Err(error) if delivery != Delivery::No => Err(error.with_outcome(Outcome::Unknown)),
                Err(error)
                    if error.outcome() == Outcome::NotApplied
                        && error.kind() == ErrorKind::Busy
                        && locked < MAX_LOCKED =>
                {
                    locked += 1;
                    pause();
                    local.refresh()?;
                    continue;
                }
                Err(error) => Err(error),
            };
        }
        Err(Error::new(ErrorKind::Timeout, "the deadline passed before the change could be committed"))
    }

    /// Whether a request to the remote is pending.
    pub(super) fn is_pending(&self) -> bool {
        self.sync.as_ref().is_some_and(RemoteSync::is_pending)
    }

    /// When the remote is next contacted automatically.
    pub(super) fn next_sync(&self) -> Option<Instant> {
        self.sync.as_ref().and_then(RemoteSync::next_sync)
    }

    /// Does the work that is due in the background. Never waits for the remote.
    pub(super) fn sync(&mut self) {
        if let Some(sync) = &mut self.sync {
            sync.run_due(&mut self.local);
        }
    }

    /// Ends the writer. Sends unsent commits if the caller waits for that, and leaves the work tree
    /// consistent.
    pub(super) fn finish(&mut self, is_waited_for: bool) {
        if is_waited_for && let Some(sync) = &mut self.sync {
            sync.finish(&mut self.local);
        }
        self.local.finish();
    }
}
