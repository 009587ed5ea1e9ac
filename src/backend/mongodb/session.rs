//! A session of the driver with a transaction on it, which is rolled back when it is dropped.

use std::sync::Arc;

use mongodb::{ClientSession, options::ReadConcern};
use tokio::{runtime::Handle, sync::watch};

use super::{pool::Lane, server::Call};
use crate::{Result, backend::remote::Effect};

/// How many rollbacks are under way in the background.
pub(super) struct Rollbacks(watch::Sender<usize>);

impl Rollbacks {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(watch::Sender::new(0)))
    }

    /// Waits for those that have begun: what they hold would be a conflict for whoever comes now.
    pub(super) async fn all(&self) {
        // The sender is ours, so it is there.
        drop(self.0.subscribe().wait_for(|count| *count == 0).await);
    }
}

/// One rollback under way, until it is dropped.
struct Rollback(Arc<Rollbacks>);

impl Rollback {
    fn begin(rollbacks: Arc<Rollbacks>) -> Self {
        rollbacks.0.send_modify(|count| *count += 1);
        Self(rollbacks)
    }
}

impl Drop for Rollback {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

/// A transaction, until it is committed or dropped.
///
/// The driver forgets a transaction whose first request is dropped, and the server keeps its locks: so whoever sends a request
/// on it does so in a task of its own, which owns it, and runs to the end.
pub(super) struct Session {
    driver: Option<Box<ClientSession>>,
    rollbacks: Arc<Rollbacks>,
}

impl Session {
    /// Begins a transaction. Nothing is sent: the server hears of it with the first request, which takes the snapshot.
    pub(super) async fn begin(call: &Call<'_>, lane: &Lane) -> Result<Self> {
        let mut driver = Box::new(call.ask(Effect::Read, lane.client.start_session()).await?);
        let start = driver.start_transaction().read_concern(ReadConcern::snapshot());
        call.ask(Effect::Read, start.write_concern(lane.write_concern.clone())).await?;
        Ok(Self { driver: Some(driver), rollbacks: lane.rollbacks.clone() })
    }

    pub(super) fn driver(&mut self) -> &mut ClientSession {
        self.driver.as_mut().expect("it is there until it is dropped")
    }

    /// It is over: there is nothing to be rolled back.
    pub(super) fn end(mut self) {
        self.driver = None;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(mut driver) = self.driver.take() else { return };
        // Without a runtime nobody can tell the server, which rolls back by itself after a minute.
        if let Ok(runtime) = Handle::try_current() {
            let rollback = Rollback::begin(self.rollbacks.clone());
            runtime.spawn(async move {
                drop(driver.abort_transaction().await);
                drop(rollback);
            });
        }
    }
}
