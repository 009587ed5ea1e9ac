//! [`File`]: memory for reads, disk for truth.

mod committer;
mod config;
mod credential;
mod directory;
mod engine;
mod export;
mod options;
mod state;
mod usage;

use std::{path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use committer::Committer;
use directory::Directory;
use engine::Engine;
pub use options::FileConfig;
use serde_json::json;
use state::{Draft, State};

use crate::{Backend, Error, ErrorKind, Open, Result, StorageStats};

/// A store in a directory of this machine: the default, for everything from a laptop to one busy server.
///
/// Open it with `file:PATH`, or a [`FileConfig`]. The directory is created if it is missing. It can do everything but
/// cache and transactions.
///
/// # How it works
///
/// All data is in memory, in persistent maps behind an atomic pointer: a read is a look-up, takes no lock and never
/// waits for a writer. Writes queue for one committer thread, which takes whatever is waiting, commits it to the file
/// `store.redb` with one fsync ([redb]), publishes the new maps, and answers. So `Ok` means that the write survives
/// power loss, and many writers at once share one fsync. A batch is one commit, all or nothing.
///
/// # What it promises and refuses
///
/// - One process at a time. A second one gets [`Busy`](ErrorKind::Busy); so does a second `open` in this process.
/// - The directory is only for its owner (0700, the file 0600, whatever the umask). Symbolic links are not followed.
/// - A directory that holds other things, a file in its place, a newer format, a damaged store: each a clear error, and
///   nothing is changed. Everything is read and its checksums are verified when the store is opened.
/// - A write that times out says whether it may still be applied: not if it was still waiting in the queue.
/// - After a failed write or fsync nobody knows what is on the disk: reads go on, every later write and
///   [`health`](Backend::health) is [`Unavailable`](ErrorKind::Unavailable) until the store is opened again.
/// - Dropping the last handle closes the store, and waits for the commit under way;
///   [`close`](crate::Storage::close) does so without blocking the thread.
///
/// Memory: all of it, about twice the JSON's size. Needs a Unix system, and unwinding panics (`panic = "unwind"`, the
/// default) to report rather than die of some kinds of damage.
///
/// [redb]: https://docs.rs/redb
#[derive(Clone)]
pub struct File {
    store: Arc<Store>,
    deadline: Duration,
}

struct Store {
    state: Arc<ArcSwap<State>>,
    committer: Committer,
    path: PathBuf,
}

impl File {
    /// What can be read now. Errors once the store is closed.
    fn state(&self) -> Result<arc_swap::Guard<Arc<State>>> {
        let state = self.store.state.load();
        if state.is_closed() { Err(Error::closed()) } else { Ok(state) }
    }

    /// Queues a change and waits until it is on disk.
    async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Draft) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.store.committer.write(self.deadline, change).await
    }

    /// Gives space that deleted records left in the file back to the system.
    ///
    /// Writes wait while it runs, which can take seconds for a large store; reads don't. Says how many bytes the file
    /// has lost.
    ///
    /// # Errors
    ///
    /// As any write. A call that is dropped, or is over its deadline, may still compact.
    pub async fn compact(&self) -> Result<u64> {
        let before = self.size();
        self.store.committer.compact(self.deadline).await?;
        Ok(before.saturating_sub(self.size()))
    }

    /// The file's size in bytes; 0 if it can't be asked.
    fn size(&self) -> u64 {
        std::fs::metadata(self.store.path.join(directory::STORE)).map_or(0, |file| file.len())
    }

    /// Where the store is.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.store.path
    }

    fn start(engine: Engine, state: State, path: PathBuf, deadline: Duration) -> Result<Self> {
        let state = Arc::new(ArcSwap::from_pointee(state));
        let committer = Committer::start(engine, state.clone())?;
        Ok(Self { store: Arc::new(Store { state, committer, path }), deadline })
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File").field("path", &self.store.path).field("deadline", &self.deadline).finish()
    }
}

impl Backend for File {
    fn label(&self) -> &'static str {
        "file"
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    async fn health(&self) -> Result<()> {
        self.write(|_| Ok(())).await
    }

    async fn stats(&self) -> Result<StorageStats> {
        let healthy = match self.health().await {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::Closed => return Err(error),
            Err(_) => false,
        };
        let state = self.state()?;
        let mut stats = StorageStats {
            healthy,
            credential_count: state.credentials.len() as u64,
            config_count: state.configs.len() as u64,
            usage_record_count: state.usage.len() as u64,
            total_size: Some(self.size()),
            ..StorageStats::new(self.label())
        };
        for (name, value) in [
            ("path", json!(self.store.path)),
            ("format_version", json!(engine::FORMAT)),
            ("durability", json!("every write is fsynced before it is acknowledged")),
            ("queued_writes", json!(self.store.committer.queued())),
        ] {
            stats.details.insert(name.to_owned(), value);
        }
        Ok(stats)
    }

    async fn close(&self) -> Result<()> {
        self.store.committer.close(self.deadline).await
    }
}

impl Open for File {
    type Config = FileConfig;

    async fn open(config: FileConfig) -> Result<Self> {
        let opened = tokio::task::spawn_blocking(move || {
            let directory = Directory::open(&config.path, config.create)?;
            let (engine, state) = Engine::open(directory)?;
            Self::start(engine, state, config.path, config.deadline)
        });
        opened.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "opening the store panicked")))
    }
}
