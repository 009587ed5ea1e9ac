//! One write: a commit, the branch, the work tree, and what readers see.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use git2::{Oid, Repository};
use tokio::runtime::Handle;

use super::{
    GitConfig, GitSync, Unsent,
    courier::{Answer, Courier},
    errand::Sent,
    ledger::Ledger,
    place::Place,
    state::{Draft, State},
    worktree::Worktree,
};
use crate::{Error, ErrorKind, Outcome, Result};

/// How often a branch is tried that another program holds.
const HELD: usize = 5;

/// So many files are synced at close; more are compared at the next start instead.
const SYNCED_AT_CLOSE: usize = 1000;

/// What is known of the remote.
#[derive(Clone, Default)]
pub(super) struct Shared {
    /// When it last answered.
    pub(super) answered: Option<SystemTime>,
    /// Why it can't be reached, or why our commits can't go there.
    pub(super) trouble: Option<Error>,
    /// Why it takes none of our commits, in its own words. They may quote what was sent: only for those who ask.
    pub(super) said: Option<String>,
    /// What closing left here.
    pub(super) unsent: Option<Unsent>,
}

/// What the remote is doing for us in the background.
pub(super) enum Expected {
    Fetch(Answer<Option<Oid>>),
    /// And what it goes on top of.
    Push(Option<Oid>, Answer<Sent>),
}

/// Whether the remote has a write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    Yes,
    /// It may have it, or may still get it.
    Perhaps,
    No,
}

/// The repository, and everything that follows its branch. Belongs to one thread.
pub(super) struct Writer {
    pub(super) place: Place,
    pub(super) ledger: Ledger,
    pub(super) worktree: Worktree,
    pub(super) state: Arc<ArcSwap<State>>,
    pub(super) config: GitConfig,
    pub(super) courier: Option<Courier>,
    /// Whether the last handle is gone, which waits for this to end.
    pub(super) is_left: Arc<AtomicBool>,
    pub(super) shared: Arc<Mutex<Shared>>,
    pub(super) expected: Option<Expected>,
    /// Until when the remote is left alone, since it did not answer.
    pub(super) offline_until: Option<Instant>,
    pub(super) next_sync: Instant,
    /// At how many tries in a row somebody held the remote's branch.
    pub(super) held: u32,
    /// At how many it refused commits for no reason that is seen.
    pub(super) refused: u32,
    /// On top of what it last refused commits in the background.
    pub(super) refused_onto: Option<Option<Oid>>,
    /// Until when nothing is sent by itself. None: it is not known to take none of our commits.
    pub(super) refused_until: Option<Instant>,
}

impl Writer {
    /// Opens the repository and reads what is in it.
    ///
    /// The remote is not waited for any more once the store `is_left`.
    pub(super) fn open(config: &GitConfig, runtime: Handle, is_left: Arc<AtomicBool>) -> Result<Self> {
        let (place, repository) = Place::open(config)?;
        let path = place.path.clone();
        let is_new = repository.refname_to_id(&config.reference()).is_err();
        let worktree = Worktree::open(&place, &repository)?;
        let ledger = Ledger::new(repository, &path, config);
        let courier = config
            .remote
            .as_ref()
            .map(|remote| {
                let remote = match super::options::local_path(remote) {
                    Some(path) => {
                        std::path::absolute(path).ok().and_then(|path| path.to_str().map(str::to_owned))
                    }
                    None => Some(remote.clone()),
                };
                let remote =
                    remote.ok_or_else(|| super::failure::refused("the remote's path is not UTF-8"))?;
                Courier::start(&place, config, remote, runtime, is_left.clone())
            })
            .transpose()?;
        let mut writer = Self {
            place,
            ledger,
            worktree,
            state: Arc::default(),
            courier,
            is_left,
            shared: Arc::default(),
            expected: None,
            offline_until: None,
            held: 0,
            refused: 0,
            refused_onto: None,
            refused_until: None,
            next_sync: super::sync::after(config.interval),
            config: config.clone(),
        };
        if let Err(error) = writer.start(is_new) {
            // An empty store would pass for a clone of the remote.
            if writer.ledger.head().is_ok_and(|head| head.is_none()) {
                writer.place.unmake();
            }
            return Err(error);
        }
        Ok(writer)
    }

    fn start(&mut self, is_new: bool) -> Result<()> {
        let _writing = self.place.begin()?;
        if is_new && self.worktree.checkpoint().is_none() {
            // Whatever comes first comes into an empty work tree.
            self.worktree.mark(None);
        }
        let head = self.ledger.head()?;
        self.adopt()?;
        self.settle(head)?;
        if self.courier.is_some() && self.config.pull != GitSync::Manual {
            match self.pull() {
                // What is here can be used, whatever is wrong with the remote.
                Err(_) if head.is_some() => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Brings the work tree to the branch, after whatever happened.
    fn settle(&mut self, head: Option<Oid>) -> Result<()> {
        let files = self.ledger.changes(None, head)?;
        let checkpoint = self.worktree.checkpoint();
        let steps = match checkpoint {
            None => Vec::new(),
            // It was a commit, and another history is there now: nothing is known of the files.
            Some(id) if !id.is_zero() && self.ledger.commit(id).is_err() => Vec::new(),
            Some(id) if Some(id) == head => Vec::new(),
            Some(id) => {
                let base = (!id.is_zero()).then_some(id);
                let shared = self.ledger.base(base, head)?;
                // Commits that the branch has lost, and those that it has won.
                let mut steps = vec![self.ledger.changes(base, shared)?];
                for commit in self.ledger.since(shared, head)? {
                    let parent = self.ledger.commit(commit)?.parent_ids().next();
                    steps.push(self.ledger.changes(parent, Some(commit))?);
                }
                steps
            }
        };
        self.worktree.settle(&self.ledger.repository, &files, &steps)?;
        if self.worktree.unsynced() == 0 {
            self.worktree.mark(head);
        }
        Ok(())
    }

    pub(super) fn shared(&self) -> MutexGuard<'_, Shared> {
        // Each change of it is whole.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what others have committed to the branch with git.
    pub(super) fn adopt(&mut self) -> Result<()> {
        let (head, state) = (self.ledger.head()?, self.state.load_full());
        if head != state.head {
            let next = self.state_at(&state, head)?;
            self.state.store(Arc::new(next));
        }
        Ok(())
    }

    /// The state of another commit.
    pub(super) fn state_at(&self, state: &State, head: Option<Oid>) -> Result<State> {
        let changes = self.ledger.changes(state.head, head)?;
        let mut next = state.clone();
        next.follow(&self.ledger.files(head)?, changes.iter().map(|change| &*change.path))?;
        next.head = head;
        Ok(next)
    }

    /// Makes a change: one commit, or none if it changes nothing.
    ///
    /// The change is made again if others were first, until the deadline of the call.
    pub(super) fn commit<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut change: impl FnMut(&mut Draft<'_>) -> Result<T>,
    ) -> Result<T> {
        let _writing = self.place.begin()?;
        self.adopt()?;
        if self.courier.is_some() && self.config.pull == GitSync::Write && !self.is_offline() {
            // What can't be fetched now is fetched later.
            drop(self.pull());
        }
        let (begun, mut held) = (Instant::now(), 0);
        while begun.elapsed() < deadline {
            let state = self.state.load_full();
            let mut draft = Draft::new(State::clone(&state), self.ledger.files(state.head)?);
            let value = change(&mut draft)?;
            let (next, changes) = draft.into_parts();
            let Some(commit) = self.ledger.write(state.head, &changes, what)? else { return Ok(value) };
            // What can't be read is not sent.
            let next = match next {
                Some(mut next) => {
                    next.head = Some(commit);
                    next
                }
                None => self.state_at(&state, Some(commit))?,
            };
            let Some(reached) = self.send_write(&state, commit, begun)? else {
                super::sync::pause();
                continue;
            };
            return match self.move_to(commit, next) {
                Ok(()) => Ok(value),
                // The remote has it, or may; another program holds the branch here.
                Err(error) if reached != Reached::No => Err(error.with_outcome(Outcome::Unknown)),
                Err(error)
                    if error.outcome() == Outcome::NotApplied
                        && error.kind() == ErrorKind::Busy
                        && held < HELD =>
                {
                    held += 1;
                    super::sync::pause();
                    self.adopt()?;
                    continue;
                }
                Err(error) => Err(error),
            };
        }
        Err(Error::new(ErrorKind::Timeout, "the deadline passed before the change could be committed"))
    }

    /// Moves the branch, then the files, then what readers see.
    pub(super) fn move_to(&mut self, commit: Oid, next: State) -> Result<()> {
        let before = self.state.load().head;
        let changes = self.ledger.changes(before, Some(commit))?;
        self.ledger.advance(before, commit, "gateway-storage")?;
        self.state.store(Arc::new(next));
        if self.ledger.is_checked_out() {
            self.worktree.follow(&self.ledger.repository, &changes);
        }
        Ok(())
    }

    /// The repository, for what only reads it.
    pub(super) const fn repository(&self) -> &Repository {
        &self.ledger.repository
    }

    /// What an operator should know of the work tree.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.ledger.is_checked_out() {
            warnings.push(
                "the store's branch is not checked out: the work tree and the index are left as they are"
                    .to_owned(),
            );
            return warnings;
        }
        let left = self.worktree.left();
        if left > 0 {
            warnings.push(format!("{left} files of the work tree could not follow the branch: they hold changes that are in no commit"));
        }
        if self.worktree.is_behind() {
            warnings
                .push("another program holds the index: `git status` shows changes that are none".to_owned());
        }
        warnings
    }

    /// Whether there is something to do when nobody asks for anything.
    pub(super) fn is_untidy(&self) -> bool {
        self.worktree.unsynced() > 0 || self.worktree.is_behind()
    }

    pub(super) fn tidy(&mut self) {
        if self.is_untidy()
            && let Ok(_writing) = self.place.begin()
        {
            let head = self.state.load().head;
            self.tidy_up(head, false);
        }
    }

    fn tidy_up(&mut self, head: Option<Oid>, all: bool) {
        if self.ledger.is_checked_out() {
            self.worktree.tidy(head, all);
        } else {
            self.worktree.leave();
        }
    }

    /// The last thing: sends what was not sent, if someone waits for that, and leaves everything in order.
    pub(super) fn finish(&mut self, is_waited_for: bool) {
        if is_waited_for && self.config.push != GitSync::Manual && self.is_ahead() {
            // It stays here, and goes out after the next start.
            let pushed =
                if self.is_offline() || self.is_refused() { Ok(()) } else { self.push(self.config.deadline) };
            let commits = self.counts().map_or(0, |(ahead, _)| ahead);
            let mut shared = self.shared();
            let reason = pushed.err().or_else(|| shared.trouble.clone());
            shared.unsent = (commits > 0).then_some(Unsent { commits, reason });
        }
        if let Ok(_writing) = self.place.begin() {
            let (head, all) = (self.state.load().head, self.worktree.unsynced() <= SYNCED_AT_CLOSE);
            if all {
                self.tidy_up(head, true);
            }
        }
        self.state.store(Arc::new(State::closed()));
    }
}
