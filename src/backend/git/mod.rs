//! [`Git`]: every change is a commit.

mod branch;
mod clone;
mod config;
mod credential;
mod error;
mod export;
mod history;
mod marker;
mod name;
mod options;
mod packs;
mod rebase;
mod remote;
mod remote_thread;
mod repository;
mod request;
mod state;
mod sync;
mod text;
mod worker;
mod worktree;
mod writer;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
pub use options::{GitOptions, GitSync};
use serde_json::{Value, json};
use state::{Draft, State};
use sync::SyncStatus;
use worker::Worker;
use writer::Writer;

use crate::{
    Backend, Error, ErrorKind, Open, Result, StorageStats, codec::rfc3339_seconds, history::CommitId,
    layer::time_left, model::with_causes,
};

/// A store in a Git repository, for a small team's credentials and configuration, with a history that can be
/// reviewed and reverted. Experimental.
///
/// Open it with `git:PATH` or a [`GitOptions`]. It stores credentials and configuration, exports, imports, and
/// keeps a [history](crate::History). It has no usage counters, no cache and no transactions.
///
/// # What deleting means
///
/// **A commit is permanent.** A deleted or replaced credential stays in the history of this repository, of
/// its remote and of every clone, readable by every user with access to one. Revoke it where it was issued.
/// To remove it from the history as well, rewrite the history in every clone with a tool such as
/// `git filter-repo`, while no store is open there; a server may still keep the old commits. A clone that was
/// forgotten does not restore commits that it knows to have been at the remote, see below. The files are not
/// encrypted.
///
/// # Where data lives
///
/// | file | contents |
/// |---|---|
/// | `credentials/<id>.json` | a credential: pretty JSON, names sorted, a final newline |
/// | `config/<key>.json` | a config value, in the same form |
///
/// Names are encoded, so that every key has a file of its own on every file system: a character that is not a
/// letter, a digit, one of `-_.@+=,` or Chinese is `%XX`; capital letters are listed after a `~`
/// (`Alice~8.json`); names of over 200 bytes are split into directories. Legacy data with plain names and
/// unquoted strings is read too; the first change of a record gives its file the new name. All other files in
/// the repository are left unchanged.
///
/// # How it works
///
/// All data is in memory, as in `File`: a read is a look-up. One thread owns the repository. Each write or
/// batch is one commit: its objects, then the branch, then the files of the work tree and the index. A write
/// that changes nothing makes no commit. The message names the files and whether they were set or deleted,
/// never a value. Commits made with git in this work tree are seen at the next write,
/// [`health`](Backend::health) or [`pull`](Git::pull).
///
/// `Ok` means that the commit's objects and the branch are fsynced. Fetched objects are fsynced before the
/// branch refers to them. (libgit2 does not sync the directories of new objects. They are safe on a file
/// system that writes files before their directories, such as ext4 and xfs.) A commit takes some
/// milliseconds, and more with more files: use this for changes by people, not for tokens that are refreshed
/// every second. Objects accumulate until `git gc`, which may run at any time.
///
/// Each batch of an import is a commit too and rewrites the list of all files: with
/// [`IMPORT_CHUNK`](crate::IMPORT_CHUNK) records per batch the time grows with the square of the number of
/// records. Import tens of thousands with one call of [`import`], or copy them with a large
/// [`batch`](crate::migrate::CopyOptions::batch), as in `storage copy --batch 10000`.
///
/// [`import`]: crate::Exportable::import
///
/// # Guarantees and limits
///
/// - One process at a time opens a repository; many processes can have clones of one remote.
/// - An empty or missing directory becomes a repository. An existing repository is used unchanged; its `HEAD`
///   must be at the branch. A bare, shallow or linked repository, one with an unfinished merge, and a
///   directory with other files are refused.
/// - While another branch is checked out, commits go to the store's branch and the work tree and the index
///   are not updated.
/// - Uncommitted changes in files of the store: opening is [`Conflict`](ErrorKind::Conflict) and changes
///   nothing. If they appear later, they are kept, and [`stats`](Backend::stats) has a warning.
/// - After a crash the work tree and the index are repaired, and the store's own stale locks are removed.
///   Locks of other programs are kept: while one has locked the branch, writes are [`Busy`](ErrorKind::Busy).
/// - Hooks and filters do not run, and no symbolic link is followed. A repository whose attributes set a
///   filter (git-crypt, LFS) for files of the store is refused, and so is a write of such a file, which would
///   be stored as plain text. `.git` and the store's directories are accessible to their owner only (0700,
///   files 0600).
/// - The system's and the user's settings are not read, with one exception: a repository that belongs to
///   another user, such as one mounted into a container, is [`Denied`](ErrorKind::Denied) unless
///   `safe.directory` in `$HOME/.gitconfig` or `/etc/gitconfig` names its path without links. If HOME is not
///   set, only `/etc/gitconfig` counts; git's variables (`GIT_CONFIG_COUNT`) do not. Attributes (`filter`) of
///   the user and the system count too.
/// - Dropping the last handle waits for the current commit, but not for the remote.
///   [`close`](crate::Storage::close) waits without blocking the thread, and sends unsent commits.
///
/// # With a remote
///
/// [`GitOptions::pull`] and [`push`](GitOptions::push) control when the commits of others are fetched and ours
/// are sent. Ours are rebased onto theirs. If both sides changed the same record, the write,
/// [`pull`](Git::pull) or [`push`](Git::push) is [`Conflict`](ErrorKind::Conflict) and changes nothing here;
/// the message names both commits, and the [key](crate::Error::key) is the record's. A write that is refused
/// this way can be repeated after a pull. Conflicting commits that were made offline stay until a person
/// merges or rebases them with git; writes continue locally meanwhile.
///
/// A remote whose history was rewritten, so that it lost commits that this clone has, is a
/// [`Conflict`](ErrorKind::Conflict) too, and nothing is sent to it: a push would restore what was removed.
/// Bring the clone to the new history (`git fetch`, then `git reset --hard` or `git rebase`). The same holds
/// for a remote without the branch, if this clone knows of a remote that had it: for a new, empty remote, run
/// `git push REMOTE BRANCH` once. Histories without a common commit are not joined either, such as those of
/// two clones that were both written to before one of them had reached an empty remote.
///
/// The store knows the commits that a remote once had from its own fetches and pushes, from
/// `refs/remotes/*/BRANCH` of this clone (of any remote) with their reflogs, and from the last `git fetch` or
/// `git pull` that named a URL. It knows no others: a commit that came with an earlier one of those, or that
/// a person sent with `git push URL`, counts as one of this clone alone and is sent again. Therefore use git
/// here with a named remote (`git remote add`). If that is not the store's remote, push with git what came
/// from it.
///
/// If opening creates the repository and then can't fetch, it removes the repository again, because an empty
/// store would look like a clone. With [`GitSync::Manual`] opening does not fetch. The first clone must
/// finish within [`GitOptions::remote_timeout`]; the next opening removes what an interrupted one left behind.
///
/// An existing store opens whatever is wrong with the remote, and a remote that does not answer blocks no
/// write: the commit is kept and sent later. [`stats`](Backend::stats) reports the problem, and counts the
/// commits that only this clone has (`ahead`) and only the remote has (`behind`); [`unsent`](Git::unsent)
/// reports the commits that closing did not send.
#[derive(Clone)]
pub struct Git {
    store: Arc<Store>,
    deadline: Duration,
}

/// Commits that a closed store has not sent: see [`Git::unsent`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Unsent {
    /// The number of commits.
    pub commits: usize,
    /// Why they were not sent.
    pub reason: Option<Error>,
}

struct Store {
    state: Arc<ArcSwap<State>>,
    sync_status: Arc<Mutex<SyncStatus>>,
    worker: Worker,
    path: PathBuf,
    options: GitOptions,
}

impl Git {
    /// The current state, or an error once the store is closed.
    fn state(&self) -> Result<arc_swap::Guard<Arc<State>>> {
        let state = self.store.state.load();
        if state.is_closed() { Err(Error::closed()) } else { Ok(state) }
    }

    /// Runs some work on the thread that owns the repository.
    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Writer) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.store.worker.ask(time_left(self.deadline), work).await
    }

    /// Makes a change as one commit.
    async fn commit<T: Send + 'static>(
        &self,
        what: &'static str,
        change: impl FnMut(&mut Draft<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let deadline = time_left(self.deadline);
        self.ask(move |writer| writer.commit(what, deadline, change)).await
    }

    /// Fetches the remote's commits, and rebases local ones onto them.
    ///
    /// # Errors
    ///
    /// [`Conflict`](ErrorKind::Conflict) if both sides changed a record (nothing is changed, and the message
    /// names both commits) or if the remote's history was rewritten. [`Unavailable`](ErrorKind::Unavailable)
    /// if the remote does not answer, [`InvalidValue`](ErrorKind::InvalidValue) without a remote.
    pub async fn pull(&self) -> Result<()> {
        self.ask(Writer::pull).await
    }

    /// Sends local commits, rebased onto the remote's. Contacts the remote even if there are none, and then
    /// fetches the commits of others.
    ///
    /// # Errors
    ///
    /// As [`pull`](Git::pull), and [`Denied`](ErrorKind::Denied) if the remote rejects the commits:
    /// `remote_said` in the [`stats`](Backend::stats) is its message. The outcome is Unknown if they may have
    /// been sent.
    pub async fn push(&self) -> Result<()> {
        let deadline = time_left(self.deadline);
        self.ask(move |writer| writer.push(deadline)).await
    }

    /// The newest commit, if any.
    ///
    /// # Errors
    ///
    /// [`Closed`](ErrorKind::Closed) once the store is closed.
    pub fn head(&self) -> Result<Option<CommitId>> {
        Ok(self.state()?.head.map(history::id_of))
    }

    /// The commits that closing could not send. None while the store is open, if the remote has everything,
    /// without a remote, and with [`GitSync::Manual`].
    #[must_use]
    pub fn unsent(&self) -> Option<Unsent> {
        self.sync_status().unsent
    }

    /// The absolute path of the work tree.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.store.path
    }

    fn sync_status(&self) -> SyncStatus {
        self.store.sync_status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl std::fmt::Debug for Git {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Git").field("path", &self.store.path).field("deadline", &self.deadline).finish()
    }
}

impl Backend for Git {
    fn label(&self) -> &'static str {
        "git"
    }

    /// The branch.
    fn namespace(&self) -> Option<&str> {
        Some(&self.store.options.branch)
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    async fn health(&self) -> Result<()> {
        self.ask(|writer| writer.local.refresh()).await
    }

    async fn stats(&self) -> Result<StorageStats> {
        let local_state = self.ask(|writer| {
            writer.local.refresh()?;
            Ok((writer.local.counts()?, writer.local.warnings()))
        });
        let (counts, local) = match local_state.await {
            Err(error) if error.kind() == ErrorKind::Closed => return Err(error),
            Ok((counts, local)) => (Some(counts), local),
            Err(_) => (None, Vec::new()),
        };
        let (state, status, options) = (self.state()?, self.sync_status(), &self.store.options);
        let mut stats = StorageStats {
            healthy: counts.is_some(),
            credential_count: state.credentials.len() as u64,
            config_count: state.configs.len() as u64,
            ..StorageStats::new(self.label())
        };
        let mut detail = |name: &str, value: Value| stats.details.insert(name.to_owned(), value);
        detail("path", json!(self.store.path.display().to_string()));
        detail("branch", json!(options.branch));
        detail("head", json!(state.head.map(|head| head.to_string())));
        detail("durability", json!("every commit is fsynced before it is acknowledged"));
        let mut warnings = Vec::new();
        if let Some(remote) = &options.remote {
            detail("remote", json!(remote));
            detail("ahead", json!(counts.map(|(ahead, _)| ahead)));
            detail("behind", json!(counts.map(|(_, behind)| behind)));
            let answered = status.answered.map(rfc3339_seconds);
            detail("remote_answered", json!(answered));
            if let Some(message) = status.message {
                detail("remote_said", json!(message));
            }
            if let Some(problem) = status.problem {
                warnings.push(format!("the remote and this clone differ: {}", with_causes(&problem)));
            }
        }
        warnings.extend(local);
        detail("warnings", json!(warnings));
        Ok(stats)
    }

    async fn close(&self) -> Result<()> {
        self.store.worker.close(time_left(self.deadline)).await
    }
}

impl Open for Git {
    type Options = GitOptions;

    async fn open(options: GitOptions) -> Result<Self> {
        options.check()?;
        let runtime = tokio::runtime::Handle::current();
        let opened = tokio::task::spawn_blocking(move || {
            let (deadline, wanted) = (options.deadline, options.clone());
            let look = |writer: &Writer| {
                let local = &writer.local;
                (local.state.clone(), writer.sync_status(), local.locked_repository.path.clone())
            };
            let (worker, (state, sync_status, path)) =
                Worker::start(move |is_dropped| Writer::open(&wanted, runtime, is_dropped), look)?;
            Ok(Self { store: Arc::new(Store { state, sync_status, worker, path, options }), deadline })
        });
        opened.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "opening the store panicked")))
    }
}
