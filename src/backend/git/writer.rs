//! One write: the commit, the branch, the work tree, and the state that readers see.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use git2::{Oid, Repository};
use tokio::runtime::Handle;

use super::{
    GitOptions, GitSync, Unsent,
    branch::Branch,
    remote::{Answer, Remote},
    repository::LockedRepository,
    request::Sent,
    state::{Draft, State},
    worktree::Worktree,
};
use crate::{Error, ErrorKind, Outcome, Result};

/// Attempts to move a branch that another program has locked.
const MAX_LOCKED: usize = 5;

/// The most files that are synced at close; with more, the next start compares them instead.
const SYNCED_AT_CLOSE: usize = 1000;

/// The state of the remote.
#[derive(Clone, Default)]
pub(super) struct Shared {
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
pub(super) enum Pending {
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

/// The repository, and everything that follows its branch. Used by one thread.
pub(super) struct Writer {
    pub(super) locked_repository: LockedRepository,
    pub(super) branch: Branch,
    pub(super) worktree: Worktree,
    pub(super) state: Arc<ArcSwap<State>>,
    pub(super) config: GitOptions,
    pub(super) remote: Option<Remote>,
    /// Whether the last handle was dropped; its drop waits for this thread.
    pub(super) is_dropped: Arc<AtomicBool>,
    pub(super) shared: Arc<Mutex<Shared>>,
    pub(super) pending: Option<Pending>,
    /// The end of the time in which the remote is not contacted, because it did not answer.
    pub(super) offline_until: Option<Instant>,
    pub(super) next_sync: Instant,
    /// Consecutive attempts at which another program had locked the remote's branch.
    pub(super) locked: u32,
    /// Consecutive pushes that the remote rejected for no visible reason.
    pub(super) rejected: u32,
    /// The base of the last push in the background that was rejected.
    pub(super) rejected_base: Option<Option<Oid>>,
    /// The end of the time in which nothing is sent automatically. None: the remote is not known to reject
    /// our commits.
    pub(super) rejected_until: Option<Instant>,
}

impl Writer {
    /// Opens the repository and reads its records.
    ///
    /// It waits for the remote no longer once `is_dropped` is set.
    pub(super) fn open(config: &GitOptions, runtime: Handle, is_dropped: Arc<AtomicBool>) -> Result<Self> {
        let (locked_repository, repository) = LockedRepository::open(config)?;
        let path = locked_repository.path.clone();
        let is_new = repository.refname_to_id(&config.reference()).is_err();
        let worktree = Worktree::open(&locked_repository, &repository)?;
        let branch = Branch::new(repository, &path, config);
        let remote = config
            .remote
            .as_ref()
            .map(|remote| {
                let remote = match super::options::local_path(remote) {
                    Some(path) => {
                        std::path::absolute(path).ok().and_then(|path| path.to_str().map(str::to_owned))
                    }
                    None => Some(remote.clone()),
                };
                let remote = remote.ok_or_else(|| super::error::refused("the remote's path is not UTF-8"))?;
                Remote::start(&locked_repository, config, remote, runtime, is_dropped.clone())
            })
            .transpose()?;
        let mut writer = Self {
            locked_repository,
            branch,
            worktree,
            state: Arc::default(),
            remote,
            is_dropped,
            shared: Arc::default(),
            pending: None,
            offline_until: None,
            locked: 0,
            rejected: 0,
            rejected_base: None,
            rejected_until: None,
            next_sync: super::sync::after(config.interval),
            config: config.clone(),
        };
        if let Err(error) = writer.start(is_new) {
            // An empty store would look like a clone of the remote.
            if writer.branch.head().is_ok_and(|head| head.is_none()) {
                writer.locked_repository.remove_new();
            }
            return Err(error);
        }
        Ok(writer)
    }

    fn start(&mut self, is_new: bool) -> Result<()> {
        let _writing = self.locked_repository.begin()?;
        if is_new && self.worktree.checkpoint().is_none() {
            // The first commit will find an empty work tree.
            self.worktree.mark(None);
        }
        let head = self.branch.head()?;
        self.refresh()?;
        self.restore(head)?;
        if self.remote.is_some() && self.config.pull != GitSync::Manual {
            match self.pull() {
                // An existing store can be used whatever is wrong with the remote.
                Err(_) if head.is_some() => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Brings the work tree to the branch at the start.
    fn restore(&mut self, head: Option<Oid>) -> Result<()> {
        let files = self.branch.changes(None, head)?;
        let checkpoint = self.worktree.checkpoint();
        let steps = match checkpoint {
            None => Vec::new(),
            // The commit of the checkpoint is gone with its history: nothing is known about the files.
            Some(id) if !id.is_zero() && self.branch.commit(id).is_err() => Vec::new(),
            Some(id) if Some(id) == head => Vec::new(),
            Some(id) => {
                let base = (!id.is_zero()).then_some(id);
                let shared = self.branch.base(base, head)?;
                // The commits that the branch lost, then those that it gained.
                let mut steps = vec![self.branch.changes(base, shared)?];
                for commit in self.branch.since(shared, head)? {
                    let parent = self.branch.commit(commit)?.parent_ids().next();
                    steps.push(self.branch.changes(parent, Some(commit))?);
                }
                steps
            }
        };
        self.worktree.restore(&self.branch.repository, &files, &steps)?;
        if self.worktree.unsynced() == 0 {
            self.worktree.mark(head);
        }
        Ok(())
    }

    pub(super) fn shared(&self) -> MutexGuard<'_, Shared> {
        // Each change is complete, so a poisoned lock is safe to use.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the commits that others made on the branch with git.
    pub(super) fn refresh(&mut self) -> Result<()> {
        let (head, state) = (self.branch.head()?, self.state.load_full());
        if head != state.head {
            let next = self.state_at(&state, head)?;
            self.state.store(Arc::new(next));
        }
        Ok(())
    }

    /// The state of another commit.
    pub(super) fn state_at(&self, state: &State, head: Option<Oid>) -> Result<State> {
        let changes = self.branch.changes(state.head, head)?;
        let mut next = state.clone();
        next.follow(&self.branch.files(head)?, changes.iter().map(|change| &*change.path))?;
        next.head = head;
        Ok(next)
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
        let _writing = self.locked_repository.begin()?;
        self.refresh()?;
        if self.remote.is_some() && self.config.pull == GitSync::Write && !self.is_offline() {
            // If this fails, a later fetch will do.
            drop(self.pull());
        }
        let (begun, mut locked) = (Instant::now(), 0);
        while begun.elapsed() < deadline {
            let state = self.state.load_full();
            let mut draft = Draft::new(State::clone(&state), self.branch.files(state.head)?);
            let value = change(&mut draft)?;
            let (next, changes) = draft.into_parts();
            let Some(commit) = self.branch.write(state.head, &changes, what)? else { return Ok(value) };
            // A record that can't be read is not sent.
            let next = match next {
                Some(mut next) => {
                    next.head = Some(commit);
                    next
                }
                None => self.state_at(&state, Some(commit))?,
            };
            let Some(delivery) = self.send_write(&state, commit, begun)? else {
                super::sync::pause();
                continue;
            };
            return match self.move_to(commit, next) {
                Ok(()) => Ok(value),
                // The remote has the write, or may have it, but another program has locked the branch here.
                Err(error) if delivery != Delivery::No => Err(error.with_outcome(Outcome::Unknown)),
                Err(error)
                    if error.outcome() == Outcome::NotApplied
                        && error.kind() == ErrorKind::Busy
                        && locked < MAX_LOCKED =>
                {
                    locked += 1;
                    super::sync::pause();
                    self.refresh()?;
                    continue;
                }
                Err(error) => Err(error),
            };
        }
        Err(Error::new(ErrorKind::Timeout, "the deadline passed before the change could be committed"))
    }

    /// Moves the branch, then the files, then the state that readers see.
    pub(super) fn move_to(&mut self, commit: Oid, next: State) -> Result<()> {
        let before = self.state.load().head;
        let changes = self.branch.changes(before, Some(commit))?;
        self.branch.advance(before, commit, "gateway-storage")?;
        self.state.store(Arc::new(next));
        if self.branch.is_checked_out() {
            self.worktree.follow(&self.branch.repository, &changes);
        }
        Ok(())
    }

    /// The repository, for reading.
    pub(super) const fn repository(&self) -> &Repository {
        &self.branch.repository
    }

    /// Warnings about the work tree.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.branch.is_checked_out() {
            warnings.push(
                "the store's branch is not checked out: the work tree and the index are not updated"
                    .to_owned(),
            );
            return warnings;
        }
        let skipped = self.worktree.skipped();
        if skipped > 0 {
            warnings.push(format!(
                "{skipped} files of the work tree did not follow the branch: they have uncommitted changes"
            ));
        }
        if self.worktree.has_unindexed() {
            warnings.push(
                "another program has locked the index: `git status` shows changes that do not exist"
                    .to_owned(),
            );
        }
        warnings
    }

    /// Whether files or the index are not up to date on disk.
    pub(super) fn has_unsynced(&self) -> bool {
        self.worktree.unsynced() > 0 || self.worktree.has_unindexed()
    }

    pub(super) fn sync_files(&mut self) {
        if self.has_unsynced()
            && let Ok(_writing) = self.locked_repository.begin()
        {
            let head = self.state.load().head;
            self.sync_worktree(head, false);
        }
    }

    fn sync_worktree(&mut self, head: Option<Oid>, all: bool) {
        if self.branch.is_checked_out() {
            self.worktree.sync(head, all);
        } else {
            self.worktree.reset();
        }
    }

    /// Ends the writer. Sends unsent commits if the caller waits for that, and leaves the work tree
    /// consistent.
    pub(super) fn finish(&mut self, is_waited_for: bool) {
        if is_waited_for && self.config.push != GitSync::Manual && self.is_ahead() {
            // Commits that can't be sent stay here and are sent after the next start.
            let pushed = if self.is_offline() || self.is_rejected() {
                Ok(())
            } else {
                self.push(self.config.deadline)
            };
            let commits = self.counts().map_or(0, |(ahead, _)| ahead);
            let mut shared = self.shared();
            let reason = pushed.err().or_else(|| shared.problem.clone());
            shared.unsent = (commits > 0).then_some(Unsent { commits, reason });
        }
        if let Ok(_writing) = self.locked_repository.begin() {
            let (head, all) = (self.state.load().head, self.worktree.unsynced() <= SYNCED_AT_CLOSE);
            if all {
                self.sync_worktree(head, true);
            }
        }
        self.state.store(Arc::new(State::closed()));
    }
}
