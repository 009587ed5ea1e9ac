//! The thread that speaks to the remote, so that no call waits for a network that is silent. [`Route`] is what it does there.

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
    GitConfig,
    errand::{Errand, Line, Sent, Task},
    marker::Marker,
    packs::Packs,
    place::Place,
    route::Route,
};
use crate::{Error, ErrorKind, Outcome, Result, backend::local::Ticket};

/// How many threads that hang are left as soon as they are late. Each one more makes the next wait twice as long.
const LEFT_AT_ONCE: usize = 8;

/// How often that wait is doubled at most.
const DOUBLED: usize = 7;

/// How often it is looked, while the remote is waited for, whether the last handle of the store is gone.
const LOOK_AFTER: Duration = Duration::from_millis(20);

/// An answer that is on its way. What is dropped before it is sent is not sent any more.
pub(super) struct Answer<T> {
    reply: Receiver<Result<T>>,
    ticket: Ticket,
    asked: Instant,
    patience: Duration,
    is_left: Arc<AtomicBool>,
}

impl<T> Answer<T> {
    /// The answer, if it is there, or is late.
    pub(super) fn now(&self) -> Option<Result<T>> {
        let answer = match self.reply.try_recv() {
            Ok(answer) => answer,
            Err(TryRecvError::Empty) if self.asked.elapsed() < self.patience => return None,
            Err(TryRecvError::Empty) => Err(silent()),
            Err(TryRecvError::Disconnected) => Err(died()),
        };
        Some(self.judged(answer))
    }

    fn wait(self) -> Result<T> {
        let answer = loop {
            match self.reply.recv_timeout(LOOK_AFTER.min(self.patience)) {
                Ok(answer) => break answer,
                Err(RecvTimeoutError::Disconnected) => break Err(died()),
                Err(RecvTimeoutError::Timeout) => {
                    // The drop of the last handle waits for this thread.
                    if self.asked.elapsed() >= self.patience || self.is_left.load(Ordering::Acquire) {
                        break Err(silent());
                    }
                }
            }
        };
        self.judged(answer)
    }

    /// An error's outcome says whether commits may have gone out, or may still.
    fn judged(&self, answer: Result<T>) -> Result<T> {
        answer.map_err(|error| match self.ticket.take() {
            true => error,
            false => error.with_outcome(Outcome::Unknown),
        })
    }
}

/// The handle of the thread. It is not waited for when it is dropped.
///
/// A network that is silent can hold the thread for ever. Then it is left, and another one is started.
pub(super) struct Courier {
    post: Post,
    /// Whether the last handle of the store is gone.
    is_left: Arc<AtomicBool>,
    thread: Thread,
    /// Those that were left, and hang still.
    left: Vec<JoinHandle<()>>,
}

/// What a thread is started with.
struct Post {
    path: PathBuf,
    git: PathBuf,
    fetching: Arc<Marker>,
    remote: String,
    config: GitConfig,
    runtime: Handle,
}

struct Thread {
    errands: Sender<Errand>,
    line: Arc<Line>,
    handle: JoinHandle<()>,
}

impl Post {
    fn start(&self) -> Result<Thread> {
        let (errands, waiting) = channel();
        let line = Arc::<Line>::default();
        let route = Route {
            repository: Place::reopen(&self.path)?,
            remote: self.remote.clone(),
            fetching: self.fetching.clone(),
            packs: Packs::new(&self.git),
            config: self.config.clone(),
            runtime: self.runtime.clone(),
            untold: RefCell::default(),
            line: line.clone(),
        };
        let handle = thread::Builder::new()
            .name("gateway-storage-git-remote".into())
            .spawn(move || route.run(&waiting))
            .map_err(|error| {
                Error::new(ErrorKind::Unavailable, "the thread for the remote can't be started")
                    .with_source(error)
            })?;
        Ok(Thread { errands, line, handle })
    }
}

impl Courier {
    /// The application's runtime is where its function runs that gives the token.
    pub(super) fn start(
        place: &Place,
        config: &GitConfig,
        remote: String,
        runtime: Handle,
        is_left: Arc<AtomicBool>,
    ) -> Result<Self> {
        let post = Post {
            path: place.path.clone(),
            git: place.git.clone(),
            fetching: place.fetching.clone(),
            remote,
            config: config.clone(),
            runtime,
        };
        Ok(Self { thread: post.start()?, post, is_left, left: Vec::new() })
    }

    /// Fetches the remote's branch, and gives its newest commit, if it has one.
    pub(super) fn fetch(&mut self) -> Result<Option<Oid>> {
        self.fetching().wait()
    }

    /// Sends a commit and what it stands on, if the remote's branch is where it is expected to be. The outcome of an error is
    /// Unknown if the remote may have it, or may still get it.
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
        match self.listens() {
            // If the thread is gone, so is the answer.
            Ok(()) => {
                drop(self.thread.errands.send(Errand { asked, begun: ticket.begun(), task: task(reply) }))
            }
            Err(error) => drop(reply.send(Err(error))),
        }
        let (patience, is_left) = (self.post.config.remote_timeout, self.is_left.clone());
        Answer { reply: answer, ticket, asked, patience, is_left }
    }

    /// Sees to it that there is a thread that listens. Nothing is queued behind one that is late, so the queue stays short.
    fn listens(&mut self) -> Result<()> {
        self.left.retain(|thread| !thread.is_finished());
        let (patience, silence) = (self.post.config.remote_timeout, self.thread.line.silence());
        if !self.thread.handle.is_finished() {
            if silence < patience {
                return Ok(());
            }
            // A remote that takes connections and never answers must not cost a thread each time.
            let doubled = self.left.len().saturating_sub(LEFT_AT_ONCE).min(DOUBLED);
            if silence < patience.saturating_mul(1 << doubled) {
                return Err(silent());
            }
        }
        let old = std::mem::replace(&mut self.thread, self.post.start()?);
        old.line.leave();
        self.left.push(old.handle);
        Ok(())
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.thread.line.leave();
    }
}

#[cold]
fn silent() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the remote did not answer in time: `remote_timeout` is how long it may take",
    )
}

#[cold]
fn died() -> Error {
    Error::new(ErrorKind::Internal, "the thread that speaks to the remote is gone")
}
