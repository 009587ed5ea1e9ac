//! Counts the running calls of a store, so that closing can wait for them.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::sync::Notify;

use crate::{Error, ErrorKind, Result};

/// Admits calls until it is closed, and counts those that run.
///
/// Its only shared state is one atomic, which each call changes twice: a semaphore or a task tracker would
/// take a tenth of a hot operation's time.
pub(crate) struct Gate {
    /// Twice the number of running calls; odd once the gate is closed.
    state: AtomicUsize,
    empty: Notify,
}

const CLOSED: usize = 1;
const CALL: usize = 2;

impl Gate {
    pub(crate) const fn new() -> Self {
        Self { state: AtomicUsize::new(0), empty: Notify::const_new() }
    }

    pub(crate) fn enter(&self) -> Result<Entry<'_>> {
        let before = self.state.fetch_add(CALL, Ordering::AcqRel);
        let entry = Entry(self);
        if before & CLOSED == 0 { Ok(entry) } else { Err(Error::closed()) }
    }

    /// Closes the gate, and fails if calls are still running at the deadline.
    pub(crate) async fn close_within(&self, deadline: Duration) -> Result<()> {
        tokio::time::timeout(deadline, self.close()).await.map_err(|_| {
            Error::new(ErrorKind::Timeout, "the store was closed while calls were still running")
        })
    }

    /// Refuses further calls and waits until the running ones have ended.
    pub(crate) async fn close(&self) {
        self.state.fetch_or(CLOSED, Ordering::AcqRel);
        while self.state.load(Ordering::Acquire) != CLOSED {
            self.empty.notified().await;
        }
        // For another call that waits.
        self.empty.notify_one();
    }
}

/// A running call; dropping it ends the call.
pub(crate) struct Entry<'g>(&'g Gate);

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if self.0.state.fetch_sub(CALL, Ordering::AcqRel) == CALL + CLOSED {
            self.0.empty.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;

    use super::*;
    use crate::ErrorKind;

    #[tokio::test]
    async fn closes_when_all_calls_have_ended() {
        let gate = Gate::new();
        let (first, second) = (gate.enter().unwrap(), gate.enter().unwrap());
        let mut closing = Box::pin(gate.close());
        assert!(closing.as_mut().now_or_never().is_none());
        assert_eq!(gate.enter().err().unwrap().kind(), ErrorKind::Closed);
        drop(first);
        assert!(closing.as_mut().now_or_never().is_none());
        drop(second);
        closing.await;
        gate.close().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_call_runs_once_it_is_closed() {
        for _ in 0..200 {
            let gate = Arc::new(Gate::new());
            let inside = Arc::new(AtomicUsize::new(0));
            let calls: Vec<_> = (0..8)
                .map(|_| {
                    let (gate, inside) = (gate.clone(), inside.clone());
                    tokio::spawn(async move {
                        while let Ok(_entry) = gate.enter() {
                            inside.fetch_add(1, Ordering::SeqCst);
                            tokio::task::yield_now().await;
                            inside.fetch_sub(1, Ordering::SeqCst);
                        }
                    })
                })
                .collect();
            tokio::task::yield_now().await;
            gate.close().await;
            assert_eq!(inside.load(Ordering::SeqCst), 0);
            for call in calls {
                call.await.unwrap();
            }
        }
    }
}
