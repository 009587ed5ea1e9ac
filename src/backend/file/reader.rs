//! What calls read: a published snapshot where only this process writes, else one of their own.

use std::{
    cell::{Cell, RefCell},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwapOption;

use super::{
    cache::{Cache, Version},
    document::Document,
    draft::{COMMITS, COPYING, Documents},
    engine::{Engine, Header, Snapshot},
    steps::step,
};
use crate::{Error, Found, Key, Outcome, Result};

/// The reading side of a store.
pub(super) struct Reader {
    /// None once the store is closed.
    current: ArcSwapOption<Current>,
    cache: Cache,
    /// Set while this process commits, in a store where others write, too.
    commits: AtomicBool,
    generations: AtomicU64,
    /// See [`writer`](Self::writer).
    writer: u64,
    /// Locked while the store is opened that has replaced this one.
    follows: Mutex<()>,
}

/// The store at a moment.
pub(super) struct Current {
    pub(super) engine: Arc<Engine>,
    view: View,
}

/// Another one after each commit of any process: a generation, and the number of commits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment(u64, Option<u64>);

// Only the state of a store has one, in an `Arc`.
#[expect(clippy::large_enum_variant)]
enum View {
    /// Only this process writes: the state after its last commit.
    Published(Arc<Snapshot>),
    /// Others write, too: each call takes a snapshot. What was cached in this generation counts while the
    /// file's header is this one. While the store is compacted, another file can take its place.
    ///
    /// `commits` is the number of commits that were ever made, if all processes count them.
    Shared { header: Header, generation: u64, is_compacted: bool, commits: Option<u64> },
}

impl Current {
    /// A snapshot of the newest state.
    fn snapshot(&self) -> Result<Arc<Snapshot>> {
        match &self.view {
            View::Published(snapshot) => Ok(snapshot.clone()),
            View::Shared { .. } => self.engine.snapshot().map(Arc::new),
        }
    }

    /// The generation of what the cache may hold. None: the file has had another commit, or was replaced.
    fn generation(&self) -> Result<Option<u64>> {
        match &self.view {
            View::Published(_) => Ok(Some(ONLY)),
            View::Shared { header, generation, is_compacted, .. } => {
                step();
                let is_newest =
                    self.engine.header()? == *header && !(*is_compacted && self.engine.check().is_err());
                Ok(is_newest.then_some(*generation))
            }
        }
    }
}

impl Current {
    /// Keeps the generation of an earlier moment, since which this many commits were made that may have
    /// changed documents.
    fn keep_generation(&mut self, earlier: &Self, own: u64) {
        if let View::Shared { generation, commits: Some(now), .. } = &mut self.view
            && let View::Shared { generation: before, commits: Some(then), .. } = &earlier.view
            && *now == then + own
        {
            *generation = *before;
        }
    }
}

/// The generation of a store where only this process writes.
const ONLY: u64 = 0;

impl Reader {
    pub(super) fn new(engine: Engine, cache_bytes: u64) -> Result<Self> {
        let reader = Self {
            current: ArcSwapOption::empty(),
            cache: Cache::new(cache_bytes),
            commits: AtomicBool::new(false),
            generations: AtomicU64::new(ONLY + 1),
            writer: fastrand::u64(..),
            follows: Mutex::new(()),
        };
        reader.current.store(Some(Arc::new(reader.renewed(&Arc::new(engine))?)));
        Ok(reader)
    }

    /// The store, or an error once it is closed.
    pub(super) fn current(&self) -> Result<Arc<Current>> {
        self.current.load_full().ok_or_else(Error::closed)
    }

    pub(super) const fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Closes the store for reads, and returns it.
    pub(super) fn close(&self) -> Option<Arc<Engine>> {
        // Until no store is being opened, which the directory's lock must outlive.
        let _alone = self.follows.lock().unwrap_or_else(PoisonError::into_inner);
        self.current.swap(None).map(|current| current.engine.clone())
    }

    /// A snapshot of the newest state.
    pub(super) fn snapshot(&self) -> Result<Arc<Snapshot>> {
        self.newest()?.snapshot()
    }

    /// The store, which is that of the file at its path.
    pub(super) fn newest(&self) -> Result<Arc<Current>> {
        let current = self.current()?;
        match current.generation()? {
            Some(_) => Ok(current),
            None => self.renew(&current),
        }
    }

    /// The number of this handle in the log of a watched store.
    pub(super) const fn writer(&self) -> u64 {
        self.writer
    }

    /// The moment of the store, if the file has had no commit since and was not replaced.
    pub(super) fn moment(&self) -> Result<Option<Moment>> {
        let current = self.current()?;
        Ok(current.generation()?.map(|generation| match current.view {
            View::Published(_) => Moment(generation, None),
            View::Shared { commits, .. } => Moment(generation, commits),
        }))
    }

    /// The store after another process has changed or replaced it.
    #[cold]
    fn renew(&self, current: &Arc<Current>) -> Result<Arc<Current>> {
        let mut renewed = self.renewed(&current.engine)?;
        // Closing a store changes the header, too, and no record.
        renewed.keep_generation(current, 0);
        if let View::Shared { is_compacted, .. } = &mut renewed.view
            && *is_compacted
            && current.engine.check().is_err()
        {
            if let Some(next) = self.follow(current)? {
                return Ok(next);
            }
            // It was removed or replaced by something else: reads go on with what is open.
            *is_compacted = false;
        }
        let renewed = Arc::new(renewed);
        // If the committer has published meanwhile, or is about to, its state stays.
        if !self.commits.load(Ordering::SeqCst) {
            self.current.compare_and_swap(current, Some(renewed.clone()));
        }
        Ok(renewed)
    }

    /// Opens the store that has replaced this one by a compaction. None: there is none.
    pub(super) fn follow(&self, current: &Arc<Current>) -> Result<Option<Arc<Current>>> {
        let _alone = self.follows.lock().unwrap_or_else(PoisonError::into_inner);
        let newer = self.current()?;
        if newer.engine.is_other_file(&current.engine) && newer.engine.check().is_ok() {
            return Ok(Some(newer));
        }
        let Some(next) = current.engine.successor()? else { return Ok(None) };
        let next = Arc::new(next);
        self.replace(&next).map(Some)
    }

    /// Publishes the store that has replaced this one by a compaction.
    pub(super) fn replace(&self, next: &Arc<Engine>) -> Result<Arc<Current>> {
        let next = Arc::new(self.renewed(next)?);
        // A closed store stays closed.
        let old = self.current.rcu(|old| old.as_ref().map(|_| next.clone()));
        retire(old.ok_or_else(Error::closed)?);
        Ok(next)
    }

    /// Reads a document, from the cache if it has it. None: it has more bytes than `most`.
    pub(super) fn document<D: Document>(&self, key: &Key, most: usize) -> Result<Option<D>> {
        // Before the state: see `Cache`.
        let version = self.cache.version(D::KIND, key);
        step();
        let current = self.current.load();
        let current = current.as_ref().ok_or_else(Error::closed)?;
        let Some(generation) = current.generation()? else { return self.others_wrote(current, key, most) };
        step();
        match self.cache.get(version, generation, D::KIND, key).and_then(D::from_cached) {
            Some(document) => Ok(Some(document)),
            None => self.read(current, version, generation, key, most),
        }
    }

    #[cold]
    fn read<D: Document>(
        &self,
        current: &Current,
        version: Version,
        generation: u64,
        key: &Key,
        most: usize,
    ) -> Result<Option<D>> {
        step();
        let document: Option<D> = current.snapshot()?.document(key, most)?;
        step();
        if let Some(document) =
            document.as_ref().filter(|_| current.generation().is_ok_and(|now| now.is_some()))
        {
            self.cache.put(version, generation, key, document.parsed());
        }
        Ok(document)
    }

    /// Reads a document from a store that another process has changed, or that this one is about to change.
    #[cold]
    fn others_wrote<D: Document>(&self, current: &Arc<Current>, key: &Key, most: usize) -> Result<Option<D>> {
        let renewed = self.renew(current)?;
        step();
        renewed.snapshot()?.document(key, most)
    }

    /// Reads documents, all from one state. None: one that is not cached has more bytes than `most`.
    pub(super) fn documents<D: Document>(&self, keys: &[Key], most: usize) -> Result<Option<Found<D>>> {
        let current = self.newest()?;
        step();
        let snapshot = current.snapshot()?;
        let generation = current.generation()?;
        let (read, is_large) = (RefCell::new(Vec::new()), Cell::new(false));
        let stored = |key: &Key| match snapshot.document(key, most)? {
            Some(document) => Ok(document),
            None => {
                is_large.set(true);
                Err(D::missing(key))
            }
        };
        let get = |key: &Key| {
            let version = self.cache.version(D::KIND, key);
            step();
            let cached = generation.and_then(|generation| self.cache.get(version, generation, D::KIND, key));
            if let Some(document) = cached.and_then(D::from_cached) {
                return Ok(document);
            }
            let document: D = stored(key)?;
            read.borrow_mut().push((version, key.clone(), document.parsed()));
            Ok(document)
        };
        let mut found = Found::collect(keys, get);
        step();
        // What the cache had belongs to the snapshot only if nothing was published meanwhile.
        let is_current = self.current.load().as_ref().is_some_and(|now| Arc::ptr_eq(now, &current));
        match (is_current, generation, current.generation()?) {
            (true, Some(generation), Some(_)) => {
                for (version, key, parsed) in read.into_inner() {
                    self.cache.put(version, generation, &key, parsed);
                }
            }
            (_, None, _) => {}
            _ => found = Found::collect(keys, stored),
        }
        Ok((!is_large.get()).then_some(found))
    }

    /// The store with a new generation.
    fn renewed(&self, engine: &Arc<Engine>) -> Result<Current> {
        let view = if engine.is_shared() {
            let generation = self.generations.fetch_add(1, Ordering::SeqCst);
            // Before the look whether it is compacted: a compaction begins with a commit.
            let header = engine.header()?;
            let snapshot = engine.snapshot()?;
            let is_compacted = snapshot.number(COPYING)?.is_some();
            let commits = if engine.counts_commits() { snapshot.number(COMMITS)? } else { None };
            View::Shared { header, generation, is_compacted, commits }
        } else {
            View::Published(Arc::new(engine.snapshot()?))
        };
        Ok(Current { engine: engine.clone(), view })
    }

    /// Commits the changes to this store, and publishes the state after it.
    pub(super) fn commit(
        &self,
        current: &Current,
        changed: &Documents,
        commit: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let engine = &current.engine;
        let commits = Commits::begin(&self.commits);
        let hidden = self.cache.begin(changed);
        step();
        let committed = commit().and_then(|()| {
            step();
            self.renewed(engine).map_err(|error| error.with_outcome(Outcome::Unknown))
        });
        let committed = committed.map(|mut after| {
            // What was cached before still counts if no other commit lies between.
            after.keep_generation(current, 1);
            self.current.store(Some(Arc::new(after)));
        });
        step();
        drop(commits);
        drop(hidden);
        committed
    }
}

/// Tells readers that this process commits, until it is dropped.
struct Commits<'r>(&'r AtomicBool);

impl<'r> Commits<'r> {
    fn begin(commits: &'r AtomicBool) -> Self {
        commits.store(true, Ordering::SeqCst);
        Self(commits)
    }
}

impl Drop for Commits<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// Drops the store that was replaced, once its last reader is done or after a while. Closing its file takes
/// time, which must not be a reader's.
fn retire(old: Arc<Current>) {
    let retired = std::thread::Builder::new().name("gateway-storage-old".into()).spawn(move || {
        let mut old = Some(old);
        let mut engine = None;
        for _ in 0..RETIRE_LOOKS {
            match old.take().map(Arc::try_unwrap) {
                // Without its own snapshot.
                Some(Ok(Current { engine: last, .. })) => engine = Some(last),
                Some(Err(read)) => old = Some(read),
                None => {}
            }
            if engine.as_ref().is_some_and(|engine| engine.is_unread()) {
                break;
            }
            std::thread::sleep(RETIRE_EVERY);
        }
    });
    // Without a thread it was dropped here.
    drop(retired);
}

const RETIRE_LOOKS: u32 = 600;
const RETIRE_EVERY: std::time::Duration = std::time::Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::{super::engine::tests::Disk, *};

    #[test]
    fn a_closed_store_stays_closed() {
        let reader = Reader::new(Disk::default().store(), 0).unwrap();
        let next = Arc::new(Disk::default().store());
        reader.replace(&next).unwrap();
        assert!(!reader.close().unwrap().is_other_file(&next));
        assert!(reader.replace(&next).is_err());
        assert!(reader.current().is_err());
    }
}
