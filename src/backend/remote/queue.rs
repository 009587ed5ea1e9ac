//! A fair queue in front of a pool.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Waiting;
use crate::{Error, ErrorKind, Result};

/// Permits to use a pool, first come, first served, until another pool replaces it.
pub(crate) struct Queue {
    permits: Arc<Semaphore>,
    waiting: AtomicU32,
}

impl Queue {
    /// A queue for at most `max` permits at once.
    pub(crate) fn new(max: u32) -> Result<Self> {
        if max == 0 {
            return Err(Error::new(ErrorKind::InvalidValue, "a pool needs at least one connection"));
        }
        Ok(Self { permits: Arc::new(Semaphore::new(max as usize)), waiting: AtomicU32::new(0) })
    }

    /// Waits for a permit. None once the queue is closed.
    pub(crate) async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        // This does not overtake waiting calls: they get a returned permit before it is free.
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Some(permit);
        }
        let _waiting = Waiting::begin(&self.waiting);
        self.permits.clone().acquire_owned().await.ok()
    }

    /// Ends the wait of queued calls, and refuses later ones.
    pub(crate) fn close(&self) {
        self.permits.close();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.permits.is_closed()
    }

    /// The number of waiting calls.
    pub(crate) fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }
}
