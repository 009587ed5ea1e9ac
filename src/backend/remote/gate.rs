//! The calls under way on a store whose server is elsewhere.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::{Error, Result};

/// Counts the calls under way, so that closing can wait for them: lets calls in until it is closed.
///
/// One number that every call changes twice, and nothing else that all threads share: a semaphore or a task tracker costs
/// a hot operation a tenth of its time.
pub(crate) struct Gate {
    /// Twice the calls under way; odd once it is closed.
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

    /// Lets nobody in any more, and waits until all are out.
    pub(crate) async fn close(&self) {
        let mut emptied = std::pin::pin!(self.empty.notified());
        emptied.as_mut().enable();
        self.state.fetch_or(CLOSED, Ordering::AcqRel);
        while self.state.load(Ordering::Acquire) != CLOSED {
            emptied.as_mut().await;
            emptied.set(self.empty.notified());
            emptied.as_mut().enable();
        }
    }
}

/// One call under way, until it is dropped.
pub(crate) struct Entry<'g>(&'g Gate);

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if self.0.state.fetch_sub(CALL, Ordering::AcqRel) == CALL + CLOSED {
            self.0.empty.notify_waiters();
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
    async fn closes_when_all_are_out() {
        let gate = Gate::new();
        let (one, other) = (gate.enter().unwrap(), gate.enter().unwrap());
        let mut closing = Box::pin(gate.close());
        assert!(closing.as_mut().now_or_never().is_none());
        assert_eq!(gate.enter().err().unwrap().kind(), ErrorKind::Closed);
        drop(one);
        assert!(closing.as_mut().now_or_never().is_none());
        drop(other);
        closing.await;
        gate.close().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nobody_is_in_when_it_is_closed() {
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
