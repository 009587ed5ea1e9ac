//! [`File`]: one file, which several processes can share.

mod backup;
mod cache;
mod check;
mod committer;
mod compact;
mod conditional;
mod config;
mod copy;
mod credential;
mod database;
mod directory;
mod document;
mod draft;
mod engine;
mod export;
mod held;
#[cfg(test)]
mod interleaved;
mod lease;
mod list;
mod log;
mod options;
mod overlay;
mod piece;
mod plan;
mod reader;
mod snapshot;
mod steps;
mod tables;
mod usage;
mod watch;
mod work;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

pub use backup::BackupReport;
pub use check::{CheckReport, CheckedRecords, Miscount};
use committer::{Admitted, Committer};
use directory::{Access, Directory};
pub use draft::MAX_PLAN_RECORDS;
use draft::{CONFIGS, CREDENTIALS, Draft, LAST_BACKUP, STORED_BYTES, USAGE_RECORDS};
use engine::Engine;
use futures_util::future;
pub use options::{FileOptions, Sharing, Verify};
use reader::Reader;
use serde_json::json;
use snapshot::Snapshot;
use work::{FEW, FEW_VALUES, SMALL_STORE, work};

use crate::{
    Backend, Error, ErrorKind, Open, Result, StorageStats, backend::feed::Feed, codec::check_path,
    layer::time_left,
};

#[doc = include_str!("docs.md")]
#[derive(Clone)]
pub struct File {
    store: Arc<Store>,
    deadline: Duration,
}

struct Store {
    reader: Arc<Reader>,
    /// None: the store is open for reading only.
    committer: Option<Committer>,
    feed: Feed,
    path: PathBuf,
    options: Details,
}

/// What [`stats`](Backend::stats) says of the options.
struct Details {
    shared: Sharing,
    cache: u64,
}

/// The backend's name.
const LABEL: &str = "file";

/// [`stats`](Backend::stats) warns if the file system has less space left than this or than the size of the
/// store's file.
const LOW_SPACE: u64 = 64 << 20;

impl File {
    /// Reads many records from one state, here if the store has few.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Snapshot) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let snapshot = self.store.reader.snapshot()?;
        let is_small = snapshot.len()? <= FEW as u64
            && snapshot.number(STORED_BYTES)?.is_some_and(|bytes| bytes <= SMALL_STORE);
        work(self.deadline, is_small, move || read(&snapshot)).await
    }

    /// Queues a change and waits until it is on disk.
    async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Draft<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let admitted = self.admit(1, 0).await?;
        self.write_admitted(admitted, change).await
    }

    /// Waits until the queue has room for this many items with values of this many bytes in all, which are
    /// then copied and encoded.
    async fn admit(&self, items: usize, bytes: usize) -> Result<Admitted> {
        self.committer()?.admit(items, bytes, time_left(self.deadline)).await
    }

    async fn write_admitted<T: Send + 'static>(
        &self,
        admitted: Admitted,
        change: impl FnOnce(&mut Draft<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.committer()?.write(admitted, change).await
    }

    /// Encodes values and writes them, all within the deadline of the admission.
    async fn encode_and_write<E: Send + 'static, T: Send + 'static>(
        &self,
        admitted: Admitted,
        values: usize,
        encode: impl FnOnce() -> E + Send + 'static,
        change: impl FnOnce(&mut Draft<'_>, E) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let left = admitted.until.saturating_duration_since(tokio::time::Instant::now());
        let encoded = work(left, values <= FEW_VALUES, move || Ok(encode())).await?;
        self.write_admitted(admitted, move |draft| change(draft, encoded)).await
    }

    fn committer(&self) -> Result<&Committer> {
        match &self.store.committer {
            Some(committer) => Ok(committer),
            None => {
                self.store.reader.current()?;
                Err(Error::new(ErrorKind::Denied, "the store was opened read-only"))
            }
        }
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

    fn start(engine: Engine, path: PathBuf, options: &FileOptions) -> Result<Self> {
        let reader = Arc::new(Reader::new(engine, options.document_cache())?);
        let feed = Feed::new(LABEL);
        let committer = if options.read_only {
            None
        } else {
            let compacting = |line| compact::watch(reader.clone(), line);
            Some(Committer::start(reader.clone(), feed.clone(), compacting)?)
        };
        let details = Details { shared: options.shared, cache: options.cache };
        Ok(Self {
            store: Arc::new(Store { reader, committer, feed, path, options: details }),
            deadline: options.deadline,
        })
    }

    fn open_now(options: &FileOptions) -> Result<Self> {
        let access = match (options.read_only, options.create) {
            (true, _) => Access::Read,
            (false, true) => Access::Create,
            (false, false) => Access::Write,
        };
        let directory = Directory::open(&options.path, access, options.shared)?;
        let path = directory.path().to_owned();
        Self::start(Engine::open(directory, options)?, path, options)
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File").field("path", &self.store.path).field("deadline", &self.deadline).finish()
    }
}

impl Backend for File {
    fn label(&self) -> &'static str {
        LABEL
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    async fn health(&self) -> Result<()> {
        if self.store.committer.is_some() {
            return self.write(|_| Ok(())).await;
        }
        let store = self.store.clone();
        work(self.deadline, false, move || store.reader.newest()?.engine.check()).await
    }

    async fn stats(&self) -> Result<StorageStats> {
        let (health, (total_size, free)) = future::join(self.health(), self.space()).await;
        let healthy = match health {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::Closed => return Err(error),
            Err(_) => false,
        };
        let snapshot = self.store.reader.snapshot()?;
        let numbers = work(self.deadline, snapshot.has_numbers()?, move || {
            let number = |name| snapshot.counted(name);
            let counts =
                [number(CREDENTIALS)?, number(CONFIGS)?, number(USAGE_RECORDS)?, number(STORED_BYTES)?];
            Ok((counts, snapshot.number(LAST_BACKUP)?))
        });
        let ([credential_count, config_count, usage_record_count, stored_bytes], backed_up) = numbers.await?;
        let mut stats = StorageStats {
            healthy,
            credential_count,
            config_count,
            usage_record_count,
            total_size,
            last_backup: backed_up.map(|millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis)),
            ..StorageStats::new(self.label())
        };
        let Details { shared, cache } = self.store.options;
        for (name, value) in [
            ("path", json!(self.store.path.display().to_string())),
            ("format_version", json!(engine::FORMAT)),
            ("durability", json!("every write is fsynced before it is acknowledged")),
            ("shared", json!(shared)),
            ("cache_bytes", json!(cache)),
            ("cached_document_bytes", json!(self.store.reader.cache().used())),
            ("stored_bytes", json!(stored_bytes)),
            ("free_bytes", json!(free)),
            ("warnings", json!(low_space(free, total_size))),
            ("queued_writes", json!(self.committer().map_or(0, Committer::queued))),
            ("read_only", json!(self.store.committer.is_none())),
        ] {
            stats.details.insert(name.to_owned(), value);
        }
        Ok(stats)
    }

    async fn close(&self) -> Result<()> {
        let closed = match &self.store.committer {
            Some(committer) => committer.close(time_left(self.deadline)).await,
            None => {
                let reader = self.store.reader.clone();
                let close = move || reader.close().map_or(Ok(()), |engine| engine.close());
                work(self.deadline, false, close).await
            }
        };
        // The last writes were told before.
        self.store.feed.close();
        closed
    }
}

/// The warning for a file system that is almost full.
fn low_space(free: Option<u64>, size: Option<u64>) -> Vec<String> {
    let free = free.filter(|free| *free < LOW_SPACE.max(size.unwrap_or(0)));
    let warning = |free| {
        format!("the file system has {} MiB left; when it is full, only deletes succeed", free / (1 << 20))
    };
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

    use futures_util::FutureExt;
    use serde_json::json;

    use super::{engine::tests::Disk, *};
    use crate::{Key, Outcome, Storage, usage::Within};

    fn on(engine: Engine) -> Storage<File> {
        Storage::new(File::start(engine, PathBuf::from("test"), &FileOptions::new("test")).unwrap())
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
        let mut directory = Directory::open(&path, Access::Create, Sharing::Exclusive).unwrap();
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
    async fn a_panicking_change_does_not_end_the_store() {
        let disk = Disk::default();
        let storage = store_on(&disk);
        storage.set_config("a", json!(1)).await.unwrap();
        let error = storage.backend().write(|_| -> Result<()> { panic!("on purpose") }).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Internal, Outcome::NotApplied));
        storage.set_config("a", json!(2)).await.unwrap();
        storage.health().await.unwrap();
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
        let storage = on(Engine::on(disk).unwrap());
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
            .map(|n| (Key::new(&n.to_string()).unwrap(), json!({ "n": n }).try_into().unwrap()))
            .collect();
        // The engine syncs once more when it makes the file larger, so the file is made large enough first.
        for _ in 0..8 {
            syncs(&disk);
            assert_eq!(storage.set_credentials(&items).await.unwrap().succeeded, 1000);
            let values = items.iter().map(|(key, _)| (key, json!(1)));
            syncs(&disk);
            assert_eq!(storage.set_configs(values).await.unwrap().succeeded, 1000);
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
    async fn a_refused_increment_is_no_commit() {
        let disk = Disk::default();
        let storage = store_on(&disk);
        let within = |delta, limit| storage.increment_within("a", "n", delta, limit);
        let syncs = || disk.syncs.swap(0, Ordering::SeqCst);
        assert_eq!(within(3, 5).await.unwrap(), Within::Counted(3));
        syncs();
        for (delta, limit) in [(3, 5), (0, 2), (-1, 1), (i64::MAX, i64::MAX)] {
            assert_eq!(within(delta, limit).await.unwrap(), Within::Refused(3));
        }
        assert_eq!(storage.increment_within("b", "n", 1, 0).await.unwrap(), Within::Refused(0));
        assert_eq!(within(i64::MIN, 0).await.unwrap(), Within::Counted(3 + i64::MIN));
        assert_eq!(syncs(), 1, "that of the last, which was counted");
        let overflow = within(-4, 0).await.unwrap_err();
        assert_eq!((overflow.kind(), overflow.outcome()), (ErrorKind::Overflow, Outcome::NotApplied));
        assert_eq!((syncs(), storage.list_usage().await.unwrap().len()), (0, 1));
    }

    /// Makes 2,500 usage records whose keys begin with `a/`.
    async fn count_2500(storage: &Storage<File>) {
        let counts: Vec<_> = (0..2500).map(|n| (format!("a/{n:04}"), "n", 1)).collect();
        storage.increment_many(&counts).await.unwrap().complete().unwrap();
    }

    #[tokio::test]
    async fn a_reset_by_prefix_is_a_commit_for_each_page() {
        let disk = Disk::default();
        let storage = store_on(&disk);
        count_2500(&storage).await;
        let syncs = || disk.syncs.swap(0, Ordering::SeqCst);
        syncs();
        assert_eq!(storage.reset_usage_prefix("b").await.unwrap(), 0);
        assert_eq!(syncs(), 0, "there is nothing to delete");
        assert_eq!(storage.reset_usage_prefix("a/").await.unwrap(), 2500);
        assert_eq!(syncs(), 3);
    }

    /// The first page is deleted, the second one waits for the disk.
    #[tokio::test]
    async fn the_outcome_of_a_reset_by_prefix_that_ends_midway_is_unknown() {
        let disk = Disk::default();
        let storage = store_on(&disk);
        count_2500(&storage).await;
        let hurried = storage.with_deadline(Duration::from_millis(300));
        disk.stalled.store(true, Ordering::SeqCst);
        let reset = tokio::spawn(async move { hurried.reset_usage_prefix("a/").await });
        disk.stalls().await;
        // Queued behind the first page, and before the second one, which is then withdrawn.
        let slow = tokio::spawn({
            let backend = storage.backend().clone();
            let sleep = |_: &mut Draft<'_>| {
                std::thread::sleep(Duration::from_millis(600));
                Ok(())
            };
            async move { backend.write(sleep).await }
        });
        while storage.backend().committer().unwrap().queued() < 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        disk.stalled.store(false, Ordering::SeqCst);
        let error = reset.await.unwrap().unwrap_err();
        slow.await.unwrap().unwrap();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown));
        assert_eq!(storage.list_usage().await.unwrap().len(), 1500, "one page was deleted");
        assert_eq!(storage.reset_usage_prefix("a/").await.unwrap(), 1500);
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
            let queued = FutureExt::now_or_never(storage.set_config(format!("k{n}"), json!(n)));
            assert!(queued.is_none(), "the committer is busy");
        }
        disk.stalled.store(false, Ordering::SeqCst);
        storage.health().await.unwrap();
        assert_eq!(storage.get_config("a").await.unwrap().value(), &json!(1), "what was begun is applied");
        assert_eq!(storage.list_configs().await.unwrap().len(), 1, "what was not begun is withdrawn");
    }
}
