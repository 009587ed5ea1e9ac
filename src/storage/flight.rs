//! The refreshes that run in this process: one per credential.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::watch;

use crate::{Credential, Key};

/// The refreshes that run, as a handle sees them.
#[derive(Clone, Default)]
pub(super) struct Flights {
    shared: Arc<Shared>,
    /// What the scopes of the handle put before an id.
    prefix: Arc<str>,
}

/// Clones of a handle share it, and handles to scopes of its store.
#[derive(Default)]
struct Shared {
    /// By the ids as they are stored.
    running: Mutex<HashMap<String, Joined>>,
    is_closing: AtomicBool,
    /// The number of refreshes whose token may be spent and whose new token is not stored.
    spending: watch::Sender<usize>,
}

/// How a refresh ended.
#[derive(Clone)]
pub(super) enum End {
    Refreshed(Credential),
    Rejected,
    Failed,
    /// It was not this caller's turn until it stopped waiting.
    Busy,
}

/// Gets the end of a refresh that another caller began.
pub(super) struct Joined(watch::Receiver<Option<End>>);

/// A refresh that runs, until this is dropped.
pub(super) struct Flight {
    shared: Arc<Shared>,
    id: String,
    end: watch::Sender<Option<End>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Joined>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flights {
    /// Those of a handle to a scope, whose ids are stored under this prefix.
    pub(super) fn scoped(&self, prefix: &str) -> Self {
        Self { shared: self.shared.clone(), prefix: [&*self.prefix, prefix].concat().into() }
    }

    /// Begins a refresh of this credential, or joins the one that runs.
    pub(super) fn begin(&self, id: &Key) -> Result<Flight, Joined> {
        let id = [&*self.prefix, id.as_str()].concat();
        let mut running = self.shared.lock();
        if let Some(Joined(end)) = running.get(&id) {
            return Err(Joined(end.clone()));
        }
        let (end, joined) = watch::channel(None);
        running.insert(id.clone(), Joined(joined));
        Ok(Flight { shared: self.shared.clone(), id, end })
    }

    /// Is held from before a token is spent until the new one is stored. None: the store is being closed.
    pub(super) fn spend(&self) -> Option<Spending> {
        let spending = Spending(self.shared.clone());
        self.shared.spending.send_modify(|number| *number += 1);
        // Counted first, so that either this sees the closing, or `close` sees this.
        (!self.shared.is_closing.load(Ordering::SeqCst)).then_some(spending)
    }

    /// Lets no token be spent any more, and waits until the new ones are stored.
    pub(super) async fn close(&self) {
        self.shared.is_closing.store(true, Ordering::SeqCst);
        let ended = self.shared.spending.subscribe().wait_for(|number| *number == 0).await.map(drop);
        ended.unwrap_or_default();
    }
}

/// See [`Flights::spend`].
pub(super) struct Spending(Arc<Shared>);

impl Drop for Spending {
    fn drop(&mut self) {
        self.0.spending.send_modify(|number| *number -= 1);
    }
}

impl Flight {
    /// Passes the end to the callers that joined. Later ones begin another refresh.
    pub(super) fn end(self, end: End) {
        self.end.send_replace(Some(end));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.shared.lock().remove(&self.id);
    }
}

impl Joined {
    /// Waits until the refresh ends.
    pub(super) async fn end(mut self) -> End {
        let end = self.0.wait_for(Option::is_some).await;
        // Without a value, the refresh panicked or was given up.
        end.ok().and_then(|end| end.clone()).unwrap_or(End::Failed)
    }
}
