//! The connection to the remote, on a thread of its own, so that no call waits for a silent network.
//! [`RemoteThread`] is the thread's side.

use std::{
    cell::RefCell,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use git2::Oid;
use tokio::runtime::Handle;

use super::{
    GitOptions,
    marker::Marker,
    packs::Packs,
    remote_thread::RemoteThread,
    repository::LockedRepository,
    request::{Request, Sent, Status, Task},
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
    /// The answer, if it has arrived or is late.
    pub(super) fn poll(&self) -> Option<Result<T>> {
        let answer = match self.reply.try_recv() {
            Ok(answer) => answer,
            Err(TryRecvError::Empty) if self.asked.elapsed() < self.timeout => return None,
            Err(TryRecvError::Empty) => Err(timed_out()),
            Err(TryRecvError::Disconnected) => Err(thread_died()),
        };
        Some(self.with_outcome(answer))
    }

    fn wait(self) -> Result<T> {
        let answer = loop {
            match self.reply.recv_timeout(CHECK_EVERY.min(self.timeout)) {
                Ok(answer) => break answer,
                Err(RecvTimeoutError::Disconnected) => break Err(thread_died()),
                Err(RecvTimeoutError::Timeout) => {
                    // The drop of the last handle waits for this thread.
                    if self.asked.elapsed() >= self.timeout || self.is_dropped.load(Ordering::Acquire) {
                        break Err(timed_out());
                    }
                }
            }
        };
        self.with_outcome(answer)
    }

    /// The outcome of an error says whether commits may have been sent, or may still be.
    fn with_outcome(&self, answer: Result<T>) -> Result<T> {
        answer.map_err(|error| match self.ticket.take() {
            true => error,
            false => error.with_outcome(Outcome::Unknown),
        })
    }
}

/// The handle of the thread. Dropping it does not wait for the thread.
///
/// A silent network can block the thread for ever. Then it is abandoned, and a new one is started.
pub(super) struct Remote {
    setup: Setup,
    /// Whether the last handle of the store was dropped.
    is_dropped: Arc<AtomicBool>,
    thread: Thread,
    /// Abandoned threads that still hang.
    abandoned: Vec<JoinHandle<()>>,
}

/// The values with which a thread is started.
struct Setup {
    path: PathBuf,
    git: PathBuf,
    fetching: Arc<Marker>,
    remote: String,
    options: GitOptions,
    runtime: Handle,
}

struct Thread {
    requests: Sender<Request>,
    status: Arc<Status>,
    handle: JoinHandle<()>,
}

impl Setup {
    fn start(&self) -> Result<Thread> {
        let (requests, waiting) = channel();
        let status = Arc::<Status>::default();
        let remote_thread = RemoteThread {
            repository: LockedRepository::reopen(&self.path)?,
            remote: self.remote.clone(),
            fetching: self.fetching.clone(),
            packs: Packs::new(&self.git),
            options: self.options.clone(),
            runtime: self.runtime.clone(),
            login_error: RefCell::default(),
            status: status.clone(),
        };
        let handle = thread::Builder::new()
            .name("gateway-storage-git-remote".into())
            .spawn(move || remote_thread.run(&waiting))
            .map_err(|error| {
                Error::new(ErrorKind::Unavailable, "the thread for the remote can't be started")
                    .with_source(error)
            })?;
        Ok(Thread { requests, status, handle })
    }
}

impl Remote {
    /// `runtime` is the application's: the function for the token runs on it.
    pub(super) fn start(
        locked: &LockedRepository,
        options: &GitOptions,
        remote: String,
        runtime: Handle,
        is_dropped: Arc<AtomicBool>,
    ) -> Result<Self> {
        let setup = Setup {
            path: locked.path.clone(),
            git: locked.git.clone(),
            fetching: locked.fetching.clone(),
            remote,
            options: options.clone(),
            runtime,
        };
        Ok(Self { thread: setup.start()?, setup, is_dropped, abandoned: Vec::new() })
    }

    /// Fetches the remote's branch and returns its newest commit, if any.
    pub(super) fn fetch(&mut self) -> Result<Option<Oid>> {
        self.fetching().wait()
    }

    /// Sends a commit and its ancestors if the remote's branch is at `expected`. The outcome of an error is
    /// Unknown if the remote may have received the commit, or may still receive it.
    pub(super) fn push(&mut self, commit: Oid, expected: Option<Oid>) -> Result<Sent> {
        self.pushing(commit, expected).wait()
    }

    pub(super) fn fetching(&mut self) -> Answer<Option<Oid>> {
        self.ask(Task::Fetch)
    }

    pub(super) fn pushing(&mut self, commit: Oid, expected: Option<Oid>) -> Answer<Sent> {
        self.ask(|reply| Task::Push { commit, expected, reply })
    }

    fn ask<T>(&mut self, task: impl FnOnce(Sender<Result<T>>) -> Task) -> Answer<T> {
        let (reply, answer) = channel();
        let (ticket, asked) = (Ticket::default(), Instant::now());
        match self.ensure_thread() {
            // If the thread has ended, the answer is an error.
            Ok(()) => {
                drop(self.thread.requests.send(Request { asked, begun: ticket.begun(), task: task(reply) }))
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
        let old = std::mem::replace(&mut self.thread, self.setup.start()?);
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
