//! [`Git`]: every change is a commit.

mod branch;
mod clone;
mod commit;
mod conditional;
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
mod text;
mod watch;
mod watchers;
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
use serde::Serialize;
use serde_json::{Value, json};
use state::{Draft, State};
use watchers::Watchers;
use worker::Worker;
use writer::{SyncStatus, Writer};

use crate::{
    Backend, Error, ErrorKind, Open, Result, StorageStats, history::CommitId, layer::time_left,
    model::rfc3339_seconds,
};

#[doc = include_str!("docs.md")]
#[derive(Clone)]
pub struct Git {
    store: Arc<Store>,
    deadline: Duration,
}

/// Commits that a closed store has not sent: see [`Git::unsent`].
#[derive(Clone, Debug, Serialize)]
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
    watchers: Watchers,
    worker: Worker,
    path: PathBuf,
    options: GitOptions,
}

/// The backend's name.
const LABEL: &str = "git";

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
        self.ask(move |writer| {
            writer.local.refresh()?;
            writer.push(deadline)
        })
        .await
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
        LABEL
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
                warnings.push(format!("the remote and this clone differ: {}", problem.with_causes()));
            }
        }
        warnings.extend(local);
        detail("warnings", json!(warnings));
        Ok(stats)
    }

    async fn close(&self) -> Result<()> {
        let closed = self.store.worker.close(time_left(self.deadline)).await;
        self.store.watchers.feed.close();
        closed
    }
}

impl Open for Git {
    type Options = GitOptions;
    const SCHEMES: &'static [&'static str] = options::SCHEMES;

    async fn open(options: GitOptions) -> Result<Self> {
        options.check()?;
        let runtime = tokio::runtime::Handle::current();
        let opened = tokio::task::spawn_blocking(move || {
            let (deadline, wanted) = (options.deadline, options.clone());
            let watchers = Watchers::new();
            let of_writer = watchers.clone();
            let (worker, (state, sync_status, path)) = Worker::start(move |is_dropped| {
                let writer = Writer::open(&wanted, runtime, is_dropped, of_writer)?;
                let local = &writer.local;
                let seen = (local.state.clone(), writer.status.clone(), local.locked_repository.path.clone());
                Ok((writer, seen))
            })?;
            Ok(Self {
                store: Arc::new(Store { state, sync_status, watchers, worker, path, options }),
                deadline,
            })
        });
        opened.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "opening the store panicked")))
    }
}
