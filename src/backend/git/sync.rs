//! With the remote: its commits here, ours there, and what happens when both changed the same record.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use git2::Oid;

use super::{
    GitSync,
    errand::Sent,
    failure::refused,
    ledger::{Blob, Change},
    name::record_of,
    state::State,
    writer::{Expected, Reached, Writer},
};
use crate::{Error, ErrorKind, Key, Outcome, Result, VersionedKind};

/// How often in a row a branch of the remote is tried that is held there: about a second.
const HELD_THERE: u32 = 30;

/// How often in a row the remote may refuse commits that stand on its own, while another one is sending.
const REFUSED: u32 = 5;

/// What a change is about: a record by its key, whatever its file's name is, or another file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Subject {
    Record(VersionedKind, Key),
    File(String),
}

impl Subject {
    fn of(path: &str) -> Self {
        record_of(path).map_or_else(|| Self::File(path.to_owned()), |(kind, key)| Self::Record(kind, key))
    }
}

impl Writer {
    /// Whether the remote is left alone for now.
    pub(super) fn is_offline(&self) -> bool {
        self.is_left.load(Ordering::Acquire) || self.offline_until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether there are commits here that the remote is not known to have.
    pub(super) fn is_ahead(&self) -> bool {
        self.courier.is_some() && self.counts().is_ok_and(|(ahead, _)| ahead > 0)
    }

    /// How many commits are only here, and only there, as far as is known.
    pub(super) fn counts(&self) -> Result<(usize, usize)> {
        let (head, tracked) = (self.state.load().head, self.ledger.tracked()?);
        let base = self.ledger.base(head, tracked)?;
        Ok((self.ledger.since(base, head)?.len(), self.ledger.since(base, tracked)?.len()))
    }

    /// Notes what came of speaking to the remote.
    fn heard<T>(&mut self, result: Result<T>) -> Result<T> {
        match &result {
            Ok(_) => {
                self.offline_until = None;
                // That it answers does not mean that it takes our commits.
                let trouble = self.refused_until.map(|_| unwanted());
                let mut shared = self.shared();
                (shared.answered, shared.trouble) = (Some(SystemTime::now()), trouble);
            }
            Err(error) => {
                self.offline_until = Some(after(self.config.interval));
                self.next_sync = after(self.config.interval);
                self.shared().trouble = Some(error.clone());
            }
        }
        result
    }

    /// The same, of commits that were sent.
    fn heard_of(&mut self, sent: Result<Sent>) -> Result<Sent> {
        let sent = self.heard(sent)?;
        match &sent {
            Sent::Accepted => {
                (self.held, self.refused, self.refused_until) = (0, 0, None);
                let mut shared = self.shared();
                (shared.trouble, shared.said) = (None, None);
            }
            Sent::Rejected(said) => {
                self.held = 0;
                if said.is_some() {
                    self.shared().said.clone_from(said);
                }
            }
            Sent::Busy => {}
        }
        Ok(sent)
    }

    /// Whether nothing is sent by itself for now, since the remote is known to take none of our commits.
    pub(super) fn is_refused(&self) -> bool {
        self.refused_until.is_some_and(|until| Instant::now() < until)
    }

    /// Leaves the remote, which takes none of our commits, alone for a while.
    fn give_up(&mut self) -> Error {
        self.refused_until = Some(after(self.config.interval));
        let error = unwanted();
        self.shared().trouble = Some(error.clone());
        error
    }

    fn courier(&mut self) -> Result<&mut super::courier::Courier> {
        self.courier.as_mut().ok_or_else(|| refused("the store has no remote: its configuration names none"))
    }

    fn fetch(&mut self) -> Result<Option<Oid>> {
        let fetched = self.courier()?.fetch();
        self.heard(fetched)
    }

    /// Fetches the remote's commits, and puts ours on top of them.
    pub(super) fn pull(&mut self) -> Result<()> {
        let theirs = self.fetch()?;
        self.integrate(theirs)
    }

    /// Sends our commits, on top of the remote's.
    pub(super) fn push(&mut self, deadline: Duration) -> Result<()> {
        let (mut known, begun) = (self.ledger.tracked()?, Instant::now());
        self.held = 0;
        if self.state.load().head == known {
            // Nothing to send, if the remote still has what it had.
            known = self.fetch()?;
            self.integrate(known)?;
        }
        while begun.elapsed() < deadline {
            let Some(head) = self.state.load().head.filter(|head| Some(*head) != known) else {
                return Ok(());
            };
            let sent = self.courier()?.push(head, known);
            match self.heard_of(sent)? {
                Sent::Accepted => return Ok(()),
                Sent::Busy if self.is_held() => return self.heard(Err(held())),
                Sent::Busy => {
                    pause();
                    continue;
                }
                Sent::Rejected(_) => {}
            }
            let is_on_top = self.ledger.base(Some(head), known)? == known;
            let theirs = self.fetch()?;
            if self.is_unwanted(is_on_top && theirs == known, begun) {
                return Err(self.give_up());
            }
            self.integrate(theirs)?;
            known = theirs;
            pause();
        }
        Err(Error::new(ErrorKind::Busy, "others sent their commits first, again and again"))
    }

    /// Sends a write before it is acknowledged, if that is wanted. Says whether the remote has it; none if the write must
    /// be made again, on top of what others have sent.
    pub(super) fn send_write(
        &mut self,
        state: &State,
        commit: Oid,
        begun: Instant,
    ) -> Result<Option<Reached>> {
        let is_wanted = self.courier.is_some() && self.config.push == GitSync::Write;
        if !is_wanted || self.is_offline() || self.is_refused() {
            return Ok(Some(Reached::No));
        }
        let known = self.ledger.tracked()?;
        let sent = self.courier()?.push(commit, known);
        match self.heard_of(sent) {
            Ok(Sent::Accepted) => return Ok(Some(Reached::Yes)),
            Ok(Sent::Rejected(_)) => {}
            Ok(Sent::Busy) if self.is_held() => {
                let held: Result<()> = Err(held());
                drop(self.heard(held));
                return Ok(Some(Reached::No));
            }
            Ok(Sent::Busy) => return Ok(None),
            // It is kept here, and sent later.
            Err(error) if error.outcome() == Outcome::NotApplied => return Ok(Some(Reached::No)),
            Err(_) => return Ok(Some(Reached::Perhaps)),
        }
        let is_on_top = self.ledger.base(state.head, known)? == known;
        let Ok(theirs) = self.fetch() else { return Ok(Some(Reached::No)) };
        if self.is_unwanted(is_on_top && theirs == known, begun) {
            drop(self.give_up());
            return Ok(Some(Reached::No));
        }
        if is_on_top && theirs == known {
            return Ok(None);
        }
        let base = self.ledger.base(state.head, theirs)?;
        if let Some(conflict) = self.conflict(state.head, commit, base, theirs)? {
            // If an earlier commit is to blame, this write is not.
            return Err(conflict);
        }
        Ok(self.integrate(theirs).map_or(Some(Reached::No), |()| None))
    }

    /// Counts a try at which the remote's branch was held. Whether that is nobody who is only faster.
    const fn is_held(&mut self) -> bool {
        self.held += 1;
        self.held > HELD_THERE
    }

    /// Counts a try at which the remote refused commits, and whether it had moved. Whether that is no race.
    fn is_unwanted(&mut self, is_without_reason: bool, begun: Instant) -> bool {
        self.refused = if is_without_reason { self.refused.saturating_add(1) } else { 0 };
        let is_known = self.refused_until.is_some();
        is_without_reason && (is_known || self.refused >= REFUSED && begun.elapsed() > Duration::from_secs(1))
    }

    /// Takes the remote's commits over, with those that are only here on top of them.
    ///
    /// Nothing changes if a record was changed on both sides, or if what the remote has can't be read; that is noted.
    pub(super) fn integrate(&mut self, theirs: Option<Oid>) -> Result<()> {
        let taken = self.take_over(theirs);
        if let Err(error) = &taken {
            self.shared().trouble = Some(error.clone());
        }
        taken
    }

    fn take_over(&mut self, theirs: Option<Oid>) -> Result<()> {
        let _writing = self.place.begin()?;
        self.adopt()?;
        let state = self.state.load_full();
        let base = self.ledger.base(state.head, theirs)?;
        let Some(theirs) = theirs.filter(|theirs| Some(*theirs) != base) else { return Ok(()) };
        let tip = if base == state.head { theirs } else { self.rebase(state.head, base, theirs)? };
        let next = self.state_at(&state, Some(tip))?;
        self.move_to(tip, next)
    }

    /// Makes our commits again, on top of the remote's, and gives the last one.
    fn rebase(&mut self, head: Option<Oid>, base: Option<Oid>, theirs: Oid) -> Result<Oid> {
        let (own, changed) = (self.ledger.since(base, head)?, self.ledger.changes(base, Some(theirs))?);
        let changed = by_subject(&changed);
        let both: HashSet<Subject> = by_subject(&self.ledger.changes(base, head)?)
            .into_iter()
            .filter(|(subject, files)| changed.get(subject) == Some(files))
            .map(|(subject, _)| subject)
            .collect();
        let mut tip = theirs;
        for id in own {
            let commit = self.ledger.commit(id)?;
            if commit.parent_count() > 1 {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("commit {id} is a merge that the remote has not: bring both together with git"),
                )
                .with_retryable(false));
            }
            let mut changes = self.ledger.changes(commit.parent_ids().next(), Some(id))?;
            changes.retain(|change| !both.contains(&Subject::of(&change.path)));
            if let Some(change) =
                changes.iter().find(|change| changed.contains_key(&Subject::of(&change.path)))
            {
                let culprit = self.culprit(base, theirs, &Subject::of(&change.path))?;
                let newest = self.culprit(base, head.unwrap_or(id), &Subject::of(&change.path))?;
                return Err(conflict(newest, culprit, change));
            }
            if let Some(made) = self.ledger.replay(tip, &commit, &changes)? {
                tip = made;
            }
        }
        Ok(tip)
    }

    /// Whether a write that is not on the branch yet changes what others changed.
    fn conflict(
        &self,
        head: Option<Oid>,
        commit: Oid,
        base: Option<Oid>,
        theirs: Option<Oid>,
    ) -> Result<Option<Error>> {
        let Some(theirs) = theirs else { return Ok(None) };
        let (own, changed) =
            (self.ledger.changes(head, Some(commit))?, self.ledger.changes(base, Some(theirs))?);
        let changed = by_subject(&changed);
        let wanted = by_subject(&own);
        for change in &own {
            let subject = Subject::of(&change.path);
            if changed.get(&subject).is_some_and(|files| Some(files) != wanted.get(&subject)) {
                return Ok(Some(conflict(commit, self.culprit(base, theirs, &subject)?, change)));
            }
        }
        Ok(None)
    }

    /// The newest commit that changed this.
    fn culprit(&self, base: Option<Oid>, tip: Oid, subject: &Subject) -> Result<Oid> {
        for id in self.ledger.since(base, Some(tip))?.into_iter().rev() {
            let parent = self.ledger.commit(id)?.parent_ids().next();
            if self
                .ledger
                .changes(parent, Some(id))?
                .iter()
                .any(|change| Subject::of(&change.path) == *subject)
            {
                return Ok(id);
            }
        }
        Ok(tip)
    }

    /// Whether the remote owes an answer.
    pub(super) const fn is_expecting(&self) -> bool {
        self.expected.is_some()
    }

    /// When the remote is spoken to again by itself.
    pub(super) fn next_sync(&self) -> Option<Instant> {
        let wants = self.config.pull == GitSync::Interval || self.config.push != GitSync::Manual;
        (self.courier.is_some() && wants).then_some(self.next_sync)
    }

    /// What is due in the background. Never waits for the remote.
    pub(super) fn sync(&mut self) {
        match self.expected.take() {
            None => {
                if self.next_sync().is_some_and(|due| Instant::now() >= due) {
                    self.next_sync = after(self.config.interval);
                    self.expected = self.courier.as_mut().map(|courier| Expected::Fetch(courier.fetching()));
                }
            }
            Some(Expected::Fetch(answer)) => match answer.now() {
                None => self.expected = Some(Expected::Fetch(answer)),
                Some(fetched) => {
                    if let Ok(theirs) = self.heard(fetched) {
                        self.go_on(theirs);
                    }
                }
            },
            Some(Expected::Push(onto, answer)) => match answer.now() {
                None => self.expected = Some(Expected::Push(onto, answer)),
                Some(sent) => match self.heard_of(sent) {
                    Ok(Sent::Rejected(_)) => self.was_refused(onto),
                    Ok(Sent::Busy) => self.shared().trouble = Some(held()),
                    Ok(Sent::Accepted) | Err(_) => {}
                },
            },
        }
    }

    /// Notes that the remote refused what it was sent in the background.
    fn was_refused(&mut self, onto: Option<Oid>) {
        let is_same = self.refused_onto.replace(onto) == Some(onto);
        self.refused = if is_same { self.refused.saturating_add(1) } else { 1 };
        if self.refused_until.is_some() || self.refused >= REFUSED {
            drop(self.give_up());
        } else {
            // The next fetch sees what came between.
            self.next_sync = after(self.config.interval.min(Duration::from_secs(1)));
        }
    }

    fn go_on(&mut self, theirs: Option<Oid>) {
        if self.integrate(theirs).is_err() {
            return;
        }
        let Some(head) = self.state.load().head.filter(|head| Some(*head) != theirs) else { return };
        if self.config.push != GitSync::Manual && !self.is_refused() {
            let push = |courier: &mut super::courier::Courier| courier.pushing(head, theirs);
            self.expected = self.courier.as_mut().map(push).map(|answer| Expected::Push(theirs, answer));
        }
    }

    /// What the branch is at, for readers that can't wait.
    pub(super) fn snapshot(&self) -> Arc<State> {
        self.state.load_full()
    }
}

/// What became of each record, or other file, that changed.
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

/// When so much time will have passed. What is beyond all clocks is in a year.
pub(super) fn after(time: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    let now = Instant::now();
    now.checked_add(time).unwrap_or(now + YEAR)
}

/// Before another try, so that those who were in each other's way are not again.
pub(super) fn pause() {
    std::thread::sleep(Duration::from_millis(fastrand::u64(1..60)));
}

#[cold]
fn unwanted() -> Error {
    Error::new(
        ErrorKind::Denied,
        "the remote does not take our commits: the branch may be protected; the stats have its own words, if it has any",
    )
}

#[cold]
fn held() -> Error {
    Error::new(
        ErrorKind::Busy,
        "another program holds the remote's branch; if it died, remove the branch's lock there: `refs/heads/*.lock`",
    )
}
