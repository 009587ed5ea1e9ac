//! Group commit: one thread that takes whatever writes are waiting, and one fsync for all of them.

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
    backend::local::{Joined, Ticket},
};

/// How many writes may wait. Those that come later wait for a place, within their deadlines.
const QUEUE: usize = 4096;

/// How many writes share a commit at most, so that the first one does not wait for an endless group.
const GROUP: usize = 1024;

/// The committer's handle: the only way to change the store.
pub(super) struct Committer {
    queue: mpsc::Sender<Message>,
    /// How the store was released, once it is.
    released: watch::Receiver<Option<Result<()>>>,
    /// After the queue, whose end ends it.
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

    /// How many writes are waiting.
    pub(super) fn queued(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Queues a change, and waits until it is durable or has failed.
    ///
    /// Whoever stops waiting before the committer begins with the change, by the deadline or because the future is
    /// dropped, takes it back.
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
                "the write was still waiting for others when its deadline passed, and was withdrawn",
            )),
            Err(_) => Err(unanswered()),
        }
    }

    /// Compacts the store, after the writes that were queued before. Says how many bytes the file has lost.
    pub(super) async fn compact(&self, deadline: Duration) -> Result<u64> {
        let (reply, answer) = oneshot::channel();
        match tokio::time::timeout(deadline, self.ask(Message::Compact(reply), answer)).await {
            Ok(answer) => answer.unwrap_or_else(|| Err(Error::closed())),
            Err(_) => Err(unanswered()),
        }
    }

    /// Finishes what is queued and releases the store. Returns once it is released; every caller gets the same result.
    pub(super) async fn close(&self, deadline: Duration) -> Result<()> {
        let closed = async {
            // The queue is closed already if another call came first.
            drop(self.queue.send(Message::Close).await);
            let mut released = self.released.clone();
            let closed = released.wait_for(Option::is_some).await.ok().and_then(|closed| closed.clone());
            closed.unwrap_or_else(|| Err(abandoned()))
        };
        tokio::time::timeout(deadline, closed).await.unwrap_or_else(|_| Err(unanswered()))
    }

    /// Sends a message and waits for its answer. `None`: the committer is gone.
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
    Error::new(ErrorKind::Internal, "the committer thread died in the middle of a write")
        .with_outcome(Outcome::Unknown)
}

/// A queued change of any type of answer.
trait Write: Send {
    /// Applies the change to the draft, unless it was withdrawn. Says whether it was there.
    fn apply(&mut self, draft: &mut Draft) -> bool;

    /// Answers: the change's own result, or the error of the commit.
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
        // Of a failed group nobody gets a result of its own: it may rest on changes that are not there.
        let answer = committed.clone().and_then(|()| result.unwrap_or_else(|| Err(abandoned())));
        // If nobody waits any more, the change stays.
        drop(reply.send(answer));
    }
}

/// The committer's own side.
struct Worker {
    engine: Engine,
    state: Arc<ArcSwap<State>>,
    /// The error of the first commit that failed: what is on the disk since is not known.
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
                    // What is queued is finished; what comes later is refused.
                    Message::Close => messages.close(),
                }
                next = if group.len() < GROUP { messages.try_recv().ok() } else { None };
            }
            self.commit(group);
        }
        self.state.store(Arc::new(State::closed()));
        let closed = guarded(|| self.engine.close());
        // After a failed write the engine can't close in order; who made that write knows, and the rest is on disk.
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
        // The draft is dropped, and the disk is as it was: the store goes on.
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
        // It won't go away by itself.
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
            // The file is as it was.
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
    Error::new(
        ErrorKind::Unavailable,
        "the store failed a write before, and takes none until it is opened again",
    )
    .with_source(first.clone())
}

/// Runs the engine, whose panic must not leave the callers without an answer.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Internal, "the storage engine panicked").with_outcome(Outcome::Unknown))
    })
}
