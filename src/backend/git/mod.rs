//! [`Git`]: every change is a commit.

mod branch;
mod config;
mod credential;
mod export;
mod failure;
mod history;
mod marker;
mod name;
mod options;
mod packs;
mod remote;
mod repository;
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
pub use options::{GitConfig, GitSync};
use serde_json::{Value, json};
use state::{Draft, State};
use worker::Worker;
use writer::{Shared, Writer};

use crate::{
    Backend, Error, ErrorKind, Open, Result, RevisionId, StorageStats, codec::rfc3339_seconds,
    layer::time_left, model::with_causes,
};

/// A store in a Git repository: for a small team's credentials and configuration, with a history that can be
/// reviewed and reverted. Experimental.
///
/// Open it with `git:PATH`, or a [`GitConfig`]. It stores credentials and configuration, exports, imports,
/// and keeps a [history](crate::Versioned). It counts no usage, caches nothing, and has no transactions.
///
/// # What deleting means
///
/// **Nothing that was ever committed goes away.** A credential that was deleted, or replaced, is in the
/// history of this repository, of its remote and of each clone, for whoever can read one of them. So revoke
/// it where it was issued. (To remove it from the history as well, rewrite it with a tool such as
/// `git filter-repo`, in every clone, while no store is open on one; a server may keep the old commits still.
/// A clone that was forgotten brings back nothing that it knows to have been at the remote, see below.) The
/// files are not encrypted.
///
/// # Where things are
///
/// | file | holds |
/// |---|---|
/// | `credentials/<id>.json` | a credential: pretty JSON, names sorted, a final newline |
/// | `config/<key>.json` | a config value, the same |
///
/// Names are encoded, so that any key is a file of its own on any file system: what is not a letter, a digit,
/// one of `-_.@+=,` or Chinese is `%XX`, capital letters are listed behind a `~` (`Alice~8.json`), and names
/// of over 200 bytes are cut into directories. Plain names and bare words, as the Go program wrote them, are
/// read, too; the first change gives the file its new name. Everything else in the repository is left alone.
///
/// # How it works
///
/// All data is in memory, as in `File`: a read is a look-up. One thread owns the repository. A write, or a
/// batch, is one commit: its objects, then the branch, then the files of the work tree and the index. A write
/// that changes nothing makes no commit. The message names the files and what happened to them, never a
/// value. Commits that others make with git in this work tree are seen at the next write,
/// [`health`](Backend::health) or [`pull`](Git::pull).
///
/// `Ok` means that the commit's objects and the branch are fsynced, as is what was fetched before the branch
/// stands on it. (libgit2 does not sync the directories that new objects are in: a file system that orders
/// them after files, as ext4 and xfs do, keeps them.) A commit costs some milliseconds, and more the more
/// files there are: this is for changes by people, not for tokens that are refreshed every second. Objects
/// pile up until someone runs `git gc`, which may be done at any time.
///
/// Each batch of an import is a commit, too, and writes the list of all files anew: with
/// [`IMPORT_CHUNK`](crate::IMPORT_CHUNK) records in each the time grows with the square of how many there
/// are. Tens of thousands are better given to [`import`] in one call, or copied with a large
/// [`batch`](crate::migrate::CopyOptions::batch), as by `storage copy --batch 10000`.
///
/// [`import`]: crate::Exportable::import
///
/// # What it promises and refuses
///
/// - One process at a time has a repository open; many have clones of one remote.
/// - An empty or a missing directory becomes a repository. An existing one is used as it is; `HEAD` must be
///   at the branch. A bare, shallow or linked one, one in the middle of a merge, and a directory with other
///   things in it are refused.
/// - While another branch is checked out commits go to the store's branch, and the work tree and the index
///   are left alone.
/// - Files of the store that hold changes which are in no commit: opening is
///   [`Conflict`](ErrorKind::Conflict), and nothing is touched. If they appear later they are left as they
///   are, and [`stats`](Backend::stats) warn of them.
/// - After a crash the work tree and the index are repaired, locks that we left are removed. A lock of
///   another program is left alone: while it holds the branch, writes are [`Busy`](ErrorKind::Busy).
/// - Hooks and filters don't run, and no symbolic link is followed. A repository whose attributes give files
///   of the store a filter (git-crypt, LFS) is refused, and so is a write of such a file: it would be sent as
///   plain text. `.git` and the store's directories are only for their owner (0700, files 0600).
/// - The system's and the user's settings are not read, but for one: a repository that belongs to another
///   user, as one that was mounted into a container can, is [`Denied`](ErrorKind::Denied) unless
///   `safe.directory` in `$HOME/.gitconfig` (or `/etc/gitconfig`) names it, without links. Where HOME is not
///   set only `/etc/gitconfig` counts; git's variables (`GIT_CONFIG_COUNT`) don't. And attributes (`filter`)
///   are also those of the user and the system.
/// - Dropping the last handle waits for the commit under way, but not for the remote.
///   [`close`](crate::Storage::close) does so without blocking the thread, and sends what was not.
///
/// # With a remote
///
/// [`GitConfig::pull`] and [`push`](GitConfig::push) say when others' commits come here and ours go there.
/// Ours are put on top of theirs. If both changed the same record, the write, [`pull`](Git::pull) or
/// [`push`](Git::push) is [`Conflict`](ErrorKind::Conflict); its message names both commits, its
/// [key](crate::Error::key) the record, and nothing here is changed. A write that is refused so is gone;
/// after a pull it can be made again. Commits that were made offline and are in conflict stay until a person
/// brings both sides together with git; writes go on meanwhile, here.
///
/// A remote whose history was rewritten, so that it has lost commits that are here, is
/// [`Conflict`](ErrorKind::Conflict), too, and gets nothing from this clone: what was removed there would
/// come back. Bring the clone to the new history (`git fetch`, then `git reset --hard` or `git rebase`). So
/// is a remote without the branch, if this clone knows of one that had it: for a new, empty remote,
/// `git push REMOTE BRANCH` once. Histories that have nothing in common are not joined either, as those of
/// two clones that were both written to before one of them had reached an empty remote.
///
/// What a remote once had is known from what this store has fetched and sent, from `refs/remotes/*/BRANCH` of
/// this clone and their reflogs, whichever remote they are of, and from the last `git fetch` or `git pull`
/// that named a URL. More is not known: a commit that came by an earlier one of those, or that a person sent
/// with `git push URL`, is taken for one of this clone alone, and is sent again. So use git here with a named
/// remote (`git remote add`). And if that is another one than the store's, send with git what came from it.
///
/// An opening that makes the repository and then can't fetch takes it away again: an empty store would pass
/// for a clone. With [`GitSync::Manual`] opening does not fetch. The first clone must be here within
/// [`GitConfig::remote_timeout`]; what an attempt leaves that was broken off is removed by the next opening.
///
/// Once there is something here, nothing that is wrong with the remote stops a start, and a remote that does
/// not answer stops no write: it is kept, and sent later. [`stats`](Backend::stats) say what is wrong, and
/// count the commits that are only here (`ahead`) and only there (`behind`); [`unsent`](Git::unsent) says
/// what closing left here.
#[derive(Clone)]
pub struct Git {
    store: Arc<Store>,
    deadline: Duration,
}

/// Commits that are only here once a store is closed: see [`Git::unsent`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Unsent {
    /// How many they are.
    pub commits: usize,
    /// Why.
    pub reason: Option<Error>,
}

struct Store {
    state: Arc<ArcSwap<State>>,
    shared: Arc<Mutex<Shared>>,
    worker: Worker,
    path: PathBuf,
    config: GitConfig,
}

impl Git {
    /// What can be read now. Errors once the store is closed.
    fn state(&self) -> Result<arc_swap::Guard<Arc<State>>> {
        let state = self.store.state.load();
        if state.is_closed() { Err(Error::closed()) } else { Ok(state) }
    }

    /// Queues some work for the thread that owns the repository.
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

    /// Fetches the remote's commits, and puts those that are only here on top of them.
    ///
    /// # Errors
    ///
    /// [`Conflict`](ErrorKind::Conflict) if a record was changed on both sides: nothing is changed, and the
    /// message names both commits; or if the remote's history was rewritten.
    /// [`Unavailable`](ErrorKind::Unavailable) if the remote does not answer,
    /// [`InvalidValue`](ErrorKind::InvalidValue) without a remote.
    pub async fn pull(&self) -> Result<()> {
        self.ask(|writer| writer.pull()).await
    }

    /// Sends the commits that are only here, on top of the remote's. The remote is asked even if there are
    /// none, and what others have sent comes here then.
    ///
    /// # Errors
    ///
    /// As [`pull`](Git::pull), and [`Denied`](ErrorKind::Denied) if the remote does not take them:
    /// `remote_said` in the [`stats`](Backend::stats) is why, in its own words. The outcome is Unknown if
    /// they may have been sent.
    pub async fn push(&self) -> Result<()> {
        let deadline = time_left(self.deadline);
        self.ask(move |writer| {
            writer.refresh()?;
            writer.push(deadline)
        })
        .await
    }

    /// The newest revision, if there is one.
    ///
    /// # Errors
    ///
    /// [`Closed`](ErrorKind::Closed) once it is.
    pub fn head(&self) -> Result<Option<RevisionId>> {
        Ok(self.state()?.head.map(history::id_of))
    }

    /// What closing could not send. None while the store is open, if the remote has everything, without a
    /// remote, and if nothing is sent by itself.
    #[must_use]
    pub fn unsent(&self) -> Option<Unsent> {
        self.shared().unsent
    }

    /// Where the work tree is, as an absolute path.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.store.path
    }

    fn shared(&self) -> Shared {
        self.store.shared.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        Some(&self.store.config.branch)
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    async fn health(&self) -> Result<()> {
        self.ask(Writer::refresh).await
    }

    async fn stats(&self) -> Result<StorageStats> {
        let looked = self.ask(|writer| {
            writer.refresh()?;
            Ok((writer.counts()?, writer.warnings()))
        });
        let (counts, local) = match looked.await {
            Err(error) if error.kind() == ErrorKind::Closed => return Err(error),
            Ok((counts, local)) => (Some(counts), local),
            Err(_) => (None, Vec::new()),
        };
        let (state, shared, config) = (self.state()?, self.shared(), &self.store.config);
        let mut stats = StorageStats {
            healthy: counts.is_some(),
            credential_count: state.credentials.len() as u64,
            config_count: state.configs.len() as u64,
            ..StorageStats::new(self.label())
        };
        let mut tell = |name: &str, value: Value| stats.details.insert(name.to_owned(), value);
        tell("path", json!(self.store.path.display().to_string()));
        tell("branch", json!(config.branch));
        tell("head", json!(state.head.map(|head| head.to_string())));
        tell("durability", json!("every commit is fsynced before it is acknowledged"));
        let mut warnings = Vec::new();
        if let Some(remote) = &config.remote {
            tell("remote", json!(remote));
            tell("ahead", json!(counts.map(|(ahead, _)| ahead)));
            tell("behind", json!(counts.map(|(_, behind)| behind)));
            let answered = shared.answered.map(rfc3339_seconds);
            tell("remote_answered", json!(answered));
            if let Some(said) = shared.said {
                tell("remote_said", json!(said));
            }
            if let Some(trouble) = shared.trouble {
                warnings
                    .push(format!("the remote and this clone are not the same: {}", with_causes(&trouble)));
            }
        }
        warnings.extend(local);
        tell("warnings", json!(warnings));
        Ok(stats)
    }

    async fn close(&self) -> Result<()> {
        self.store.worker.close(time_left(self.deadline)).await
    }
}

impl Open for Git {
    type Config = GitConfig;

    async fn open(config: GitConfig) -> Result<Self> {
        config.check()?;
        let runtime = tokio::runtime::Handle::current();
        let opened = tokio::task::spawn_blocking(move || {
            let (deadline, wanted) = (config.deadline, config.clone());
            let look = |writer: &Writer| {
                (writer.state.clone(), writer.shared.clone(), writer.locked_repository.path.clone())
            };
            let (worker, (state, shared, path)) =
                Worker::start(move |is_dropped| Writer::open(&wanted, runtime, is_dropped), look)?;
            Ok(Self { store: Arc::new(Store { state, shared, worker, path, config }), deadline })
        });
        opened.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "opening the store panicked")))
    }
}
