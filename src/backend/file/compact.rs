//! Compaction: a copy of the store, in which nothing is dead, takes its place while it is used.
//!
//! ```text
//! commit:     round 1 begins. From here on, every commit of every process notes the names that it changes
//! copy:       all tables, from a snapshot after that commit
//! catch up:   a commit begins the next round; the names of the round before are copied again, from a
//!             snapshot after that commit. Repeated until a round has few names
//! last:       within a write transaction of the store, so that no process writes: the names of the last
//!             round, then the copy gets the store's name
//! ```
//!
//! A process that still has the old file open finds another one at the path: before each of its writes, and
//! before each read while the old file says that it is compacted, which it says for good. It then opens the
//! new file if that has the same id and was compacted more often.
//!
//! A process that is killed before the rename leaves an unfinished file and the notes, which the next opening
//! or compaction removes; a committer that runs on looks for them each minute. The lock of the unfinished
//! file says whether its process still runs.

use std::{
    fs,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use redb::{Builder, backends::FileBackend};

use super::{
    File,
    committer::Line,
    copy::{Lineage, check_lengths, copy_all, copy_changed, not_copied},
    directory::Directory,
    draft::{COPYING, STORED_BYTES},
    engine::Engine,
    reader::Reader,
};
use crate::{Error, ErrorKind, Outcome, Result};

/// A file of at least this size is compacted by itself once its records take less than a [`DEAD_FACTOR`]th.
const DEAD_BYTES: u64 = 64 << 20;

/// See [`DEAD_BYTES`].
const DEAD_FACTOR: u64 = 4;

/// What a compaction leaves free of the file system for writes, beside one and a half times the bytes of the
/// records.
const SPARE_BYTES: u64 = 32 << 20;

/// How often the size of the file is looked at, and a compaction begins by itself at most.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The last round has at most this number of names, unless many rounds did not lead to so few.
const FEW_NAMES: u64 = 256;

const MAX_ROUNDS: u64 = 64;

impl File {
    /// Returns the space of deleted and replaced records to the file system, while the store is used. Returns
    /// by how many bytes the file has shrunk.
    ///
    /// The store is copied into a second file in its directory, which then takes the place of the first:
    /// until then the file system needs room for both. Reads do not wait, and writes wait no longer than for
    /// another commit. Other processes that have the store open go on with the new file. An export that is
    /// under way goes on with the old one, whose space is free once it ends.
    ///
    /// A file of more than 64 MiB is compacted by itself once its records take less than a quarter of it.
    ///
    /// # Errors
    ///
    /// [`Busy`](ErrorKind::Busy) if the store is being compacted already, also by another process. As for a
    /// write; the old file then stays. There is no deadline. A call that is dropped goes on.
    pub async fn compact(&self) -> Result<u64> {
        let (reader, line) = (self.store.reader.clone(), self.committer()?.line());
        let compacted = tokio::task::spawn_blocking(move || compact(&reader, &line)).await;
        compacted.unwrap_or_else(|_| {
            let message = "the compaction panicked, or the runtime has ended";
            Err(Error::new(ErrorKind::Internal, message).with_outcome(Outcome::Unknown))
        })
    }
}

/// Compacts the store of this reader.
fn compact(reader: &Arc<Reader>, line: &Line) -> Result<u64> {
    // Also follows a file that another process has compacted, and refuses a lost one.
    line.write(|_| Ok(()))?;
    let engine = reader.current()?.engine.clone();
    let directory = engine.directory().cloned().ok_or_else(Error::closed)?;
    let before = directory.size().unwrap_or(0);
    let stored = engine.snapshot()?.counted(STORED_BYTES)?;
    if directory.free().is_some_and(|free| free < stored / 2 * 3 + SPARE_BYTES) {
        let message = "the file system has no room for a copy of the store, which a compaction makes";
        return Err(Error::new(ErrorKind::Unavailable, message).with_code("os error 28"));
    }
    let Some(file) = directory.new_copy()? else {
        return Err(Error::new(ErrorKind::Busy, "the store is being compacted already"));
    };
    // Not 0, and so far from the largest number that no round overflows.
    let first = random() / 2 + 1;
    let copied = copied(reader, line, &engine, file, first);
    if let Err(error) = copied {
        // If this fails, too, the next opening does it. Neither touches the compaction of another process,
        // which may have begun since.
        drop(directory.remove_dead_copy());
        drop(line.write(move |draft| draft.end_rounds(first..=first + MAX_ROUNDS)));
        return Err(error);
    }
    Ok(before.saturating_sub(directory.size().unwrap_or(before)))
}

/// Makes the copy, and gives it the place of the store.
fn copied(reader: &Arc<Reader>, line: &Line, engine: &Arc<Engine>, file: fs::File, first: u64) -> Result<()> {
    let copy = Builder::new()
        .set_cache_size(engine.cache_bytes() / 2)
        .create_with_backend(FileBackend::new(file).map_err(|error| not_copied(error.into()))?)
        .map_err(|error| not_copied(error.into()))?;
    line.write(move |draft| draft.begin_copying(random(), first))?;
    let mut round = first;
    // A copy of a store that is closed or lost meanwhile is not wanted.
    let is_wanted = || reader.current().is_ok_and(|current| !current.engine.is_other_file(engine));
    copy_all(&engine.snapshot()?, &copy, Lineage::Successor, &is_wanted)?;
    for _ in 0..MAX_ROUNDS {
        let next = line.write(move |draft| draft.next_round(round))?;
        let names = copy_changed(&engine.snapshot()?, &copy, round)?;
        round = next;
        if names <= FEW_NAMES {
            break;
        }
    }
    let engine = engine.clone();
    line.work(move |reader| match switched(reader, &engine, copy, round) {
        Ok(None) => (Ok(()), None),
        Ok(Some(unsynced)) => (Err(unsynced.clone()), Some(unsynced)),
        Err(error) => (Err(error), None),
    })
}

fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// Copies the last round while no process can write, and gives the copy the place of the store.
///
/// The second error: the copy has taken the place, but its name may not be on disk.
fn switched(reader: &Reader, old: &Arc<Engine>, copy: redb::Database, round: u64) -> Result<Option<Error>> {
    let transaction = old.begin()?;
    old.check()?;
    let directory = old.directory().ok_or_else(Error::closed)?;
    let last = old.snapshot()?;
    if last.number(COPYING)? != Some(round) {
        return Err(Error::new(ErrorKind::Unavailable, "the compaction was ended by another process"));
    }
    copy_changed(&last, &copy, round)?;
    // Closed and opened again before it gets its name: what can still fail then is the rename, to publish it
    // and to sync its name.
    copy.close().map_err(|error| not_copied(error.into()))?;
    let next = Arc::new(old.open_copy()?);
    // Only now: for a moment it was not locked.
    check_lengths(&last, next.snapshot()?.transaction())?;
    directory.rename()?;
    let published = reader.replace(&next);
    let unsynced = directory.sync().err();
    // Other processes wait for this.
    drop(transaction);
    let unknown = |error: Error| error.with_outcome(Outcome::Unknown);
    Ok(published.err().or(unsynced).map(unknown))
}

/// Looks, after each commit, whether most of the file is dead, and then begins a compaction.
pub(super) fn watch(reader: Arc<Reader>, line: Line) -> Box<dyn FnMut() + Send> {
    let mut watch = Watch::new(reader, line);
    Box::new(move || watch.look())
}

struct Watch {
    reader: Arc<Reader>,
    line: Line,
    looked: Instant,
    /// The file must have this size for the next one: a compaction that frees nothing is not repeated soon.
    least: Arc<AtomicU64>,
    is_running: Arc<AtomicBool>,
}

impl Watch {
    fn new(reader: Arc<Reader>, line: Line) -> Self {
        Self {
            reader,
            line,
            // Not at once: a short command would begin a compaction, and give it up at its end.
            looked: Instant::now(),
            least: Arc::new(AtomicU64::new(DEAD_BYTES)),
            is_running: Arc::default(),
        }
    }

    fn look(&mut self) {
        if self.looked.elapsed() < LOOK_EVERY {
            return;
        }
        self.looked = Instant::now();
        let Some(size) = self.dead_size() else { return };
        if self.is_running.swap(true, Ordering::AcqRel) {
            return;
        }
        let (reader, line) = (self.reader.clone(), self.line.clone());
        let (least, is_running) = (self.least.clone(), self.is_running.clone());
        let begun = thread::Builder::new().name("gateway-storage-compact".into()).spawn(move || {
            let left = match compact(&reader, &line) {
                Ok(bytes) => {
                    tracing::info!(bytes, "the store was compacted, because most of its file was dead");
                    size.saturating_sub(bytes)
                }
                Err(error) => {
                    tracing::warn!(kind = error.kind().as_str(), "the store can't be compacted");
                    size
                }
            };
            least.store(DEAD_BYTES.max(left.saturating_mul(2)), Ordering::Release);
            is_running.store(false, Ordering::Release);
        });
        if begun.is_err() {
            self.is_running.store(false, Ordering::Release);
        }
    }

    /// The size of the file, if most of it is dead.
    fn dead_size(&self) -> Option<u64> {
        let engine = self.reader.current().ok()?.engine.clone();
        let least = self.least.load(Ordering::Acquire);
        let size = engine.directory().and_then(Directory::size).filter(|size| *size >= least)?;
        let stored = engine.snapshot().ok()?.number(STORED_BYTES).ok()??;
        (stored.saturating_mul(DEAD_FACTOR) < size).then_some(size)
    }
}
