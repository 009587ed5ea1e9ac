//! [`File`]: reads from memory, writes to one file.

mod committer;
mod conditional;
mod config;
mod credential;
mod directory;
mod engine;
mod export;
mod held;
mod lease;
mod options;
mod plan;
mod state;
mod usage;
mod work;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use committer::Committer;
use directory::{Access, Directory};
use engine::Engine;
use futures_util::future;
pub use options::FileOptions;
use serde_json::json;
use state::{Draft, State};
use work::work;

use crate::{
    Backend, Error, ErrorKind, Open, Result, StorageStats,
    codec::{RecordKey, check_path},
    layer::time_left,
};

#[doc = include_str!("docs.md")]
#[derive(Clone)]
pub struct File {
    store: Arc<Store>,
    deadline: Duration,
}

struct Store {
    state: Arc<ArcSwap<State>>,
    writer: Writer,
    path: PathBuf,
}

/// How the store is open.
enum Writer {
    Committer(Committer),
    /// Read-only, with the directory until the store is closed.
    ReadOnly(Mutex<Option<Directory>>),
}

/// [`stats`](Backend::stats) warns if the file system has less space left than this or than the size of the
/// store's file.
const LOW_SPACE: u64 = 64 << 20;

impl File {
    /// The current state, or an error once the store is closed.
    fn state(&self) -> Result<arc_swap::Guard<Arc<State>>> {
        let state = self.store.state.load();
        if state.is_closed() { Err(Error::closed()) } else { Ok(state) }
    }

    /// A copy of the state for another thread, in O(1).
    fn snapshot(&self) -> Result<State> {
        self.state().map(|state| State::clone(&state))
    }

    /// Queues a change and waits until it is on disk.
    async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Draft) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.committer()?.write(time_left(self.deadline), change).await
    }

    fn committer(&self) -> Result<&Committer> {
        match &self.store.writer {
            Writer::Committer(committer) => Ok(committer),
            Writer::ReadOnly(_) => {
                self.state()?;
                Err(Error::new(ErrorKind::Denied, "the store was opened read-only"))
            }
        }
    }

    /// Returns the space of deleted records to the file system.
    ///
    /// Writes wait while it runs, which can take seconds for a large store; reads do not. Returns by how many
    /// bytes the file has shrunk.
    ///
    /// # Errors
    ///
    /// As for a write. A call that is dropped or exceeds its deadline may still compact the file.
    pub async fn compact(&self) -> Result<u64> {
        self.committer()?.compact(time_left(self.deadline)).await
    }

    /// The size of the file and the free space of its file system, in bytes, if the system reports them
    /// within the deadline.
    async fn space(&self) -> (Option<u64>, Option<u64>) {
        let path = self.store.path.clone();
        let sizes = work(self.deadline, false, move || Ok((directory::size(&path), directory::free(&path))));
        sizes.await.unwrap_or_default()
    }

    /// The absolute path of the store's directory.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.store.path
    }

    fn start(engine: Engine, state: State, path: PathBuf, deadline: Duration) -> Result<Self> {
        let state = Arc::new(ArcSwap::from_pointee(state));
        let writer = Writer::Committer(Committer::start(engine, state.clone())?);
        Ok(Self { store: Arc::new(Store { state, writer, path }), deadline })
    }

    fn open_now(options: &FileOptions) -> Result<Self> {
        let access = match (options.read_only, options.create) {
            (true, _) => Access::Read,
            (false, true) => Access::Create,
            (false, false) => Access::Write,
        };
        let mut directory = Directory::open(&options.path, access)?;
        let path = directory.path().to_owned();
        if access != Access::Read {
            let (engine, state) = Engine::open(directory)?;
            return Self::start(engine, state, path, options.deadline);
        }
        let state = Arc::new(ArcSwap::from_pointee(Engine::read(&mut directory)?));
        let writer = Writer::ReadOnly(Mutex::new(Some(directory)));
        Ok(Self { store: Arc::new(Store { state, writer, path }), deadline: options.deadline })
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File").field("path", &self.store.path).field("deadline", &self.deadline).finish()
    }
}

impl Backend for File {
    fn label(&self) -> &'static str {
        state::LABEL
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    async fn health(&self) -> Result<()> {
        if let Writer::Committer(_) = self.store.writer {
            return self.write(|_| Ok(())).await;
        }
        let store = self.store.clone();
        work(self.deadline, false, move || match &store.writer {
            Writer::ReadOnly(directory) => match &*directory.lock().unwrap_or_else(PoisonError::into_inner) {
                Some(directory) => directory.check(),
                None => Err(Error::closed()),
            },
            Writer::Committer(_) => Ok(()),
        })
        .await
    }

    async fn stats(&self) -> Result<StorageStats> {
        let (health, (total_size, free)) = future::join(self.health(), self.space()).await;
        let healthy = match health {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::Closed => return Err(error),
            Err(_) => false,
        };
        let state = self.state()?;
        let damaged = |is: fn(&RecordKey) -> bool| state.damaged().filter(|name| is(name)).count();
        let credentials = state.credentials.len() + damaged(|name| matches!(name, RecordKey::Credential(_)));
        let configs = state.configs.len() + damaged(|name| matches!(name, RecordKey::Config(_)));
        let mut stats = StorageStats {
            healthy,
            credential_count: credentials as u64,
            config_count: configs as u64,
            usage_record_count: state.usage.len() as u64,
            total_size,
            ..StorageStats::new(self.label())
        };
        for (name, value) in [
            ("path", json!(self.store.path.display().to_string())),
            ("format_version", json!(engine::FORMAT)),
            ("durability", json!("every write is fsynced before it is acknowledged")),
            ("free_bytes", json!(free)),
            ("warnings", json!(low_space(free, total_size))),
            ("queued_writes", json!(self.committer().map_or(0, Committer::queued))),
            ("read_only", json!(matches!(self.store.writer, Writer::ReadOnly(_)))),
        ] {
            stats.details.insert(name.to_owned(), value);
        }
        let count = damaged(|_| true);
        if count > 0 {
            stats.details.insert("damaged_records".to_owned(), json!(count));
        }
        Ok(stats)
    }

    async fn close(&self) -> Result<()> {
        match &self.store.writer {
            Writer::Committer(committer) => committer.close(time_left(self.deadline)).await,
            Writer::ReadOnly(directory) => {
                self.store.state.store(Arc::new(State::closed()));
                drop(directory.lock().unwrap_or_else(PoisonError::into_inner).take());
                Ok(())
            }
        }
    }
}

/// The warning for a file system that is almost full.
fn low_space(free: Option<u64>, size: Option<u64>) -> Vec<String> {
    let free = free.filter(|free| *free < LOW_SPACE.max(size.unwrap_or(0)));
    let warning =
        |free| format!("the file system has {} MiB left; when it is full, all writes fail", free / (1 << 20));
    free.map(warning).into_iter().collect()
}

impl Open for File {
    type Options = FileOptions;
    const SCHEMES: &'static [&'static str] = options::SCHEMES;

    async fn open(options: FileOptions) -> Result<Self> {
        let wait = options.wait;
        check_path(&options.path)?;
        let begun = Instant::now();
        loop {
            let options = options.clone();
            let opened = tokio::task::spawn_blocking(move || Self::open_now(&options)).await;
            let opened =
                opened.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "opening the store panicked")));
            let left = wait.saturating_sub(begun.elapsed());
            match opened {
                Err(error) if error.kind() == ErrorKind::Busy && !left.is_zero() => {
                    tokio::time::sleep(RETRY_EVERY.min(left)).await;
                }
                opened => return opened,
            }
        }
    }
}

/// How often opening tries again while the store is open elsewhere.
const RETRY_EVERY: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use serde_json::json;

    use super::{engine::tests::Disk, *};
    use crate::{DEFAULT_DEADLINE, Outcome, Storage};

    fn on((engine, state): (Engine, State)) -> Storage<File> {
        Storage::new(File::start(engine, state, PathBuf::from("test"), DEFAULT_DEADLINE).unwrap())
    }

    fn store_on(disk: &Disk) -> Storage<File> {
        on(disk.store())
    }

    #[test]
    fn a_file_system_that_is_almost_full_is_warned_of() {
        let warned = |free, size| !low_space(Some(free), Some(size)).is_empty();
        assert!(warned(LOW_SPACE - 1, 0) && !warned(LOW_SPACE, 0));
        assert!(warned(0, 0) && warned(LOW_SPACE, LOW_SPACE + 1));
        assert!(low_space(None, Some(1)).is_empty(), "nothing is known");
        assert!(directory::free(std::path::Path::new("/")).is_some());
    }

    #[tokio::test]
    async fn a_failed_fsync_poisons_writes_and_not_reads() {
        let disk = Disk::default();
        let storage = store_on(&disk);
        storage.set_config("a", json!(1)).await.unwrap();
        disk.cannot_sync.store(true, Ordering::SeqCst);
        let error = storage.set_config("a", json!(2)).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::Unknown));
        assert_eq!(error.code(), Some("os error 5"));

        disk.cannot_sync.store(false, Ordering::SeqCst);
        let error = storage.set_config("a", json!(3)).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
        assert!(!error.is_retryable());
        assert_eq!(storage.health().await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(!storage.stats().await.unwrap().healthy);
        assert_eq!(
            storage.get_config("a").await.unwrap().value(),
            &json!(1),
            "only acknowledged writes are seen"
        );
    }

    /// The file then has no name, and the write may have come before or after the removal.
    #[tokio::test]
    async fn a_directory_that_is_removed_during_a_write_is_detected_before_the_answer() {
        let base = tempfile::TempDir::new().unwrap();
        let path = base.path().join("store");
        let mut directory = Directory::open(&path, Access::Create).unwrap();
        directory.note(&directory.new_store().unwrap()).unwrap();
        directory.finish().unwrap();
        let disk = Disk::default();
        let storage = on(disk.store_in(directory));
        storage.set_config("a", json!(1)).await.unwrap();

        disk.stalled.store(true, Ordering::SeqCst);
        let write = tokio::spawn({
            let storage = storage.clone();
            async move { storage.set_config("a", json!(2)).await }
        });
        disk.stalls().await;
        std::fs::remove_dir_all(&path).unwrap();
        disk.stalled.store(false, Ordering::SeqCst);
        let error = write.await.unwrap().unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::Unknown));
        assert!(error.to_string().contains("was removed"), "{error}");
        let error = storage.set_config("a", json!(3)).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
        assert_eq!(storage.get_config("a").await.unwrap().value(), &json!(1), "what was acknowledged");
    }

    #[tokio::test]
    async fn a_refused_compaction_and_a_panicking_change_do_not_end_the_store() {
        let disk = Disk::default();
        let (engine, state) = disk.store();
        let reader = engine.reader();
        let storage = on((engine, state));
        let error = storage.backend().compact().await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Busy, Outcome::NotApplied));
        storage.set_config("a", json!(1)).await.unwrap();
        drop(reader);
        storage.backend().compact().await.unwrap();

        let error = storage.backend().write(|_| -> Result<()> { panic!("on purpose") }).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Internal, Outcome::NotApplied));
        storage.set_config("a", json!(2)).await.unwrap();
        storage.health().await.unwrap();

        disk.cannot_sync.store(true, Ordering::SeqCst);
        storage.set_config("b", json!("x".repeat(100_000))).await.unwrap_err();
        storage.backend().compact().await.unwrap_err();
    }

    #[tokio::test]
    async fn every_caller_of_close_gets_its_error() {
        let disk = Disk::default();
        let storage = store_on(&disk);
        storage.set_config("a", json!(1)).await.unwrap();
        disk.cannot_sync.store(true, Ordering::SeqCst);
        let (one, other) = tokio::join!(storage.clone().close(), storage.clone().close());
        for closed in [one, other, storage.close().await] {
            assert_eq!(closed.unwrap_err().code(), Some("os error 5"));
        }
    }

    #[tokio::test]
    async fn a_full_disk_is_unavailable_and_loses_nothing() {
        let disk = Disk::default();
        let storage = store_on(&disk);
        storage.set_config("a", json!(1)).await.unwrap();
        disk.full.store(true, Ordering::SeqCst);
        let mut n = 0;
        let error = loop {
            n += 1;
            if let Err(error) = storage.set_config(format!("big-{n}"), json!("x".repeat(100_000))).await {
                break error;
            }
            assert!(n < 1000, "the disk never filled up");
        };
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.code(), Some("os error 28"));
        drop(storage);

        disk.full.store(false, Ordering::SeqCst);
        let storage = on(Engine::on(disk, "test").unwrap());
        assert_eq!(storage.get_config("a").await.unwrap().value(), &json!(1));
        for earlier in 1..n {
            storage.get_config(format!("big-{earlier}")).await.expect("it was acknowledged");
        }
    }

    #[tokio::test]
    async fn a_batch_is_one_fsync_and_so_is_a_group_of_writes() {
        let disk = Disk::default();
        let storage = store_on(&disk);
        let syncs = |disk: &Disk| disk.syncs.swap(0, Ordering::SeqCst);
        syncs(&disk);
        storage.set_config("a", json!(0)).await.unwrap();
        assert_eq!(syncs(&disk), 1);

        let items: Vec<_> = (0..1000)
            .map(|n| (crate::Key::new(&n.to_string()).unwrap(), json!({ "n": n }).try_into().unwrap()))
            .collect();
        // The engine syncs once more when it makes the file larger, so the file is made large enough first.
        for _ in 0..3 {
            syncs(&disk);
            assert_eq!(storage.set_credentials(&items).await.unwrap().succeeded, 1000);
        }
        assert_eq!(syncs(&disk), 1, "a batch of 1000 costs what one write costs");

        disk.stalled.store(true, Ordering::SeqCst);
        let first = tokio::spawn({
            let storage = storage.clone();
            async move { storage.set_config("a", json!(1)).await }
        });
        disk.stalls().await;
        let others: Vec<_> = (0..500)
            .map(|_| {
                let storage = storage.clone();
                tokio::spawn(async move { storage.increment_usage("total", "requests", 1).await })
            })
            .collect();
        while storage.backend().committer().unwrap().queued() < 500 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        disk.stalled.store(false, Ordering::SeqCst);
        first.await.unwrap().unwrap();
        let mut totals = Vec::new();
        for other in others {
            totals.push(other.await.unwrap().unwrap());
        }
        totals.sort_unstable();
        assert_eq!(totals, (1..=500).collect::<Vec<i64>>(), "each saw a total of its own");
        assert_eq!(syncs(&disk), 2, "one commit for the first, one for the 500 that waited");
    }

    #[tokio::test]
    async fn a_deadline_says_whether_the_write_may_have_been_applied() {
        let disk = Disk::default();
        let storage = store_on(&disk);
        storage.set_config("a", json!(0)).await.unwrap();
        let hurried = storage.with_deadline(Duration::from_millis(100));

        disk.stalled.store(true, Ordering::SeqCst);
        let begun = tokio::spawn({
            let hurried = hurried.clone();
            async move { hurried.set_config("a", json!(1)).await }
        });
        disk.stalls().await;
        let queued = hurried.set_config("b", json!(1)).await.unwrap_err();
        let begun = begun.await.unwrap().unwrap_err();
        assert_eq!((begun.kind(), begun.outcome()), (ErrorKind::Timeout, Outcome::Unknown));
        assert_eq!((queued.kind(), queued.outcome()), (ErrorKind::Timeout, Outcome::NotApplied));
        assert_eq!(storage.get_config("a").await.unwrap().value(), &json!(0), "a read does not wait");

        disk.stalled.store(false, Ordering::SeqCst);
        storage.health().await.unwrap();
        assert_eq!(storage.get_config("a").await.unwrap().value(), &json!(1), "it was applied after all");
        assert_eq!(storage.get_config("b").await.unwrap_err().kind(), ErrorKind::NotFound);
    }

    /// The handle has far more time than the layers, which are in the order of `docs/layers.md`.
    #[tokio::test]
    async fn under_layers_a_write_that_is_withdrawn_was_not_applied() {
        let disk = Disk::default();
        let bare = store_on(&disk);
        let stack = crate::layer::Stack::new()
            .limit(crate::layer::Limit::new(64))
            .retry(crate::layer::Retry::new())
            .timeout(crate::layer::Timeout::new(Duration::from_millis(400)))
            .instrument(bare.backend());
        let layered = bare.clone().layer(stack);
        layered.set_config("a", json!(0)).await.unwrap();

        disk.stalled.store(true, Ordering::SeqCst);
        let begun = tokio::spawn({
            let layered = layered.clone();
            async move { layered.set_config("a", json!(1)).await }
        });
        disk.stalls().await;
        let queued = layered.increment_usage("b", "n", 1).await.unwrap_err();
        let begun = begun.await.unwrap().unwrap_err();
        // Before anything can fail: the store waits for its thread when it is dropped.
        disk.stalled.store(false, Ordering::SeqCst);
        assert_eq!((begun.kind(), begun.outcome()), (ErrorKind::Timeout, Outcome::Unknown));
        assert_eq!((queued.kind(), queued.outcome()), (ErrorKind::Timeout, Outcome::NotApplied), "{queued}");
        assert_eq!(bare.increment_usage("b", "n", 0).await.unwrap(), 0, "it was withdrawn");
    }

    #[tokio::test]
    async fn a_dropped_call_is_applied_whole_or_not_at_all() {
        let disk = Disk::default();
        let storage = store_on(&disk);
        storage.set_config("a", json!(0)).await.unwrap();

        disk.stalled.store(true, Ordering::SeqCst);
        let begun = tokio::spawn({
            let storage = storage.clone();
            async move { storage.set_config("a", json!(1)).await }
        });
        disk.stalls().await;
        begun.abort();
        begun.await.expect_err("it was dropped");
        for n in 0..200 {
            // Polled once, so that it is in the queue, then dropped.
            let queued = futures_util::FutureExt::now_or_never(storage.set_config(format!("k{n}"), json!(n)));
            assert!(queued.is_none(), "the committer is busy");
        }
        disk.stalled.store(false, Ordering::SeqCst);
        storage.health().await.unwrap();
        assert_eq!(storage.get_config("a").await.unwrap().value(), &json!(1), "what was begun is applied");
        assert_eq!(storage.list_configs().await.unwrap().len(), 1, "what was not begun is withdrawn");
    }
}
