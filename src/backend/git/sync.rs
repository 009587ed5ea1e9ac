//! Fetching and pushing, and what happens if both sides changed the same record.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use git2::Oid;

use super::{
    GitSync,
    branch::{Blob, Change},
    error::refused,
    name::record_of,
    request::Sent,
    state::State,
    writer::{Delivery, Pending, Writer},
};
use crate::{Error, ErrorKind, Key, Outcome, Result, history::DocumentKind};

/// Consecutive attempts while the remote's branch is locked there: about one second.
const MAX_LOCKED: u32 = 30;

/// Consecutive rejections without a visible reason before they count as final.
const MAX_REJECTED: u32 = 5;

/// What a change is about: a record, whatever the name of its file, or another file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Subject {
    Record(DocumentKind, Key),
    File(String),
}

impl Subject {
    fn of(path: &str) -> Self {
        record_of(path).map_or_else(|| Self::File(path.to_owned()), |(kind, key)| Self::Record(kind, key))
    }
}

impl Writer {
    /// Whether the remote is not contacted for now.
    pub(super) fn is_offline(&self) -> bool {
        self.is_dropped.load(Ordering::Acquire)
            || self.offline_until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether there are commits that the remote is not known to have.
    pub(super) fn is_ahead(&self) -> bool {
        self.remote.is_some() && self.counts().is_ok_and(|(ahead, _)| ahead > 0)
    }

    /// The numbers of commits that only this clone and only the remote have, as far as known.
    pub(super) fn counts(&self) -> Result<(usize, usize)> {
        let (head, tracked) = (self.state.load().head, self.branch.tracked()?);
        let base = self.branch.base(head, tracked)?;
        Ok((self.branch.since(base, head)?.len(), self.branch.since(base, tracked)?.len()))
    }

    /// Records the result of contacting the remote.
    fn note<T>(&mut self, result: Result<T>) -> Result<T> {
        match &result {
            Ok(_) => {
                self.offline_until = None;
                // An answer does not mean that the remote accepts our commits.
                let problem = self.rejected_until.map(|_| push_rejected());
                let mut shared = self.shared();
                (shared.answered, shared.problem) = (Some(SystemTime::now()), problem);
            }
            Err(error) => {
                self.offline_until = Some(after(self.config.interval));
                self.next_sync = after(self.config.interval);
                self.shared().problem = Some(error.clone());
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
                let mut shared = self.shared();
                (shared.problem, shared.message) = (None, None);
            }
            Sent::Rejected(message) => {
                self.locked = 0;
                if message.is_some() {
                    self.shared().message.clone_from(message);
                }
            }
            Sent::Locked => {}
        }
        Ok(sent)
    }

    /// Whether nothing is sent automatically for now, because the remote rejects our commits.
    pub(super) fn is_rejected(&self) -> bool {
        self.rejected_until.is_some_and(|until| Instant::now() < until)
    }

    /// Stops sending automatically for one interval, because the remote rejects our commits.
    fn give_up(&mut self) -> Error {
        self.rejected_until = Some(after(self.config.interval));
        let error = push_rejected();
        self.shared().problem = Some(error.clone());
        error
    }

    fn remote(&mut self) -> Result<&mut super::remote::Remote> {
        self.remote.as_mut().ok_or_else(|| refused("the configuration of the store names no remote"))
    }

    fn fetch(&mut self) -> Result<Option<Oid>> {
        let fetched = self.remote()?.fetch();
        self.note(fetched)
    }

    /// Fetches the remote's commits and puts ours on top of them.
    pub(super) fn pull(&mut self) -> Result<()> {
        let theirs = self.fetch()?;
        self.integrate(theirs)
    }

    /// Sends our commits on top of the remote's.
    pub(super) fn push(&mut self, deadline: Duration) -> Result<()> {
        let (mut known, start) = (self.branch.tracked()?, Instant::now());
        self.locked = 0;
        if self.state.load().head == known {
            // Nothing to send, unless the remote has lost commits.
            known = self.fetch()?;
            self.integrate(known)?;
        }
        while start.elapsed() < deadline {
            let Some(head) = self.state.load().head.filter(|head| Some(*head) != known) else {
                return Ok(());
            };
            let sent = self.remote()?.push(head, known);
            match self.note_push(sent)? {
                Sent::Accepted => return Ok(()),
                Sent::Locked if self.is_locked_too_long() => return self.note(Err(branch_locked())),
                Sent::Locked => {
                    pause();
                    continue;
                }
                Sent::Rejected(_) => {}
            }
            let is_on_top = self.branch.base(Some(head), known)? == known;
            let theirs = self.fetch()?;
            if self.is_rejected_for_good(is_on_top && theirs == known, start) {
                return Err(self.give_up());
            }
            self.integrate(theirs)?;
            known = theirs;
            pause();
        }
        Err(Error::new(ErrorKind::Busy, "repeated conflicts with commits of others"))
    }

    /// Sends a write before it is acknowledged, if configured. Returns whether the remote has it, or `None`
    /// if the write must be repeated on top of others' commits.
    pub(super) fn send_write(
        &mut self,
        state: &State,
        commit: Oid,
        start: Instant,
    ) -> Result<Option<Delivery>> {
        let is_wanted = self.remote.is_some() && self.config.push == GitSync::Write;
        if !is_wanted || self.is_offline() || self.is_rejected() {
            return Ok(Some(Delivery::No));
        }
        let known = self.branch.tracked()?;
        let sent = self.remote()?.push(commit, known);
        match self.note_push(sent) {
            Ok(Sent::Accepted) => return Ok(Some(Delivery::Yes)),
            Ok(Sent::Rejected(_)) => {}
            Ok(Sent::Locked) if self.is_locked_too_long() => {
                let held: Result<()> = Err(branch_locked());
                drop(self.note(held));
                return Ok(Some(Delivery::No));
            }
            Ok(Sent::Locked) => return Ok(None),
            // Kept here and sent later.
            Err(error) if error.outcome() == Outcome::NotApplied => return Ok(Some(Delivery::No)),
            Err(_) => return Ok(Some(Delivery::Perhaps)),
        }
        let is_on_top = self.branch.base(state.head, known)? == known;
        let Ok(theirs) = self.fetch() else { return Ok(Some(Delivery::No)) };
        if self.is_rejected_for_good(is_on_top && theirs == known, start) {
            drop(self.give_up());
            return Ok(Some(Delivery::No));
        }
        if is_on_top && theirs == known {
            return Ok(None);
        }
        let base = self.branch.base(state.head, theirs)?;
        if let Some(conflict) = self.conflict(state.head, commit, base, theirs)? {
            // Only this write's own conflict is an error; not that of an earlier commit.
            return Err(conflict);
        }
        Ok(self.integrate(theirs).map_or(Some(Delivery::No), |()| None))
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
    pub(super) fn integrate(&mut self, theirs: Option<Oid>) -> Result<()> {
        let taken = self.take_over(theirs);
        if let Err(error) = &taken {
            self.shared().problem = Some(error.clone());
        }
        taken
    }

    fn take_over(&mut self, theirs: Option<Oid>) -> Result<()> {
        let _writing = self.locked_repository.begin()?;
        self.refresh()?;
        let state = self.state.load_full();
        let base = self.branch.base(state.head, theirs)?;
        let Some(theirs) = theirs.filter(|theirs| Some(*theirs) != base) else { return Ok(()) };
        let tip = if base == state.head { theirs } else { self.rebase(state.head, base, theirs)? };
        let next = self.state_at(&state, Some(tip))?;
        self.move_to(tip, next)
    }

    /// Repeats our commits on top of the remote's and returns the last one.
    fn rebase(&mut self, head: Option<Oid>, base: Option<Oid>, theirs: Oid) -> Result<Oid> {
        let (own, changed) = (self.branch.since(base, head)?, self.branch.changes(base, Some(theirs))?);
        let changed = by_subject(&changed);
        let both: HashSet<Subject> = by_subject(&self.branch.changes(base, head)?)
            .into_iter()
            .filter(|(subject, files)| changed.get(subject) == Some(files))
            .map(|(subject, _)| subject)
            .collect();
        let mut tip = theirs;
        for id in own {
            let commit = self.branch.commit(id)?;
            if commit.parent_count() > 1 {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("commit {id} is a merge that the remote does not have: merge or rebase with git"),
                )
                .with_retryable(false));
            }
            let mut changes = self.branch.changes(commit.parent_ids().next(), Some(id))?;
            changes.retain(|change| !both.contains(&Subject::of(&change.path)));
            if let Some(change) =
                changes.iter().find(|change| changed.contains_key(&Subject::of(&change.path)))
            {
                let newest_change = self.newest_change(base, theirs, &Subject::of(&change.path))?;
                let newest = self.newest_change(base, head.unwrap_or(id), &Subject::of(&change.path))?;
                return Err(conflict(newest, newest_change, change));
            }
            if let Some(made) = self.branch.replay(tip, &commit, &changes)? {
                tip = made;
            }
        }
        Ok(tip)
    }

    /// Whether a write that is not on the branch yet changes a record that the remote changed too.
    fn conflict(
        &self,
        head: Option<Oid>,
        commit: Oid,
        base: Option<Oid>,
        theirs: Option<Oid>,
    ) -> Result<Option<Error>> {
        let Some(theirs) = theirs else { return Ok(None) };
        let (own, changed) =
            (self.branch.changes(head, Some(commit))?, self.branch.changes(base, Some(theirs))?);
        let changed = by_subject(&changed);
        let wanted = by_subject(&own);
        for change in &own {
            let subject = Subject::of(&change.path);
            if changed.get(&subject).is_some_and(|files| Some(files) != wanted.get(&subject)) {
                return Ok(Some(conflict(commit, self.newest_change(base, theirs, &subject)?, change)));
            }
        }
        Ok(None)
    }

    /// The newest commit that changed this subject.
    fn newest_change(&self, base: Option<Oid>, tip: Oid, subject: &Subject) -> Result<Oid> {
        for id in self.branch.since(base, Some(tip))?.into_iter().rev() {
            let parent = self.branch.commit(id)?.parent_ids().next();
            if self
                .branch
                .changes(parent, Some(id))?
                .iter()
                .any(|change| Subject::of(&change.path) == *subject)
            {
                return Ok(id);
            }
        }
        Ok(tip)
    }

    /// Whether a request to the remote is pending.
    pub(super) const fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// When the remote is next contacted automatically.
    pub(super) fn next_sync(&self) -> Option<Instant> {
        let wants = self.config.pull == GitSync::Interval || self.config.push != GitSync::Manual;
        (self.remote.is_some() && wants).then_some(self.next_sync)
    }

    /// Does the work that is due in the background. Never waits for the remote.
    pub(super) fn sync(&mut self) {
        match self.pending.take() {
            None => {
                if self.next_sync().is_some_and(|due| Instant::now() >= due) {
                    self.next_sync = after(self.config.interval);
                    self.pending = self.remote.as_mut().map(|remote| Pending::Fetch(remote.fetching()));
                }
            }
            Some(Pending::Fetch(answer)) => match answer.poll() {
                None => self.pending = Some(Pending::Fetch(answer)),
                Some(fetched) => {
                    if let Ok(theirs) = self.note(fetched) {
                        self.push_next(theirs);
                    }
                }
            },
            Some(Pending::Push(onto, answer)) => match answer.poll() {
                None => self.pending = Some(Pending::Push(onto, answer)),
                Some(sent) => match self.note_push(sent) {
                    Ok(Sent::Rejected(_)) => self.note_rejection(onto),
                    Ok(Sent::Locked) => self.shared().problem = Some(branch_locked()),
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
            self.next_sync = after(self.config.interval.min(Duration::from_secs(1)));
        }
    }

    fn push_next(&mut self, theirs: Option<Oid>) {
        if self.integrate(theirs).is_err() {
            return;
        }
        let Some(head) = self.state.load().head.filter(|head| Some(*head) != theirs) else { return };
        if self.config.push != GitSync::Manual && !self.is_rejected() {
            let push = |remote: &mut super::remote::Remote| remote.pushing(head, theirs);
            self.pending = self.remote.as_mut().map(push).map(|answer| Pending::Push(theirs, answer));
        }
    }

    /// The current state, for readers that can't wait.
    pub(super) fn snapshot(&self) -> Arc<State> {
        self.state.load_full()
    }
}

/// The changes by record, or by other file.
fn by_subject(changes: &[Change]) -> BTreeMap<Subject, Vec<(&str, Option<Blob>)>> {
    let mut subjects: BTreeMap<Subject, Vec<(&str, Option<Blob>)>> = BTreeMap::new();
    for change in changes {
        subjects.entry(Subject::of(&change.path)).or_default().push((&change.path, change.new));
    }
    subjects
}

#[cold]
fn conflict(own: Oid, theirs: Oid, change: &Change) -> Error {
    let error = Error::new(
        ErrorKind::Conflict,
        format!("commit {own} of this clone and commit {theirs} of the remote change the same record"),
    );
    match record_of(&change.path) {
        Some((_, key)) => error.with_key(&key),
        None => error,
    }
}

/// The time after a duration. If it is out of range, in a year.
pub(super) fn after(time: Duration) -> Instant {
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
