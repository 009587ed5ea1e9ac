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

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    engine::Engine,
    state::{Draft, State},
};
use crate::{
    Error, ErrorKind, Outcome, Result,
    backend::local::thread::{Joined, Ticket},
};

/// Writes that may wait in the queue. More wait for a slot, within their deadlines.
const QUEUE: usize = 4096;

/// The most writes in one commit, so that the first does not wait for an endless group.
const MAX_GROUP: usize = 1024;

/// The handle of the committer: the only way to change the store.
pub(super) struct Committer {
    queue: mpsc::Sender<Message>,
    /// The result of closing, once the store is released.
    released: watch::Receiver<Option<Result<()>>>,
    /// Declared after the queue, because the thread ends with it.
    _thread: Joined,
}

enum Message {
    Write(Box<dyn Write>),
    Compact(oneshot::Sender<Result<u64>>),
    Close,
}

impl Committer {
    pub(super) fn start(engine: Engine, state: Arc<ArcSwap<State>>) -> Result<Self> {
        let (queue, messages) = mpsc::channel(QUEUE);
        let (releasing, released) = watch::channel(None);
        let worker = Worker { engine, state, failed: None };
        let thread = thread::Builder::new()
            .name("gateway-storage-file".into())
            .spawn(move || {
                let closed = worker.run(messages);
                releasing.send_replace(Some(closed));
            })
            .map_err(|error| {
                Error::new(ErrorKind::Unavailable, "the committer thread can't be started").with_source(error)
            })?;
        Ok(Self { queue, released, _thread: Joined::new(thread) })
    }

    /// The number of waiting writes.
    pub(super) fn queued(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Queues a change and waits until it is durable or has failed.
    ///
    /// A caller that stops waiting before the committer begins with the change, by the deadline or by
    /// dropping the future, withdraws it.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        deadline: Duration,
        change: impl FnOnce(&mut Draft) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let ticket = Ticket::default();
        let write = Box::new(Pending { change: Some(change), result: None, reply, begun: ticket.begun() });
        match tokio::time::timeout(deadline, self.ask(Message::Write(write), answer)).await {
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

    /// Compacts the store after the writes that were queued before. Returns by how many bytes the file has
    /// shrunk.
    pub(super) async fn compact(&self, deadline: Duration) -> Result<u64> {
        let (reply, answer) = oneshot::channel();
        match tokio::time::timeout(deadline, self.ask(Message::Compact(reply), answer)).await {
            Ok(answer) => answer.unwrap_or_else(|| Err(Error::closed())),
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

/// A queued change, with any type of result.
trait Write: Send {
    /// Applies the change to the draft. Returns false if it was withdrawn.
    fn apply(&mut self, draft: &mut Draft) -> bool;

    /// Answers with the change's own result, or with the error of the commit.
    fn answer(self: Box<Self>, committed: &Result<()>);
}

struct Pending<T, F> {
    change: Option<F>,
    result: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
    begun: Arc<AtomicBool>,
}

impl<T: Send, F: FnOnce(&mut Draft) -> Result<T> + Send> Write for Pending<T, F> {
    fn apply(&mut self, draft: &mut Draft) -> bool {
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
struct Worker {
    engine: Engine,
    state: Arc<ArcSwap<State>>,
    /// The error of the first failed commit. After it the contents of the disk are unknown.
    failed: Option<Error>,
}

impl Worker {
    fn run(mut self, mut messages: mpsc::Receiver<Message>) -> Result<()> {
        while let Some(first) = messages.blocking_recv() {
            let mut group = Vec::new();
            let mut next = Some(first);
            while let Some(message) = next {
                match message {
                    Message::Write(write) => group.push(write),
                    Message::Compact(reply) => {
                        self.commit(std::mem::take(&mut group));
                        drop(reply.send(self.compact()));
                    }
                    // Queued writes are finished; later ones are refused.
                    Message::Close => messages.close(),
                }
                next = if group.len() < MAX_GROUP { messages.try_recv().ok() } else { None };
            }
            self.commit(group);
        }
        self.state.store(Arc::new(State::closed()));
        let closed = guarded(|| self.engine.close());
        // After a failed write the engine can't close cleanly. That write's caller has the error; the others
        // are on disk.
        if self.failed.is_some() { Ok(()) } else { closed }
    }

    /// Applies a group of writes, makes them durable, publishes them, and answers each.
    fn commit(&mut self, mut group: Vec<Box<dyn Write>>) {
        if group.is_empty() {
            return;
        }
        let mut draft = Draft::new(State::clone(&self.state.load()));
        let applied = guarded(|| {
            group.retain_mut(|write| write.apply(&mut draft));
            Ok(())
        });
        // The draft is dropped and the disk is unchanged: the store continues.
        if let Err(error) = applied {
            let error = Err(error.with_outcome(Outcome::NotApplied));
            group.into_iter().for_each(|write| write.answer(&error));
            return;
        }
        let (state, writes) = draft.into_parts();
        let committed = match &self.failed {
            Some(first) => Err(refused(first)),
            None if writes.is_empty() => self.engine.check(),
            None => guarded(|| self.engine.commit(&writes)),
        };
        // A retry would fail too.
        let committed = committed.map_err(|error| error.with_retryable(false));
        match &committed {
            Ok(()) if !writes.is_empty() => self.state.store(Arc::new(state)),
            Ok(()) => {}
            Err(error) => drop(self.failed.get_or_insert_with(|| error.clone())),
        }
        for write in group {
            write.answer(&committed);
        }
    }

    fn compact(&mut self) -> Result<u64> {
        if let Some(first) = &self.failed {
            return Err(refused(first));
        }
        let compacted = guarded(|| self.engine.compact());
        match compacted {
            // The file is unchanged.
            Err(error) if error.kind() == ErrorKind::Busy => Err(error),
            Err(error) => {
                let error = error.with_retryable(false);
                self.failed = Some(error.clone());
                Err(error)
            }
            compacted => compacted,
        }
    }
}

#[cold]
fn refused(first: &Error) -> Error {
    Error::new(ErrorKind::Unavailable, "an earlier write failed: open the store again to write")
        .with_source(first.clone())
}

/// Runs the engine and catches its panics, so that callers get an answer.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Internal, "the storage engine panicked").with_outcome(Outcome::Unknown))
    })
}
