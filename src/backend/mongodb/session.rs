//! The driver's sessions with an open transaction, rolled back when they are dropped or the store is closed.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use mongodb::{
    Client, ClientSession,
    error::Result as DriverResult,
    options::{ReadConcern, WriteConcern},
};
use tokio::{runtime::Handle, sync::watch, time::timeout};

/// How long a rollback in the background may take. The server rolls back by itself after a minute.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(5);

/// The open transactions of one client, and the rollbacks under way.
#[derive(Clone, Default)]
pub(super) struct Transactions(Arc<Inner>);

#[derive(Default)]
struct Inner {
    open: Mutex<Vec<Weak<IdleSession>>>,
    /// One for each rollback; it is closed when the rollback ends.
    rollbacks: Mutex<Vec<watch::Receiver<()>>>,
}

/// The session of a transaction between two of its calls.
pub(super) type IdleSession = Mutex<Option<Session>>;

pub(super) fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Transactions {
    /// Keeps a session where closing the store finds it.
    pub(super) fn keep(&self, session: Session) -> Arc<IdleSession> {
        let idle = Arc::new(Mutex::new(Some(session)));
        let mut open = lock(&self.0.open);
        open.retain(|idle| idle.strong_count() > 0);
        open.push(Arc::downgrade(&idle));
        idle
    }

    /// Rolls back every transaction that has no call under way.
    pub(super) fn roll_back(&self) {
        let open = std::mem::take(&mut *lock(&self.0.open));
        for idle in open.iter().filter_map(Weak::upgrade) {
            drop(lock(&idle).take());
        }
    }

    /// Counts a rollback as under way until the result is dropped.
    fn begin_rollback(&self) -> watch::Sender<()> {
        let (rollback, ended) = watch::channel(());
        let mut rollbacks = lock(&self.0.rollbacks);
        rollbacks.retain(|ended| ended.has_changed().is_ok());
        rollbacks.push(ended);
        rollback
    }

    /// Waits for the rollbacks that have begun until now. Those that begin meanwhile could be without end.
    pub(super) async fn rollbacks_done(&self) {
        let under_way = lock(&self.0.rollbacks).clone();
        for mut ended in under_way {
            // Nothing is ever sent.
            drop(ended.changed().await);
        }
    }
}

/// An open transaction; dropping it rolls it back.
///
/// If the first request of a transaction is dropped, the driver forgets the transaction and the server keeps
/// its locks. So each request runs to its end in a task that owns the session.
pub(super) struct Session {
    driver: Option<Box<ClientSession>>,
    transactions: Transactions,
}

impl Session {
    /// Begins a transaction, if there is a write concern for it. Nothing is sent: the first request starts it
    /// on the server and takes the snapshot.
    pub(super) async fn begin(
        client: &Client,
        write_concern: Option<WriteConcern>,
        transactions: &Transactions,
    ) -> DriverResult<Self> {
        let mut driver = Box::new(client.start_session().await?);
        if let Some(write_concern) = write_concern {
            let start = driver.start_transaction().read_concern(ReadConcern::snapshot());
            start.write_concern(write_concern).await?;
        }
        Ok(Self { driver: Some(driver), transactions: transactions.clone() })
    }

    pub(super) fn driver(&mut self) -> &mut ClientSession {
        self.driver.as_mut().expect("only `end` and `drop` take it")
    }

    /// Drops the session without a rollback, because the transaction has ended on the server.
    pub(super) fn end(mut self) {
        self.driver = None;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(mut driver) = self.driver.take() else { return };
        // Without a runtime nothing can be sent.
        if let Ok(runtime) = Handle::try_current() {
            let rollback = self.transactions.begin_rollback();
            runtime.spawn(async move {
                drop(timeout(ROLLBACK_TIMEOUT, driver.abort_transaction()).await);
                drop(rollback);
            });
        }
    }
}
