//! The writer: the local clone, and the exchange of commits with the remote. Decides when to fetch and to
//! push, and how long to pause after a failure.

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
    remote_thread::Setup,
    request::Sent,
    watchers::Watchers,
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
    /// Whether the last attempt to get the remote's commits failed.
    pub(super) is_cut_off: bool,
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

/// What follows from an attempt to send a commit.
enum Step {
    Done,
    Repeat,
    /// The remote has other commits.
    Integrate(Option<Oid>),
}

/// Makes all changes of the store. Used by one thread.
pub(super) struct Writer {
    pub(super) local: LocalClone,
    /// None if the options name no remote.
    remote: Option<Remote>,
    options: GitOptions,
    /// For readers on other threads.
    pub(super) status: Arc<Mutex<SyncStatus>>,
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

impl Writer {
    /// Opens the repository and reads its records.
    ///
    /// It stops waiting for the remote once `is_dropped` is set.
    pub(super) fn open(
        options: &GitOptions,
        runtime: Handle,
        is_dropped: Arc<AtomicBool>,
        watchers: Watchers,
    ) -> Result<Self> {
        let local = LocalClone::open(options, watchers)?;
        let start = |remote: &String| {
            let remote = match local_path(remote) {
                Some(path) => absolute(path).ok().and_then(|path| path.to_str().map(str::to_owned)),
                None => Some(remote.clone()),
            };
            let setup = Setup {
                path: local.locked_repository.path.clone(),
                fetching: local.locked_repository.fetching.clone(),
                remote: remote.ok_or_else(|| refused("the remote's path is not UTF-8"))?,
                options: options.clone(),
                runtime,
            };
            Remote::start(setup, is_dropped)
        };
        let remote = options.remote.as_ref().map(start).transpose()?;
        let mut writer = Self {
            local,
            remote,
            options: options.clone(),
            status: Arc::default(),
            pending: None,
            offline_until: None,
            next_sync: after(options.interval),
            locked: 0,
            rejected: 0,
            rejected_base: None,
            rejected_until: None,
        };
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
        if self.remote.is_none() || self.options.pull == GitSync::Manual {
            return Ok(());
        }
        let (has_commits, pulled) = (self.local.head().is_some(), self.pull());
        // An existing store can be used whatever is wrong with the remote.
        if has_commits { Ok(()) } else { pulled }
    }

    fn remote(&mut self) -> Result<&mut Remote> {
        self.remote.as_mut().ok_or_else(|| refused("the options of the store name no remote"))
    }

    fn status(&self) -> MutexGuard<'_, SyncStatus> {
        // Each change is complete, so a poisoned lock is safe to use.
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is no remote, or it is not contacted for now.
    fn is_offline(&self) -> bool {
        self.remote.as_ref().is_none_or(|remote| remote.is_dropped.load(Ordering::Acquire))
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
                let mut status = self.status();
                (status.problem, status.is_cut_off) = (Some(error.clone()), true);
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
                (status.problem, status.message, status.is_cut_off) = (None, None, false);
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
        let fetched = self.remote()?.fetch().wait();
        self.note(fetched)
    }

    /// Fetches the remote's commits and puts ours on top of them.
    pub(super) fn pull(&mut self) -> Result<()> {
        let theirs = self.fetch()?;
        self.integrate(theirs)
    }

    /// Pulls before a write, if configured. If this fails, a later fetch will do.
    pub(super) fn pull_before_write(&mut self) {
        if self.options.pull == GitSync::Write && !self.is_offline() {
            drop(self.pull());
        }
    }

    /// Sends our commits on top of the remote's.
    pub(super) fn push(&mut self, deadline: Duration) -> Result<()> {
        let (mut known, start) = (self.local.branch.tracked()?, Instant::now());
        self.locked = 0;
        if self.local.head() == known {
            // Nothing to send, unless the remote has lost commits.
            known = self.fetch()?;
            self.integrate(known)?;
        }
        while start.elapsed() < deadline {
            let Some(head) = self.local.head().filter(|head| Some(*head) != known) else { return Ok(()) };
            match self.send(head, known, start)? {
                Step::Done => return Ok(()),
                Step::Repeat => {}
                Step::Integrate(theirs) => {
                    self.integrate(theirs)?;
                    known = theirs;
                }
            }
            pause();
        }
        Err(Error::new(ErrorKind::Busy, "repeated conflicts with commits of others"))
    }

    /// Sends a commit once, if the remote's branch is at `known`.
    fn send(&mut self, commit: Oid, known: Option<Oid>, start: Instant) -> Result<Step> {
        let sent = self.remote()?.push(commit, known).wait();
        match self.note_push(sent)? {
            Sent::Accepted => return Ok(Step::Done),
            Sent::Locked if self.locked >= MAX_LOCKED => return self.note(Err(branch_locked())),
            Sent::Locked => {
                self.locked += 1;
                return Ok(Step::Repeat);
            }
            Sent::Rejected(_) => {}
        }
        let is_on_top = self.local.branch.base(Some(commit), known)? == known;
        let theirs = self.fetch()?;
        if !is_on_top || theirs != known {
            self.rejected = 0;
            return Ok(Step::Integrate(theirs));
        }
        // The branch has not moved. Several such rejections in a row rule out a race.
        self.rejected += 1;
        let is_long = self.rejected >= MAX_REJECTED && start.elapsed() > Duration::from_secs(1);
        if self.rejected_until.is_some() || is_long { Err(self.give_up()) } else { Ok(Step::Repeat) }
    }

    /// Sends a write on top of `head` before it is acknowledged, if configured. Returns whether the remote
    /// has it or may receive it, or `None` if the write must be repeated on top of others' commits.
    pub(super) fn send_write(
        &mut self,
        head: Option<Oid>,
        commit: Oid,
        start: Instant,
        is_conditional: bool,
    ) -> Result<Option<bool>> {
        if self.options.push != GitSync::Write || self.is_offline() || self.is_rejected() {
            return Ok(Some(false));
        }
        let known = self.local.branch.tracked()?;
        let theirs = match self.send(commit, known, start) {
            Ok(Step::Done) => return Ok(Some(true)),
            Ok(Step::Repeat) => return Ok(None),
            Ok(Step::Integrate(theirs)) => theirs,
            // If it is not sent now, it is kept here and sent later.
            Err(error) => return Ok(Some(error.outcome() == Outcome::Unknown)),
        };
        let branch = &self.local.branch;
        let base = branch.base(head, theirs)?;
        if let Some(conflict) = conflict_of(branch, head, commit, base, theirs)? {
            // A conditional write is decided again from the other commits, which its caller can then read.
            if is_conditional && self.integrate(theirs).is_ok() {
                return Ok(None);
            }
            // Only this write's own conflict is an error; not that of an earlier commit.
            return Err(conflict);
        }
        Ok(self.integrate(theirs).map_or(Some(false), |()| None))
    }

    /// Moves the branch to the remote's commits, with the commits that only this clone has on top.
    ///
    /// Changes nothing if both sides changed a record, or if the remote's data can't be read; this is
    /// recorded.
    fn integrate(&mut self, theirs: Option<Oid>) -> Result<()> {
        let taken = take_over(&mut self.local, theirs);
        let mut status = self.status();
        status.is_cut_off = taken.is_err();
        if let Err(error) = &taken {
            status.problem = Some(error.clone());
        }
        drop(status);
        taken
    }

    /// Whether a request to the remote is pending.
    pub(super) const fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// When the remote is next contacted automatically.
    pub(super) fn next_sync(&self) -> Option<Instant> {
        let is_wanted = self.options.pull == GitSync::Interval
            || self.options.push != GitSync::Manual
            // Also without a write, once there was a watcher.
            || self.options.pull == GitSync::Write && self.local.watchers.feed.is_watched();
        (is_wanted && self.remote.is_some()).then_some(self.next_sync)
    }

    /// Does the work that is due in the background. Never waits for the remote.
    pub(super) fn run_due(&mut self) {
        match &self.pending {
            None if self.next_sync().is_some_and(|due| Instant::now() >= due) => {
                self.next_sync = after(self.options.interval);
                self.pending = self.remote.as_mut().map(|remote| Pending::Fetch(remote.fetch()));
            }
            None => {}
            Some(Pending::Fetch(answer)) => {
                let Some(fetched) = answer.poll(Duration::ZERO) else { return };
                self.pending = None;
                if let Ok(theirs) = self.note(fetched) {
                    self.push_next(theirs);
                }
            }
            Some(Pending::Push(onto, answer)) => {
                let (onto, Some(sent)) = (*onto, answer.poll(Duration::ZERO)) else { return };
                self.pending = None;
                match self.note_push(sent) {
                    Ok(Sent::Rejected(_)) => self.note_rejection(onto),
                    Ok(Sent::Locked) => self.status().problem = Some(branch_locked()),
                    Ok(Sent::Accepted) | Err(_) => {}
                }
            }
        }
    }

    /// Records that the remote rejected a push in the background.
    fn note_rejection(&mut self, onto: Option<Oid>) {
        let is_same = self.rejected_base.replace(onto) == Some(onto);
        self.rejected = if is_same { self.rejected + 1 } else { 1 };
        if self.rejected_until.is_some() || self.rejected >= MAX_REJECTED {
            drop(self.give_up());
        } else {
            // The next fetch shows what changed in between.
            self.next_sync = after(self.options.interval.min(Duration::from_secs(1)));
        }
    }

    fn push_next(&mut self, theirs: Option<Oid>) {
        if self.integrate(theirs).is_ok()
            && let Some(head) = self.local.head().filter(|head| Some(*head) != theirs)
            && self.options.push != GitSync::Manual
            && !self.is_rejected()
        {
            let remote = self.remote.as_mut();
            self.pending = remote.map(|remote| Pending::Push(theirs, remote.push(head, theirs)));
        }
    }

    /// Ends the writer, and leaves the work tree consistent.
    ///
    /// If the caller waits for that, sends unsent commits first, if configured. Those that can't be sent stay
    /// here and are sent after the next start.
    pub(super) fn finish(&mut self, is_waited_for: bool) {
        let is_wanted = is_waited_for && self.remote.is_some() && self.options.push != GitSync::Manual;
        if is_wanted && self.unsent() > 0 {
            let is_refused = self.is_offline() || self.is_rejected();
            let pushed = if is_refused { Ok(()) } else { self.push(self.options.deadline) };
            let (commits, mut status) = (self.unsent(), self.status());
            let reason = pushed.err().or_else(|| status.problem.clone());
            status.unsent = (commits > 0).then_some(Unsent { commits, reason });
        }
        self.local.finish();
    }

    fn unsent(&self) -> usize {
        self.local.counts().map_or(0, |(ahead, _)| ahead)
    }
}

fn take_over(local: &mut LocalClone, theirs: Option<Oid>) -> Result<()> {
    let _writing = local.begin()?;
    local.refresh()?;
    let state = local.snapshot();
    let base = local.branch.base(state.head, theirs)?;
    let Some(theirs) = theirs.filter(|theirs| Some(*theirs) != base) else { return Ok(()) };
    let tip = if base == state.head { theirs } else { rebase(&local.branch, state.head, base, theirs)? };
    let (next, _) = local.state_at(&state, Some(tip))?;
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
