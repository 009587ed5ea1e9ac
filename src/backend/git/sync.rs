//! Exchanges commits with the remote: decides when to fetch and to push, and how long to pause after a
//! failure.

use std::{
    path::absolute,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use git2::Oid;
use tokio::runtime::Handle;

use super::{
    GitOptions, GitSync, Unsent,
    clone::LocalClone,
    error::refused,
    options::local_path,
    rebase::{conflict_of, rebase},
    remote::{Answer, Remote},
    request::Sent,
};
use crate::{Error, ErrorKind, Outcome, Result};

/// Consecutive attempts while the remote's branch is locked there: about one second.
const MAX_LOCKED: u32 = 30;

/// Consecutive rejections without a visible reason before they count as final.
const MAX_REJECTED: u32 = 5;

/// The state of the remote, for [`stats`](crate::Backend::stats).
#[derive(Clone, Default)]
pub(super) struct SyncStatus {
    /// When it last answered.
    pub(super) answered: Option<SystemTime>,
    /// Why the remote can't be reached, or why our commits can't be sent.
    pub(super) problem: Option<Error>,
    /// Why the remote refuses our commits, in its own words. They may quote what was sent, so they are only
    /// in the stats.
    pub(super) message: Option<String>,
    /// The commits that closing did not send.
    pub(super) unsent: Option<Unsent>,
}

/// A request to the remote in the background.
enum Pending {
    Fetch(Answer<Option<Oid>>),
    /// With the commit that it goes on top of.
    Push(Option<Oid>, Answer<Sent>),
}

/// Whether the remote has a write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    Yes,
    /// The remote may have it, or may still receive it.
    Perhaps,
    No,
}

/// The remote, and what is known about it. Used by one thread.
pub(super) struct RemoteSync {
    remote: Remote,
    options: GitOptions,
    status: Arc<Mutex<SyncStatus>>,
    /// Whether the last handle was dropped; its drop waits for this thread.
    is_dropped: Arc<AtomicBool>,
    pending: Option<Pending>,
    /// The end of the time in which the remote is not contacted, because it did not answer.
    offline_until: Option<Instant>,
    next_sync: Instant,
    /// Consecutive attempts at which another program had locked the remote's branch.
    locked: u32,
    /// Consecutive pushes that the remote rejected for no visible reason.
    rejected: u32,
    /// The base of the last push in the background that was rejected.
    rejected_base: Option<Option<Oid>>,
    /// The end of the time in which nothing is sent automatically. None: the remote is not known to reject
    /// our commits.
    rejected_until: Option<Instant>,
}

impl RemoteSync {
    /// Starts the thread for the remote, if the options name one.
    pub(super) fn start(
        local: &LocalClone,
        options: &GitOptions,
        runtime: Handle,
        is_dropped: Arc<AtomicBool>,
    ) -> Result<Option<Self>> {
        let Some(remote) = options.remote.clone() else { return Ok(None) };
        let remote = match local_path(&remote) {
            Some(path) => absolute(path).ok().and_then(|path| path.to_str().map(str::to_owned)),
            None => Some(remote),
        };
        let remote = remote.ok_or_else(|| refused("the remote's path is not UTF-8"))?;
        Ok(Some(Self {
            remote: Remote::start(&local.locked_repository, options, remote, runtime, is_dropped.clone())?,
            options: options.clone(),
            status: Arc::default(),
            is_dropped,
            pending: None,
            offline_until: None,
            next_sync: after(options.interval),
            locked: 0,
            rejected: 0,
            rejected_base: None,
            rejected_until: None,
        }))
    }

    /// The state of the remote, for readers on other threads.
    pub(super) fn shared_status(&self) -> Arc<Mutex<SyncStatus>> {
        self.status.clone()
    }

    fn status(&self) -> MutexGuard<'_, SyncStatus> {
        // Each change is complete, so a poisoned lock is safe to use.
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the remote is not contacted for now.
    fn is_offline(&self) -> bool {
        self.is_dropped.load(Ordering::Acquire)
            || self.offline_until.is_some_and(|until| Instant::now() < until)
    }

    /// Records the result of contacting the remote.
    fn note<T>(&mut self, result: Result<T>) -> Result<T> {
        match &result {
            Ok(_) => {
                self.offline_until = None;
                // An answer does not mean that the remote accepts our commits.
                let problem = self.rejected_until.map(|_| push_rejected());
                let mut status = self.status();
                (status.answered, status.problem) = (Some(SystemTime::now()), problem);
            }
            Err(error) => {
                self.next_sync = after(self.options.interval);
                self.offline_until = Some(self.next_sync);
                self.status().problem = Some(error.clone());
            }
        }
        result
    }

    /// Records the result of a push.
    fn note_push(&mut self, sent: Result<Sent>) -> Result<Sent> {
        let sent = self.note(sent)?;
        match &sent {
            Sent::Accepted => {
                (self.locked, self.rejected, self.rejected_until) = (0, 0, None);
                let mut status = self.status();
                (status.problem, status.message) = (None, None);
            }
            Sent::Rejected(message) => {
                self.locked = 0;
                if message.is_some() {
                    self.status().message.clone_from(message);
                }
            }
            Sent::Locked => {}
        }
        Ok(sent)
    }

    /// Whether nothing is sent automatically for now, because the remote rejects our commits.
    fn is_rejected(&self) -> bool {
        self.rejected_until.is_some_and(|until| Instant::now() < until)
    }

    /// Stops sending automatically for one interval, because the remote rejects our commits.
    fn give_up(&mut self) -> Error {
        self.rejected_until = Some(after(self.options.interval));
        let error = push_rejected();
        self.status().problem = Some(error.clone());
        error
    }

    fn fetch(&mut self) -> Result<Option<Oid>> {
        let fetched = self.remote.fetch();
        self.note(fetched)
    }

    /// Fetches the remote's commits and puts ours on top of them.
    pub(super) fn pull(&mut self, local: &mut LocalClone) -> Result<()> {
        let theirs = self.fetch()?;
        self.integrate(local, theirs)
    }

    /// Pulls when the store is opened, if configured.
    pub(super) fn pull_at_start(&mut self, local: &mut LocalClone) -> Result<()> {
        if self.options.pull == GitSync::Manual {
            return Ok(());
        }
        let (has_commits, pulled) = (local.head().is_some(), self.pull(local));
        // An existing store can be used whatever is wrong with the remote.
        if has_commits { Ok(()) } else { pulled }
    }

    /// Pulls before a write, if configured. If this fails, a later fetch will do.
    pub(super) fn pull_before_write(&mut self, local: &mut LocalClone) {
        if self.options.pull == GitSync::Write && !self.is_offline() {
            drop(self.pull(local));
        }
    }

    /// Sends our commits on top of the remote's.
    pub(super) fn push(&mut self, local: &mut LocalClone, deadline: Duration) -> Result<()> {
        let (mut known, start) = (local.branch.tracked()?, Instant::now());
        self.locked = 0;
        if local.head() == known {
            // Nothing to send, unless the remote has lost commits.
            known = self.fetch()?;
            self.integrate(local, known)?;
        }
        while start.elapsed() < deadline {
            let Some(head) = local.head().filter(|head| Some(*head) != known) else { return Ok(()) };
            let sent = self.remote.push(head, known);
            match self.note_push(sent)? {
                Sent::Accepted => return Ok(()),
                Sent::Locked if self.is_locked_too_long() => return self.note(Err(branch_locked())),
                Sent::Locked => {
                    pause();
                    continue;
                }
                Sent::Rejected(_) => {}
            }
            let is_on_top = local.branch.base(Some(head), known)? == known;
            let theirs = self.fetch()?;
            if self.is_rejected_for_good(is_on_top && theirs == known, start) {
                return Err(self.give_up());
            }
            self.integrate(local, theirs)?;
            known = theirs;
            pause();
        }
        Err(Error::new(ErrorKind::Busy, "repeated conflicts with commits of others"))
    }

    /// Sends a write on top of `head` before it is acknowledged, if configured. Returns whether the remote
    /// has it, or `None` if the write must be repeated on top of others' commits.
    pub(super) fn send_write(
        &mut self,
        local: &mut LocalClone,
        head: Option<Oid>,
        commit: Oid,
        start: Instant,
    ) -> Result<Option<Delivery>> {
        if self.options.push != GitSync::Write || self.is_offline() || self.is_rejected() {
            return Ok(Some(Delivery::No));
        }
        let known = local.branch.tracked()?;
        let sent = self.remote.push(commit, known);
        match self.note_push(sent) {
            Ok(Sent::Accepted) => return Ok(Some(Delivery::Yes)),
            Ok(Sent::Rejected(_)) => {}
            Ok(Sent::Locked) if self.is_locked_too_long() => {
                let locked: Result<()> = Err(branch_locked());
                drop(self.note(locked));
                return Ok(Some(Delivery::No));
            }
            Ok(Sent::Locked) => return Ok(None),
            // Kept here and sent later.
            Err(error) if error.outcome() == Outcome::NotApplied => return Ok(Some(Delivery::No)),
            Err(_) => return Ok(Some(Delivery::Perhaps)),
        }
        let is_on_top = local.branch.base(head, known)? == known;
        let Ok(theirs) = self.fetch() else { return Ok(Some(Delivery::No)) };
        if self.is_rejected_for_good(is_on_top && theirs == known, start) {
            drop(self.give_up());
            return Ok(Some(Delivery::No));
        }
        if is_on_top && theirs == known {
            return Ok(None);
        }
        let base = local.branch.base(head, theirs)?;
        if let Some(conflict) = conflict_of(&local.branch, head, commit, base, theirs)? {
            // Only this write's own conflict is an error; not that of an earlier commit.
            return Err(conflict);
        }
        Ok(self.integrate(local, theirs).map_or(Some(Delivery::No), |()| None))
    }

    /// Records that the remote's branch was locked once more. Returns true after too many in a row to be
    /// ordinary contention.
    const fn is_locked_too_long(&mut self) -> bool {
        self.locked += 1;
        self.locked > MAX_LOCKED
    }

    /// Records a rejected push. Returns true when several in a row were rejected although the branch had not
    /// moved, which rules out a race.
    fn is_rejected_for_good(&mut self, is_without_reason: bool, start: Instant) -> bool {
        self.rejected = if is_without_reason { self.rejected.saturating_add(1) } else { 0 };
        let is_known = self.rejected_until.is_some();
        is_without_reason
            && (is_known || self.rejected >= MAX_REJECTED && start.elapsed() > Duration::from_secs(1))
    }

    /// Moves the branch to the remote's commits, with the commits that only this clone has on top.
    ///
    /// Changes nothing if both sides changed a record, or if the remote's data can't be read; this is
    /// recorded.
    fn integrate(&self, local: &mut LocalClone, theirs: Option<Oid>) -> Result<()> {
        take_over(local, theirs).inspect_err(|error| self.status().problem = Some(error.clone()))
    }

    /// Whether a request to the remote is pending.
    pub(super) const fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// When the remote is next contacted automatically.
    pub(super) fn next_sync(&self) -> Option<Instant> {
        let is_wanted = self.options.pull == GitSync::Interval || self.options.push != GitSync::Manual;
        is_wanted.then_some(self.next_sync)
    }

    /// Does the work that is due in the background. Never waits for the remote.
    pub(super) fn run_due(&mut self, local: &mut LocalClone) {
        match self.pending.take() {
            None => {
                if self.next_sync().is_some_and(|due| Instant::now() >= due) {
                    self.next_sync = after(self.options.interval);
                    self.pending = Some(Pending::Fetch(self.remote.fetching()));
                }
            }
            Some(Pending::Fetch(answer)) => match answer.poll() {
                None => self.pending = Some(Pending::Fetch(answer)),
                Some(fetched) => {
                    if let Ok(theirs) = self.note(fetched) {
                        self.push_next(local, theirs);
                    }
                }
            },
            Some(Pending::Push(onto, answer)) => match answer.poll() {
                None => self.pending = Some(Pending::Push(onto, answer)),
                Some(sent) => match self.note_push(sent) {
                    Ok(Sent::Rejected(_)) => self.note_rejection(onto),
                    Ok(Sent::Locked) => self.status().problem = Some(branch_locked()),
                    Ok(Sent::Accepted) | Err(_) => {}
                },
            },
        }
    }

    /// Records that the remote rejected a push in the background.
    fn note_rejection(&mut self, onto: Option<Oid>) {
        let is_same = self.rejected_base.replace(onto) == Some(onto);
        self.rejected = if is_same { self.rejected.saturating_add(1) } else { 1 };
        if self.rejected_until.is_some() || self.rejected >= MAX_REJECTED {
            drop(self.give_up());
        } else {
            // The next fetch shows what changed in between.
            self.next_sync = after(self.options.interval.min(Duration::from_secs(1)));
        }
    }

    fn push_next(&mut self, local: &mut LocalClone, theirs: Option<Oid>) {
        if self.integrate(local, theirs).is_err() {
            return;
        }
        let Some(head) = local.head().filter(|head| Some(*head) != theirs) else { return };
        if self.options.push != GitSync::Manual && !self.is_rejected() {
            self.pending = Some(Pending::Push(theirs, self.remote.pushing(head, theirs)));
        }
    }

    /// Sends unsent commits before the store closes, if configured. Those that can't be sent stay here and
    /// are sent after the next start.
    pub(super) fn finish(&mut self, local: &mut LocalClone) {
        if self.options.push == GitSync::Manual || !local.counts().is_ok_and(|(ahead, _)| ahead > 0) {
            return;
        }
        let pushed = if self.is_offline() || self.is_rejected() {
            Ok(())
        } else {
            self.push(local, self.options.deadline)
        };
        let commits = local.counts().map_or(0, |(ahead, _)| ahead);
        let mut status = self.status();
        let reason = pushed.err().or_else(|| status.problem.clone());
        status.unsent = (commits > 0).then_some(Unsent { commits, reason });
    }
}

fn take_over(local: &mut LocalClone, theirs: Option<Oid>) -> Result<()> {
    let _writing = local.begin()?;
    local.refresh()?;
    let state = local.snapshot();
    let base = local.branch.base(state.head, theirs)?;
    let Some(theirs) = theirs.filter(|theirs| Some(*theirs) != base) else { return Ok(()) };
    let tip = if base == state.head { theirs } else { rebase(&local.branch, state.head, base, theirs)? };
    let next = local.state_at(&state, Some(tip))?;
    local.move_to(tip, next)
}

/// The time after a duration. If it is out of range, in a year.
fn after(time: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    let now = Instant::now();
    now.checked_add(time).unwrap_or(now + YEAR)
}

/// Waits a random time before a retry, so that concurrent writers do not collide again.
pub(super) fn pause() {
    std::thread::sleep(Duration::from_millis(fastrand::u64(1..60)));
}

#[cold]
fn push_rejected() -> Error {
    Error::new(
        ErrorKind::Denied,
        "the remote rejects our commits: the branch may be protected; its own message, if any, is in the stats",
    )
}

#[cold]
fn branch_locked() -> Error {
    Error::new(
        ErrorKind::Busy,
        "another program has locked the remote's branch; if it was killed, remove the lock there: `refs/heads/*.lock`",
    )
}
