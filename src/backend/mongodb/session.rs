//! Sessions of the driver with a transaction on them, which are rolled back when they are dropped, or the store is closed.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use mongodb::{ClientSession, options::ReadConcern};
use tokio::{runtime::Handle, sync::watch, time::timeout};

use super::{pool::Lane, server::Call};
use crate::Result;

/// How long a rollback may take that nobody waits for. The server rolls back by itself after a minute.
const PATIENCE: Duration = Duration::from_secs(5);

/// The transactions of one client.
#[derive(Clone, Default)]
pub(super) struct Transactions(Arc<Inner>);

#[derive(Default)]
struct Inner {
    open: Mutex<Vec<Weak<Slot>>>,
    rollbacks: watch::Sender<Rollbacks>,
}

/// Holds a session between the calls of its transaction.
pub(super) type Slot = Mutex<Option<Session>>;

pub(super) fn take(slot: &Slot) -> Option<Session> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Those that have begun, by number, and those of them that are under way.
#[derive(Default)]
struct Rollbacks {
    begun: u64,
    under_way: BTreeSet<u64>,
}

impl Transactions {
    /// A place from which a session is taken when the store is closed.
    pub(super) fn slot(&self, session: Session) -> Arc<Slot> {
        let slot = Arc::new(Mutex::new(Some(session)));
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|slot| slot.strong_count() > 0);
        open.push(Arc::downgrade(&slot));
        slot
    }

    /// Rolls back all that is open and not in the middle of a call.
    pub(super) fn roll_back(&self) {
        let open = std::mem::take(&mut *self.0.open.lock().unwrap_or_else(PoisonError::into_inner));
        for slot in open.iter().filter_map(Weak::upgrade) {
            drop(take(&slot));
        }
    }

    /// Waits for the rollbacks that have begun until now.
    pub(super) async fn settled(&self) {
        let begun = self.0.rollbacks.borrow().begun;
        let is_over = |known: &Rollbacks| known.under_way.first().is_none_or(|first| *first > begun);
        // The sender is ours, so it is there.
        drop(self.0.rollbacks.subscribe().wait_for(is_over).await);
    }
}

/// One rollback under way, until it is dropped.
struct Rollback {
    transactions: Transactions,
    number: u64,
}

impl Rollback {
    fn begin(transactions: &Transactions) -> Self {
        let mut number = 0;
        transactions.0.rollbacks.send_modify(|known| {
            known.begun += 1;
            number = known.begun;
            known.under_way.insert(number);
        });
        Self { transactions: transactions.clone(), number }
    }
}

impl Drop for Rollback {
    fn drop(&mut self) {
        self.transactions.0.rollbacks.send_modify(|known| {
            known.under_way.remove(&self.number);
        });
    }
}

/// A transaction, until it is committed or dropped.
///
/// The driver forgets a transaction whose first request is dropped, and the server keeps its locks: so whoever sends a request
/// on it does so in a task of its own, which owns it, and runs to the end.
pub(super) struct Session {
    driver: Option<Box<ClientSession>>,
    transactions: Transactions,
}

impl Session {
    /// Begins a transaction. Nothing is sent: the server hears of it with the first request, which takes the snapshot.
    pub(super) async fn begin(call: &Call<'_>, lane: &Lane) -> Result<Self> {
        let mut driver = Box::new(call.ask(lane.client.start_session()).await?);
        let start = driver.start_transaction().read_concern(ReadConcern::snapshot());
        call.ask(start.write_concern(lane.write_concern.clone())).await?;
        Ok(Self { driver: Some(driver), transactions: lane.transactions.clone() })
    }

    pub(super) fn driver(&mut self) -> &mut ClientSession {
        self.driver.as_mut().expect("it is there until it is dropped")
    }

    /// It is over, and the server knows: there is nothing that somebody must wait for.
    pub(super) fn end(mut self) {
        self.driver = None;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(mut driver) = self.driver.take() else { return };
        // Without a runtime nobody can tell the server.
        if let Ok(runtime) = Handle::try_current() {
            let rollback = Rollback::begin(&self.transactions);
            runtime.spawn(async move {
                drop(timeout(PATIENCE, driver.abort_transaction()).await);
                drop(rollback);
            });
        }
    }
}
