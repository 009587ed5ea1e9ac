//! The connection to the remote, on a thread of its own, so that no call waits for a silent network.
//! [`RemoteThread`] is the thread's side.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use git2::Oid;

use super::{
    remote_thread::{RemoteThread, Request, Setup},
    repository::open_repository,
    request::{Sent, Status},
};
use crate::{Error, ErrorKind, Outcome, Result, backend::local::thread::Ticket};

/// While no more than this number of abandoned threads hang, a late thread is abandoned at once. Each further
/// hanging thread doubles the wait before that.
const ABANDONED_AT_ONCE: usize = 8;

/// How often that wait is doubled at most.
const MAX_DOUBLINGS: usize = 7;

/// How often a call that waits for the remote checks whether the last handle of the store was dropped.
const CHECK_EVERY: Duration = Duration::from_millis(20);

/// A pending answer. Dropping it withdraws a request that was not begun.
pub(super) struct Answer<T> {
    reply: Receiver<Result<T>>,
    ticket: Ticket,
    asked: Instant,
    timeout: Duration,
    is_dropped: Arc<AtomicBool>,
}

impl<T> Answer<T> {
    /// The answer, if it arrives while this waits or is late.
    ///
    /// The outcome of an error says whether commits may have been sent, or may still be.
    pub(super) fn poll(&self, wait: Duration) -> Option<Result<T>> {
        let answer = match self.reply.recv_timeout(wait) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Disconnected) => Err(thread_died()),
            // The drop of the last handle waits for this thread.
            Err(RecvTimeoutError::Timeout)
                if self.asked.elapsed() < self.timeout && !self.is_dropped.load(Ordering::Acquire) =>
            {
                return None;
            }
            Err(RecvTimeoutError::Timeout) => Err(timed_out()),
        };
        Some(answer.map_err(|error| match self.ticket.take() {
            true => error,
            false => error.with_outcome(Outcome::Unknown),
        }))
    }

    pub(super) fn wait(self) -> Result<T> {
        loop {
            if let Some(answer) = self.poll(CHECK_EVERY.min(self.timeout)) {
                return answer;
            }
        }
    }
}

/// The handle of the thread. Dropping it does not wait for the thread.
///
/// A silent network can block the thread for ever. Then it is abandoned, and a new one is started.
pub(super) struct Remote {
    setup: Arc<Setup>,
    /// Whether the last handle of the store was dropped.
    pub(super) is_dropped: Arc<AtomicBool>,
    thread: Thread,
    /// Abandoned threads that still hang.
    abandoned: Vec<JoinHandle<()>>,
}

struct Thread {
    requests: Sender<Request>,
    status: Arc<Status>,
    handle: JoinHandle<()>,
}

impl Thread {
    fn start(setup: &Arc<Setup>) -> Result<Self> {
        let (requests, waiting) = channel();
        let status = Arc::<Status>::default();
        let remote_thread = RemoteThread::new(open_repository(&setup.path)?, setup.clone(), status.clone());
        let handle = thread::Builder::new()
            .name("gateway-storage-git-remote".into())
            .spawn(move || remote_thread.run(&waiting))
            .map_err(|error| {
                Error::new(ErrorKind::Unavailable, "the thread for the remote can't be started")
                    .with_source(error)
            })?;
        Ok(Self { requests, status, handle })
    }
}

impl Remote {
    pub(super) fn start(setup: Setup, is_dropped: Arc<AtomicBool>) -> Result<Self> {
        let setup = Arc::new(setup);
        Ok(Self { thread: Thread::start(&setup)?, setup, is_dropped, abandoned: Vec::new() })
    }

    /// Fetches the remote's branch and returns its newest commit, if any.
    pub(super) fn fetch(&mut self) -> Answer<Option<Oid>> {
        self.ask(RemoteThread::fetch)
    }

    /// Sends a commit and its ancestors if the remote's branch is at `expected`. The outcome of an error is
    /// Unknown if the remote may have received the commit, or may still receive it.
    pub(super) fn push(&mut self, commit: Oid, expected: Option<Oid>) -> Answer<Sent> {
        self.ask(move |thread| thread.push(commit, expected))
    }

    fn ask<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut RemoteThread) -> Result<T> + Send + 'static,
    ) -> Answer<T> {
        let (reply, answer) = channel();
        let (ticket, asked) = (Ticket::default(), Instant::now());
        match self.ensure_thread() {
            Ok(()) => {
                let work = Box::new(move |thread: &mut RemoteThread| {
                    let done = work(thread);
                    thread.status.set_waiting(None);
                    drop(reply.send(done));
                });
                // If the thread has ended, the answer is an error.
                drop(self.thread.requests.send(Request { asked, begun: ticket.begun(), work }));
            }
            Err(error) => drop(reply.send(Err(error))),
        }
        let (timeout, is_dropped) = (self.setup.options.remote_timeout, self.is_dropped.clone());
        Answer { reply: answer, ticket, asked, timeout, is_dropped }
    }

    /// Starts a new thread if the current one is late or has ended. Nothing is queued behind a late one, so
    /// the queue stays short.
    fn ensure_thread(&mut self) -> Result<()> {
        self.abandoned.retain(|thread| !thread.is_finished());
        let (timeout, silence) = (self.setup.options.remote_timeout, self.thread.status.silence());
        if !self.thread.handle.is_finished() {
            if silence < timeout {
                return Ok(());
            }
            // A remote that accepts connections and never answers must not cost one thread per call.
            let doublings = self.abandoned.len().saturating_sub(ABANDONED_AT_ONCE).min(MAX_DOUBLINGS);
            if silence < timeout.saturating_mul(1 << doublings) {
                return Err(timed_out());
            }
        }
        let old = std::mem::replace(&mut self.thread, Thread::start(&self.setup)?);
        old.status.abandon();
        self.abandoned.push(old.handle);
        Ok(())
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.thread.status.abandon();
    }
}

#[cold]
fn timed_out() -> Error {
    Error::new(ErrorKind::Unavailable, "the remote did not answer within `remote_timeout`")
}

#[cold]
fn thread_died() -> Error {
    Error::new(ErrorKind::Internal, "the thread for the remote has ended")
}
