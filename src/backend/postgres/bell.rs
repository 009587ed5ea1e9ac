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

use super::{
    server::{Call, Server},
    statement::{Parameter, Sql, column},
};
use crate::{ErrorKind, Result, backend::remote::Effect};

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
    pub(super) fn ring(&self, server: &Weak<Server>) {
        if self.shared.state.load(Ordering::SeqCst) != ASKED {
            self.ring_now(server);
        }
    }

    #[cold]
    fn ring_now(&self, server: &Weak<Server>) {
        if self.shared.replace(WATCHED, RUNG) {
            self.shared.changed.notify_one();
        } else if self.shared.replace(RESTS, ASKED) {
            self.start(server);
        }
    }

    /// Something in this process watches the store.
    pub(super) fn set_watched(&self, server: &Weak<Server>) {
        if self.shared.replace(RESTS, WATCHED) {
            self.start(server);
        } else if self.shared.replace(ASKED, WATCHED) {
            self.shared.changed.notify_one();
        }
    }

    fn start(&self, server: &Weak<Server>) {
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

async fn run(shared: Arc<Shared>, server: Weak<Server>) {
    let _rest = Rest(shared.clone());
    if shared.is(ASKED) {
        shared.wait(FIRST_QUESTION).await;
    }
    loop {
        if shared.is(ASKED) {
            match ask(&server, Sql::IsWatched).await {
                None => return,
                // With a notification for the writes that came before.
                Some(Ok(true)) => shared.set(RUNG),
                Some(_) => {
                    shared.wait(NEXT_QUESTION).await;
                    if shared.is(ASKED) {
                        return;
                    }
                }
            }
        }
        shared.due().await;
        let answer = ask(&server, Sql::Ring).await;
        shared.rung.notify_one();
        match answer {
            None => return,
            Some(Ok(true)) => sleep(PAUSE).await,
            Some(Ok(false)) => {
                shared.set(ASKED);
                shared.wait(NEXT_QUESTION).await;
                if shared.is(ASKED) {
                    return;
                }
            }
            Some(Err(_)) => sleep(LONG_PAUSE).await,
        }
    }
}

/// Sends a statement whose last column tells whether the store is watched. `None`: the store is closed.
async fn ask(server: &Weak<Server>, statement: Sql) -> Option<Result<bool>> {
    let server = server.upgrade()?;
    let asked = async {
        let call = server.call(server.options.deadline)?;
        is_watched(&call, statement).await
    };
    match asked.await {
        Err(error) if error.kind() == ErrorKind::Closed => None,
        answer => Some(answer),
    }
}

async fn is_watched(call: &Call<'_>, statement: Sql) -> Result<bool> {
    let channel = call.server.channel();
    let (parameters, at) = match statement {
        Sql::Ring => (&[Parameter::Text(&channel)][..], 2),
        _ => (&[][..], 0),
    };
    column(call.run(Effect::Read, statement, parameters).await?.row()?, at)
}
