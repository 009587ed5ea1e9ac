//! The refreshes that run in this process: one per credential.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::{Credential, Key};

/// The refreshes that run. Clones of a handle share it.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<Key, Joined>>);

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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Waits until no refresh runs.
    pub(super) async fn ended(&self) {
        loop {
            let Some(mut running) = self.lock().values().next().map(|Joined(end)| end.clone()) else {
                return;
            };
            while running.changed().await.is_ok() {}
        }
    }
}

impl Flight {
    /// Tells the callers that joined. What the refresh does after this delays only `ended`.
    pub(super) fn end(&self, end: End) {
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
