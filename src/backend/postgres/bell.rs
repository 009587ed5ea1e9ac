//! Wakes the watchers of a store after writes, by an empty notification that is in no write's transaction.
//!
//! ```text
//!              write            is it watched? no
//!    [Rests] --------> [Asked] ------------------> [Rests], ten seconds later
//!                         | yes
//!                      [Rung] <------ write ------ [Watched]
//!                         `--- notification -------->
//! ```
//!
//! A process that does not write sends nothing and has no timer.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{sleep, timeout},
};

use crate::{ErrorKind, Result};

/// The server of a bell.
pub(super) trait Rope: Send + Sync + 'static {
    /// Whether the store is watched.
    fn is_watched(&self) -> impl Future<Output = Result<bool>> + Send;

    /// Sends a notification. Returns whether the store is watched.
    fn notify(&self) -> impl Future<Output = Result<bool>> + Send;
}

/// After the first write: a program that makes one write and ends asks nothing.
const FIRST_QUESTION: Duration = Duration::from_secs(1);

/// For how long a store counts as not watched.
const NEXT_QUESTION: Duration = Duration::from_secs(10);

/// The pause after a notification. The writes during it share the next one.
const PAUSE: Duration = Duration::from_millis(8);

/// The pause after a notification that failed.
const LONG_PAUSE: Duration = Duration::from_secs(1);

/// No task runs. The next write asks whether the store is watched.
const RESTS: u8 = 0;
/// The store is not watched, as far as is known.
const ASKED: u8 = 1;
const WATCHED: u8 = 2;
/// A notification is due.
const RUNG: u8 = 3;

/// The bell of one server. When dropped, its task ends.
pub(super) struct Bell {
    shared: Arc<Shared>,
    task: Mutex<Option<AbortHandle>>,
}

struct Shared {
    state: AtomicU8,
    changed: Notify,
    /// For a watch of this process that hears no notifications.
    rung: Notify,
}

impl Bell {
    pub(super) fn new() -> Self {
        let shared = Shared { state: AtomicU8::new(RESTS), changed: Notify::new(), rung: Notify::new() };
        Self { shared: Arc::new(shared), task: Mutex::default() }
    }

    /// Call this after a change can be read. If the store is not watched, it is one load.
    #[inline]
    pub(super) fn ring(&self, server: &Weak<impl Rope>) {
        if self.shared.state.load(Ordering::SeqCst) != ASKED {
            self.ring_now(server);
        }
    }

    #[cold]
    fn ring_now(&self, server: &Weak<impl Rope>) {
        if self.shared.replace(WATCHED, RUNG) {
            self.shared.changed.notify_one();
        } else if self.shared.replace(RESTS, ASKED) {
            self.start(server);
        }
    }

    /// Something in this process watches the store.
    pub(super) fn set_watched(&self, server: &Weak<impl Rope>) {
        if self.shared.replace(RESTS, WATCHED) {
            self.start(server);
        } else if self.shared.replace(ASKED, WATCHED) {
            self.shared.changed.notify_one();
        }
    }

    fn start(&self, server: &Weak<impl Rope>) {
        let task = tokio::spawn(run(self.shared.clone(), server.clone())).abort_handle();
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    /// Ends after a write of this process.
    pub(super) async fn rung(&self) {
        self.shared.rung.notified().await;
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

impl Shared {
    fn is(&self, state: u8) -> bool {
        self.state.load(Ordering::SeqCst) == state
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::SeqCst);
    }

    fn replace(&self, old: u8, new: u8) -> bool {
        self.state.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Waits until a state is set, but not longer than this.
    async fn wait(&self, longest: Duration) {
        drop(timeout(longest, self.changed.notified()).await);
    }

    /// Waits until a notification is due.
    async fn due(&self) {
        while !self.replace(RUNG, WATCHED) {
            self.changed.notified().await;
        }
    }
}

/// The next write starts another task if this one ends in any way.
struct Rest(Arc<Shared>);

impl Drop for Rest {
    fn drop(&mut self) {
        self.0.set(RESTS);
    }
}

async fn run(shared: Arc<Shared>, server: Weak<impl Rope>) {
    let _rest = Rest(shared.clone());
    if shared.is(ASKED) {
        shared.wait(FIRST_QUESTION).await;
    }
    loop {
        let is_watched = !shared.is(ASKED);
        if is_watched {
            shared.due().await;
        }
        let answer = ask(&server, is_watched).await;
        shared.rung.notify_one();
        match answer {
            None => return,
            Some(Ok(true)) if is_watched => sleep(PAUSE).await,
            // With a notification for the writes that came before.
            Some(Ok(true)) => shared.set(RUNG),
            Some(Err(_)) if is_watched => sleep(LONG_PAUSE).await,
            Some(_) => {
                if is_watched {
                    shared.set(ASKED);
                }
                shared.wait(NEXT_QUESTION).await;
                if shared.is(ASKED) {
                    return;
                }
            }
        }
    }
}

/// Whether the store is watched. If it was, also sends a notification. `None`: the store is closed.
async fn ask(server: &Weak<impl Rope>, was_watched: bool) -> Option<Result<bool>> {
    let server = server.upgrade()?;
    let answer = if was_watched { server.notify().await } else { server.is_watched().await };
    Some(answer).filter(|answer| !answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Closed))
}
