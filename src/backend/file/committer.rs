//! Group commit: one thread takes all waiting writes and commits them with one fsync.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};

use super::{
    directory::RESERVE_BYTES,
    draft::{Draft, Memory},
    engine::Engine,
    reader::Reader,
};
use crate::{
    Error, ErrorKind, Outcome, Result,
    backend::{
        feed::Feed,
        local::thread::{Joined, Ticket},
    },
    layer::later,
};

/// Writes that may wait in the queue. More wait for a slot, within their deadlines.
const QUEUE: usize = 4096;

/// The bytes that the queued writes may hold. More wait, before their values are encoded.
const QUEUE_BYTES: usize = 64 << 20;

/// The most writes in one commit, so that the first does not wait for an endless group.
const MAX_GROUP: usize = 1024;

/// A commit takes no more writes once it has this many bytes.
const MAX_GROUP_BYTES: usize = 8 << 20;

/// The space of the file system that writes leave free, so that deletes can still be written.
const SPARE_SPACE: u64 = 1 << 20;

/// The handle of the committer: the only way to change the store.
pub(super) struct Committer {
    queue: mpsc::Sender<Message>,
    budget: Arc<Semaphore>,
    /// The result of closing, once the store is released.
    released: watch::Receiver<Option<Result<()>>>,
    line: Line,
    /// Declared after the queue, because the thread ends with it.
    _thread: Joined,
}

enum Message {
    Write(Box<dyn Write>),
    /// Work that takes the place of a commit.
    Work(Work),
    Close,
}

/// Returns the error that ends the writes, if any.
type Work = Box<dyn FnOnce(&Reader) -> Option<Error> + Send>;

/// A way to the committer's thread for a thread of this folder, which does not keep the store open.
#[derive(Clone)]
pub(super) struct Line {
    queue: mpsc::WeakSender<Message>,
    budget: Arc<Semaphore>,
}

impl Line {
    /// As [`Committer::write`], but waits here.
    pub(super) fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Draft<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let permit = self.budget.clone().try_acquire_many_owned(0).map_err(|_| Error::closed())?;
        let (reply, answer) = oneshot::channel();
        let begun = Arc::default();
        let write = Pending { change: Some(change), result: None, reply, begun, permit, items: 1 };
        self.ask(Message::Write(Box::new(write)))?;
        answer.blocking_recv().unwrap_or_else(|_| Err(abandoned()))
    }

    /// Runs work on the committer's thread between two commits. The work's second result is an error after
    /// which no more is written.
    pub(super) fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Reader) -> (Result<T>, Option<Error>) + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.ask(Message::Work(Box::new(move |reader| {
            let (result, failed) = work(reader);
            drop(reply.send(result));
            failed
        })))?;
        answer.blocking_recv().unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Unavailable, "the store takes no more writes: open it again to write"))
        })
    }

    fn ask(&self, message: Message) -> Result<()> {
        let queue = self.queue.upgrade().ok_or_else(Error::closed)?;
        queue.blocking_send(message).map_err(|_| Error::closed())
    }
}

impl Committer {
    /// Starts the thread. After each commit it calls what `after_commit` returns.
    pub(super) fn start<F: FnMut() + Send + 'static>(
        reader: Arc<Reader>,
        feed: Feed,
        after_commit: impl FnOnce(Line) -> F,
    ) -> Result<Self> {
        let (queue, messages) = mpsc::channel(QUEUE);
        let (releasing, released) = watch::channel(None);
        let budget = Arc::new(Semaphore::new(QUEUE_BYTES));
        let line = Line { queue: queue.downgrade(), budget: budget.clone() };
        let after_commit = after_commit(line.clone());
        let memory = Memory::of(reader.writer());
        let worker = Worker { reader, feed, memory, failed: None, after_commit };
        let thread = thread::Builder::new()
            .name("gateway-storage-file".into())
            .spawn(move || {
                let closed = worker.run(messages);
                releasing.send_replace(Some(closed));
            })
            .map_err(|error| {
                Error::new(ErrorKind::Unavailable, "the committer thread can't be started").with_source(error)
            })?;
        Ok(Self { queue, budget, released, line, _thread: Joined::new(thread) })
    }

    pub(super) fn line(&self) -> Line {
        self.line.clone()
    }

    /// The number of waiting writes.
    pub(super) fn queued(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Waits until the queue can hold a write of this many items and bytes.
    pub(super) async fn admit(&self, items: usize, bytes: usize, deadline: Duration) -> Result<Admitted> {
        // A write that is larger than the queue waits until it is alone.
        let bytes = bytes.saturating_add(items.saturating_mul(ITEM_BYTES)).min(QUEUE_BYTES) as u32;
        let until = later(Instant::now(), deadline);
        match timeout_at(until, self.budget.clone().acquire_many_owned(bytes)).await {
            Ok(Ok(permit)) => Ok(Admitted { permit, items, until }),
            Ok(Err(_)) => Err(Error::closed()),
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                "the deadline passed while the write waited for a place in the queue; it was not made",
            )),
        }
    }

    /// Queues a change and waits until it is durable or has failed.
    ///
    /// A caller that stops waiting before the committer begins with the change, by the deadline or by
    /// dropping the future, withdraws it.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        admitted: Admitted,
        change: impl FnOnce(&mut Draft<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let ticket = Ticket::default();
        let Admitted { permit, items, until } = admitted;
        let begun = ticket.begun();
        let write = Box::new(Pending { change: Some(change), result: None, reply, begun, permit, items });
        match timeout_at(until, self.ask(Message::Write(write), answer)).await {
            Ok(Some(result)) => result,
            Ok(None) if ticket.take() => Err(Error::closed()),
            Ok(None) => Err(abandoned()),
            Err(_) if ticket.take() => Err(Error::new(
                ErrorKind::Timeout,
                "the deadline passed while the write was queued; it was withdrawn",
            )),
            Err(_) => Err(unanswered()),
        }
    }

    /// Finishes the queue and releases the store. Returns once it is released; every caller gets the same
    /// result.
    pub(super) async fn close(&self, deadline: Duration) -> Result<()> {
        let closed = async {
            // The queue is already closed if another call was first.
            drop(self.queue.send(Message::Close).await);
            let mut released = self.released.clone();
            let closed = released.wait_for(Option::is_some).await.ok().and_then(|closed| closed.clone());
            closed.unwrap_or_else(|| Err(abandoned()))
        };
        tokio::time::timeout(deadline, closed).await.unwrap_or_else(|_| Err(unanswered()))
    }

    /// Sends a message and waits for its answer. `None`: the committer has ended.
    async fn ask<T>(&self, message: Message, answer: oneshot::Receiver<Result<T>>) -> Option<Result<T>> {
        self.queue.send(message).await.ok()?;
        answer.await.ok()
    }
}

#[cold]
fn unanswered() -> Error {
    Error::new(ErrorKind::Timeout, "the deadline passed while the store was being written")
        .with_outcome(Outcome::Unknown)
}

#[cold]
fn abandoned() -> Error {
    Error::new(ErrorKind::Internal, "the committer thread panicked during a write")
        .with_outcome(Outcome::Unknown)
}

/// What an item of a write counts for beside its value.
const ITEM_BYTES: usize = 256;

/// An item may change a leaf of its own, and a page above it.
const ITEM_PAGES: u64 = 2 * 4096;

/// A place in the queue, until the deadline of the call.
pub(super) struct Admitted {
    permit: OwnedSemaphorePermit,
    items: usize,
    pub(super) until: Instant,
}

/// A queued change, with any type of result.
trait Write: Send {
    /// Applies the change to the draft. Returns false if it was withdrawn.
    fn apply(&mut self, draft: &mut Draft<'_>) -> bool;

    /// The bytes that it counts for.
    fn bytes(&self) -> usize;

    fn items(&self) -> usize;

    /// Answers with the change's own result, or with the error of the commit.
    fn answer(self: Box<Self>, committed: &Result<()>);
}

struct Pending<T, F> {
    change: Option<F>,
    result: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
    begun: Arc<AtomicBool>,
    permit: OwnedSemaphorePermit,
    items: usize,
}

impl<T: Send, F: FnOnce(&mut Draft<'_>) -> Result<T> + Send> Write for Pending<T, F> {
    fn bytes(&self) -> usize {
        self.permit.num_permits()
    }

    fn items(&self) -> usize {
        self.items
    }

    fn apply(&mut self, draft: &mut Draft<'_>) -> bool {
        if self.begun.swap(true, Ordering::AcqRel) {
            return false;
        }
        self.result = self.change.take().map(|change| change(draft));
        true
    }

    fn answer(self: Box<Self>, committed: &Result<()>) {
        let Self { result, reply, .. } = *self;
        // In a failed group no write gets its own result, because it may depend on changes that were not
        // committed.
        let answer = committed.clone().and_then(|()| result.unwrap_or_else(|| Err(abandoned())));
        // If the caller has stopped waiting, the change stays.
        drop(reply.send(answer));
    }
}

/// The thread's side.
struct Worker<F> {
    reader: Arc<Reader>,
    feed: Feed,
    memory: Memory,
    /// The error of the first failed commit. After it the contents of the disk are unknown.
    failed: Option<Error>,
    /// Called after each commit.
    after_commit: F,
}

impl<F: FnMut()> Worker<F> {
    fn run(mut self, mut messages: mpsc::Receiver<Message>) -> Result<()> {
        while let Some(first) = messages.blocking_recv() {
            let (mut group, mut bytes, mut works) = (Vec::new(), 0, Vec::new());
            let mut next = Some(first);
            while let Some(message) = next {
                match message {
                    Message::Write(write) => {
                        bytes += write.bytes();
                        group.push(write);
                    }
                    Message::Work(work) => works.push(work),
                    // Queued writes are finished; later ones are refused.
                    Message::Close => messages.close(),
                }
                let takes_more = group.len() < MAX_GROUP && bytes < MAX_GROUP_BYTES;
                next = if takes_more { messages.try_recv().ok() } else { None };
            }
            if !group.is_empty() {
                self.commit(group, bytes);
            }
            for work in works {
                if self.failed.is_some() {
                    break;
                }
                if let Ok(Some(failed)) = guarded(|| Ok(work(&self.reader))) {
                    self.failed = Some(failed.with_retryable(false));
                }
            }
            if self.failed.is_none() {
                (self.after_commit)();
            }
        }
        let Some(engine) = self.reader.close() else { return Ok(()) };
        let closed = guarded(|| engine.close());
        // After a failed write the engine can't close cleanly. That write's caller has the error; the others
        // are on disk.
        if self.failed.is_some() { Ok(()) } else { closed }
    }

    /// Applies a group of writes, makes them durable, publishes them, and answers each.
    fn commit(&mut self, mut group: Vec<Box<dyn Write>>, bytes: usize) {
        let committed = match &self.failed {
            Some(first) => Err(refused(first)),
            None => guarded(|| self.written(&mut group, bytes)),
        };
        let committed = match committed {
            // The panic of a change: the transaction is dropped, and the store continues.
            Ok(Applied::Panicked) => Err(panicked().with_outcome(Outcome::NotApplied)),
            Ok(Applied::Whole) => Ok(()),
            // A retry would fail too.
            Err(error) => {
                let error = error.with_retryable(false);
                self.failed.get_or_insert_with(|| error.clone());
                Err(error)
            }
        };
        for write in group {
            write.answer(&committed);
        }
    }

    fn written(&mut self, group: &mut Vec<Box<dyn Write>>, bytes: usize) -> Result<Applied> {
        let mut current = self.reader.current()?;
        let transaction = loop {
            // Before any write counts as begun: it may take long, where another process writes.
            let transaction = current.engine.begin()?;
            // Nothing is written to a file that has lost its name. Within the transaction, in which no other
            // process can give it to a compacted file.
            let Err(lost) = current.engine.check() else { break transaction };
            drop(transaction);
            current = self.reader.follow(&current)?.ok_or(lost)?;
        };
        let engine = &current.engine;
        let is_full = is_full(engine, bytes, group.iter().map(|write| write.items()).sum());
        let mut draft = Draft::new(&transaction, &mut self.memory, is_full)?;
        draft.end_dead_copy(engine.directory())?;
        let applied = guarded(|| {
            group.retain_mut(|write| write.apply(&mut draft));
            Ok(())
        });
        if applied.is_err() {
            return Ok(Applied::Panicked);
        }
        match draft.finish(engine.is_shared())? {
            None => engine.check()?,
            Some(changed) => {
                self.reader.commit(&current, &changed, || engine.commit(transaction))?;
                // Now every reader finds the changes.
                self.feed.tell(|| changed.into_iter().map(|(kind, key)| (kind, Some(key))));
            }
        }
        Ok(Applied::Whole)
    }
}

/// How a group was applied.
enum Applied {
    Whole,
    /// One of its changes panicked, so none was made.
    Panicked,
}

/// Whether the file system has no space for writes of this many bytes and items, whose pages are written
/// anew.
///
/// Then the reserve is given back. Until there is space for the reserve again, the store counts as full, so
/// that no other write uses it.
fn is_full(engine: &Engine, bytes: usize, items: usize) -> bool {
    let Some(directory) = engine.directory() else { return false };
    let Some(free) = directory.free() else { return false };
    let size = directory.size().unwrap_or(0);
    let pages = (items as u64).saturating_mul(ITEM_PAGES).min(size);
    let needed = SPARE_SPACE + 2 * bytes as u64 + pages;
    if directory.has_reserve() {
        let is_full = free < needed;
        if is_full {
            directory.release_reserve();
        }
        return is_full;
    }
    let is_full = free < needed + RESERVE_BYTES;
    if !is_full {
        directory.take_reserve();
    }
    is_full
}

#[cold]
fn refused(first: &Error) -> Error {
    Error::new(ErrorKind::Unavailable, "an earlier write failed: open the store again to write")
        .with_source(first.clone())
}

#[cold]
fn panicked() -> Error {
    Error::new(ErrorKind::Internal, "the storage engine panicked").with_outcome(Outcome::Unknown)
}

/// Runs the engine and catches its panics, so that callers get an answer.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(panicked()))
}
