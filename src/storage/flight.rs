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

/// The refreshes that run. Clones of a handle share it.
#[derive(Default)]
pub(super) struct Flights {
    running: Mutex<HashMap<Key, Joined>>,
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
    flights: Arc<Flights>,
    id: Key,
    end: watch::Sender<Option<End>>,
}

impl Flights {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Joined>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a refresh of this credential, or joins the one that runs.
    pub(super) fn begin(self: &Arc<Self>, id: &Key) -> Result<Flight, Joined> {
        let mut running = self.lock();
        if let Some(Joined(end)) = running.get(id) {
            return Err(Joined(end.clone()));
        }
        let (end, joined) = watch::channel(None);
        running.insert(id.clone(), Joined(joined));
        Ok(Flight { flights: self.clone(), id: id.clone(), end })
    }

    /// Is held from before a token is spent until the new one is stored. None: the store is being closed.
    pub(super) fn spend(self: &Arc<Self>) -> Option<Spending> {
        let spending = Spending(self.clone());
        self.spending.send_modify(|number| *number += 1);
        // Counted first, so that either this sees the closing, or `close` sees this.
        (!self.is_closing.load(Ordering::SeqCst)).then_some(spending)
    }

    /// Lets no token be spent any more, and waits until the new ones are stored.
    pub(super) async fn close(&self) {
        self.is_closing.store(true, Ordering::SeqCst);
        let ended = self.spending.subscribe().wait_for(|number| *number == 0).await.map(drop);
        ended.unwrap_or_default();
    }
}

/// See [`Flights::spend`].
pub(super) struct Spending(Arc<Flights>);

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
        self.flights.lock().remove(&self.id);
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
