//! What one task of this process does for all that want it: a refresh per credential, a computation per cache
//! value.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::watch;

use crate::{Credential, Key};

/// The flights that are under way, as a handle sees them.
#[derive(Clone, Default)]
pub(super) struct Flights {
    shared: Arc<Shared>,
    /// What the scopes of the handle put before a key.
    prefix: Arc<str>,
}

/// Clones of a handle share it, and handles to scopes of its store.
#[derive(Default)]
struct Shared {
    refreshes: Running<End>,
    computations: Running<Computed>,
    is_closing: AtomicBool,
    /// The number of refreshes whose token may be spent and whose new token is not stored.
    spending: watch::Sender<usize>,
}

/// A cache value. None: its computation failed.
pub(super) type Computed = Option<Arc<Vec<u8>>>;

/// How a refresh ended.
#[derive(Clone)]
pub(super) enum End {
    Refreshed(Credential),
    Rejected,
    Failed,
    /// It was not this caller's turn until it stopped waiting.
    Busy,
}

/// Flights of one kind, by the keys as they are stored. `T` is how one ends.
struct Running<T>(Arc<Mutex<HashMap<String, Joined<T>>>>);

/// Gets the end of a flight that another caller began.
pub(super) struct Joined<T>(watch::Receiver<Option<T>>);

/// A flight that is under way, until this is dropped.
pub(super) struct Flight<T> {
    running: Running<T>,
    key: String,
    end: watch::Sender<Option<T>>,
}

impl<T> Default for Running<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Running<T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Joined<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a flight, or joins the one that is under way.
    fn begin(&self, key: String) -> Result<Flight<T>, Joined<T>> {
        let mut running = self.lock();
        if let Some(Joined(end)) = running.get(&key) {
            return Err(Joined(end.clone()));
        }
        let (end, joined) = watch::channel(None);
        running.insert(key.clone(), Joined(joined));
        Ok(Flight { running: Self(self.0.clone()), key, end })
    }
}

impl Flights {
    /// Those of a handle to a scope, whose ids are stored under this prefix.
    pub(super) fn scoped(&self, prefix: &str) -> Self {
        Self { shared: self.shared.clone(), prefix: [&*self.prefix, prefix].concat().into() }
    }

    /// Begins a refresh of this credential, or joins the one that runs.
    pub(super) fn refresh(&self, id: &Key) -> Result<Flight<End>, Joined<End>> {
        self.shared.refreshes.begin(self.stored(id))
    }

    /// Begins the computation of this cache value, or joins the one that runs.
    pub(super) fn compute(&self, key: &Key) -> Result<Flight<Computed>, Joined<Computed>> {
        self.shared.computations.begin(self.stored(key))
    }

    /// The key as it is stored.
    fn stored(&self, key: &Key) -> String {
        [&*self.prefix, key.as_str()].concat()
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

impl<T> Flight<T> {
    /// Passes the end to the callers that joined. Later ones begin another flight.
    pub(super) fn end(self, end: T) {
        self.end.send_replace(Some(end));
    }
}

impl<T> Drop for Flight<T> {
    fn drop(&mut self) {
        self.running.lock().remove(&self.key);
    }
}

impl<T: Clone> Joined<T> {
    /// Waits until the flight ends. None: it panicked or was given up.
    pub(super) async fn end(mut self) -> Option<T> {
        let end = self.0.wait_for(Option::is_some).await;
        end.ok().and_then(|end| end.clone())
    }
}
