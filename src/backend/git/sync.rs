//! With the remote: its commits here, ours there, and what happens when both changed the same record.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use git2::Oid;

use super::{
    GitSync,
    courier::Sent,
    failure::refused,
    ledger::{Blob, Change},
    name::record_of,
    state::State,
    writer::{Expected, Writer},
};
use crate::{Error, ErrorKind, Key, Result, VersionedKind};

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
        self.offline_until.is_some_and(|until| Instant::now() < until)
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
                let mut shared = self.shared();
                (shared.answered, shared.trouble) = (Some(SystemTime::now()), None);
            }
            Err(error) => {
                self.offline_until = Some(Instant::now() + self.config.interval);
                self.next_sync = Instant::now() + self.config.interval;
                self.shared().trouble = Some(error.clone());
            }
        }
        result
    }

    fn courier(&self) -> Result<&super::courier::Courier> {
        self.courier.as_ref().ok_or_else(|| refused("the store has no remote: its configuration names none"))
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
    pub(super) fn push(&mut self) -> Result<()> {
        let (mut known, begun) = (self.ledger.tracked()?, Instant::now());
        self.held = 0;
        if self.state.load().head == known {
            // Nothing to send, if the remote still has what it had.
            known = self.fetch()?;
            self.integrate(known)?;
        }
        while begun.elapsed() < self.config.deadline {
            let Some(head) = self.state.load().head.filter(|head| Some(*head) != known) else {
                return Ok(());
            };
            let sent = self.courier()?.push(head, known);
            match self.heard(sent)? {
                Sent::Accepted => return Ok(()),
                Sent::Busy if self.is_held() => return self.heard(Err(held())),
                Sent::Busy => {
                    pause();
                    continue;
                }
                Sent::Rejected => self.held = 0,
            }
            let is_on_top = self.ledger.base(Some(head), known)? == known;
            let theirs = self.fetch()?;
            if self.is_unwanted(is_on_top && theirs == known, begun) {
                return Err(unwanted());
            }
            self.integrate(theirs)?;
            known = theirs;
            pause();
        }
        Err(Error::new(ErrorKind::Busy, "others sent their commits first, again and again"))
    }

    /// Sends a write before it is acknowledged, if that is wanted. Says whether the remote has it now; none if the write must
    /// be made again, on top of what others have sent.
    pub(super) fn send_write(&mut self, state: &State, commit: Oid, begun: Instant) -> Result<Option<bool>> {
        if self.courier.is_none() || self.config.push != GitSync::Write || self.is_offline() {
            return Ok(Some(false));
        }
        let known = self.ledger.tracked()?;
        let sent = self.courier()?.push(commit, known);
        match self.heard(sent) {
            Ok(Sent::Accepted) => {
                self.held = 0;
                return Ok(Some(true));
            }
            Ok(Sent::Rejected) => self.held = 0,
            Ok(Sent::Busy) if self.is_held() => {
                let held: Result<()> = Err(held());
                drop(self.heard(held));
                return Ok(Some(false));
            }
            Ok(Sent::Busy) => return Ok(None),
            // It is kept here, and sent later.
            Err(_) => return Ok(Some(false)),
        }
        let is_on_top = self.ledger.base(state.head, known)? == known;
        let Ok(theirs) = self.fetch() else { return Ok(Some(false)) };
        if self.is_unwanted(is_on_top && theirs == known, begun) {
            self.shared().trouble = Some(unwanted());
            return Ok(Some(false));
        }
        if is_on_top && theirs == known {
            return Ok(None);
        }
        let base = self.ledger.base(state.head, theirs)?;
        if let Some(conflict) = self.conflict(state.head, commit, base, theirs)? {
            // If an earlier commit is to blame, this write is not.
            return Err(conflict);
        }
        Ok(self.integrate(theirs).map_or(Some(false), |()| None))
    }

    /// Counts a try at which the remote's branch was held. Whether that is nobody who is only faster.
    const fn is_held(&mut self) -> bool {
        self.held += 1;
        self.held > HELD_THERE
    }

    /// Counts a try at which the remote refused commits, and whether it had moved. Whether that is no race.
    fn is_unwanted(&mut self, is_without_reason: bool, begun: Instant) -> bool {
        self.refused = if is_without_reason { self.refused + 1 } else { 0 };
        self.refused >= REFUSED && begun.elapsed() > Duration::from_secs(1)
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
                    self.next_sync = Instant::now() + self.config.interval;
                    self.expected = self.courier.as_ref().map(|courier| Expected::Fetch(courier.fetching()));
                }
            }
            Some(Expected::Fetch(answer)) => match answer.now() {
                None => self.wait_for(Expected::Fetch(answer)),
                Some(fetched) => {
                    if let Ok(theirs) = self.heard(fetched) {
                        self.go_on(theirs);
                    }
                }
            },
            Some(Expected::Push(answer)) => match answer.now() {
                None => self.wait_for(Expected::Push(answer)),
                Some(sent) => match self.heard(sent) {
                    // The next fetch sees what came between.
                    Ok(Sent::Rejected) => {
                        self.next_sync = Instant::now() + self.config.interval.min(Duration::from_secs(1))
                    }
                    Ok(Sent::Busy) => self.shared().trouble = Some(held()),
                    Ok(Sent::Accepted) | Err(_) => {}
                },
            },
        }
    }

    /// A remote that is silent is offline; its answer is taken whenever it comes.
    fn wait_for(&mut self, expected: Expected) {
        self.expected = Some(expected);
    }

    fn go_on(&mut self, theirs: Option<Oid>) {
        if self.integrate(theirs).is_err() {
            return;
        }
        let head = self.state.load().head;
        if self.config.push != GitSync::Manual && head != theirs {
            let push = |courier: &super::courier::Courier| head.map(|head| courier.pushing(head, theirs));
            self.expected = self.courier.as_ref().and_then(push).map(Expected::Push);
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

/// Before another try, so that those who were in each other's way are not again.
pub(super) fn pause() {
    std::thread::sleep(Duration::from_millis(fastrand::u64(1..60)));
}

#[cold]
fn unwanted() -> Error {
    Error::new(ErrorKind::Denied, "the remote does not take our commits: the branch may be protected")
}

#[cold]
fn held() -> Error {
    Error::new(
        ErrorKind::Busy,
        "another program holds the remote's branch; if it died, remove the branch's lock there: `refs/heads/*.lock`",
    )
}
