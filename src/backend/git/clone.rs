//! The local clone: the repository, and the work tree and state that follow its branch.

use std::sync::Arc;

use arc_swap::ArcSwap;
use git2::Oid;

use super::{
    GitOptions,
    branch::{Branch, Change},
    marker::MarkerGuard,
    repository::LockedRepository,
    state::State,
    watchers::Watchers,
    worktree::Worktree,
};
use crate::Result;

/// The most files that are synced at close; with more, the next start compares them instead.
const SYNCED_AT_CLOSE: usize = 1000;

/// The repository, its branch, the work tree, and the state that readers see. Used by one thread.
pub(super) struct LocalClone {
    pub(super) locked_repository: LockedRepository,
    pub(super) branch: Branch,
    pub(super) state: Arc<ArcSwap<State>>,
    pub(super) watchers: Watchers,
    worktree: Worktree,
}

impl LocalClone {
    /// Opens the repository. Its records are not read yet.
    pub(super) fn open(options: &GitOptions, watchers: Watchers) -> Result<Self> {
        let (locked_repository, repository) = LockedRepository::open(options)?;
        let worktree = Worktree::open(&locked_repository, &repository)?;
        let branch = Branch::new(repository, &locked_repository.path, options);
        Ok(Self { locked_repository, branch, state: Arc::default(), watchers, worktree })
    }

    /// Reads the records, and brings the work tree to the branch.
    pub(super) fn start(&mut self) -> Result<()> {
        let head = self.branch.head();
        if !matches!(head, Ok(Some(_))) && self.worktree.checkpoint().is_none() {
            // The first commit will find an empty work tree.
            self.worktree.mark(None);
        }
        let head = head?;
        self.refresh()?;
        let files = self.branch.changes(None, head)?;
        let steps = match self.worktree.checkpoint() {
            None => Vec::new(),
            // The commit of the checkpoint was removed with its history: nothing is known about the files.
            Some(id) if !id.is_zero() && self.branch.commit(id).is_err() => Vec::new(),
            Some(id) if Some(id) == head => Vec::new(),
            Some(id) => {
                let base = (!id.is_zero()).then_some(id);
                let shared = self.branch.base(base, head)?;
                // The commits that the branch lost, then those that it gained.
                let mut steps = vec![self.branch.changes(base, shared)?];
                for commit in self.branch.since(shared, head)? {
                    steps.push(self.branch.changes_of(&self.branch.commit(commit)?)?);
                }
                steps
            }
        };
        self.worktree.restore(&self.branch.repository, &files, &steps)?;
        if self.worktree.unsynced.is_empty() {
            self.worktree.mark(head);
        }
        Ok(())
    }

    /// Marks on disk that locks of the repository may belong to this process, until the result is dropped.
    pub(super) fn begin(&self) -> Result<MarkerGuard> {
        self.locked_repository.writing.begin()
    }

    /// The current state, for readers that can't wait.
    pub(super) fn snapshot(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// The commit of the current state.
    pub(super) fn head(&self) -> Option<Oid> {
        self.state.load().head
    }

    /// Reads the commits that others made on the branch with git.
    pub(super) fn refresh(&mut self) -> Result<()> {
        let (head, state) = (self.branch.head()?, self.snapshot());
        if head != state.head {
            let (next, changes) = self.state_at(&state, head)?;
            self.publish(next, &changes);
        }
        Ok(())
    }

    /// Has readers see this state, in which these files differ.
    fn publish(&self, state: State, changes: &[Change]) {
        let head = state.head;
        self.state.store(Arc::new(state));
        self.watchers.tell(head, changes);
    }

    /// The state of another commit, and the files in which it differs.
    pub(super) fn state_at(&self, state: &State, head: Option<Oid>) -> Result<(State, Vec<Change>)> {
        let changes = self.branch.changes(state.head, head)?;
        let mut next = state.clone();
        next.follow(&self.branch.files(head)?, changes.iter().map(|change| &*change.path))?;
        next.head = head;
        Ok((next, changes))
    }

    /// Moves the branch, then the files, then the state that readers see.
    pub(super) fn move_to(&mut self, commit: Oid, next: State) -> Result<()> {
        let before = self.head();
        let changes = self.branch.changes(before, Some(commit))?;
        self.branch.advance(before, commit, "gateway-storage")?;
        self.publish(next, &changes);
        if self.branch.is_checked_out() {
            self.worktree.follow(&self.branch.repository, &changes);
        }
        Ok(())
    }

    /// The numbers of commits that only this clone and only the remote have, as far as known.
    pub(super) fn counts(&self) -> Result<(usize, usize)> {
        let (head, tracked) = (self.head(), self.branch.tracked()?);
        let base = self.branch.base(head, tracked)?;
        Ok((self.branch.since(base, head)?.len(), self.branch.since(base, tracked)?.len()))
    }

    /// Warnings about the work tree.
    pub(super) fn warnings(&self) -> Vec<String> {
        if !self.branch.is_checked_out() {
            let warning =
                "the store's branch is not checked out: the work tree and the index are not updated";
            return vec![warning.to_owned()];
        }
        let mut warnings = Vec::new();
        let skipped = self.worktree.skipped.len();
        if skipped > 0 {
            warnings.push(format!(
                "{skipped} files of the work tree did not follow the branch: they have uncommitted changes"
            ));
        }
        if !self.worktree.unindexed.is_empty() {
            let warning =
                "another program has locked the index: `git status` shows changes that do not exist";
            warnings.push(warning.to_owned());
        }
        warnings
    }

    /// Whether files or the index are not up to date on disk.
    pub(super) fn has_unsynced(&self) -> bool {
        !self.worktree.unsynced.is_empty() || !self.worktree.unindexed.is_empty()
    }

    /// Syncs some files of the work tree, if it is not up to date on disk.
    pub(super) fn sync_files(&mut self) {
        if self.has_unsynced()
            && let Ok(_writing) = self.begin()
        {
            self.sync_worktree(false);
        }
    }

    fn sync_worktree(&mut self, all: bool) {
        if self.branch.is_checked_out() {
            self.worktree.sync(self.head(), all);
        } else {
            self.worktree.reset();
        }
    }

    /// Leaves the work tree consistent, and closes the state for readers.
    pub(super) fn finish(&mut self) {
        if let Ok(_writing) = self.begin()
            && self.worktree.unsynced.len() <= SYNCED_AT_CLOSE
        {
            self.sync_worktree(true);
        }
        self.state.store(Arc::new(State::closed()));
        self.watchers.close();
    }
}
