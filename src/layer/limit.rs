//! [`Limit`]: bounds the operations that run at once, and the queue for them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::time_left;
use crate::{
    DEFAULT_DEADLINE, Error, ErrorKind, Result,
    layer::{Call, Layer, Receiver},
};

/// Bounds the operations that run at once. Others wait in a bounded queue, in order. When it is full, a call
/// fails at once with [`ErrorKind::Busy`] and [`NotApplied`](crate::Outcome::NotApplied). This error is not
/// [retryable](crate::Error::is_retryable), so [`Retry`](crate::layer::Retry) does not add to the overload.
///
/// Clones share the limit. It applies to reads, writes and `begin`, and not to:
///
/// - Operations on a transaction, commit and rollback. Other calls may wait for its locks: if these held all
///   permits, the transaction could not end. A permit is held for one call and never across two, so no caller
///   waits for itself.
/// - Streams, which are as slow as their reader.
/// - [`health`, statistics, `close`, the pool](crate::layer::Operation::operator), which operators need most
///   when the store is saturated.
///
/// A call waits for at most half of the time that is left until the deadline: that of the handle, or of a
/// [`Timeout`](crate::layer::Timeout) or [`Retry`](crate::layer::Retry) around it. A dropped call gives back
/// its slot, in the queue or among the running calls, although the server may still be working on it.
///
/// ```
/// # use gateway_storage::{layer::Limit, Memory, Storage};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
/// let storage = Storage::<Memory>::open("memory:").await?.layer(Limit::new(64).queue(256));
/// # storage.health().await
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Limit {
    shared: Arc<Shared>,
    queue: usize,
    max_wait: Duration,
    deadline: Duration,
}

#[derive(Debug)]
struct Shared {
    permits: Semaphore,
    waiting: AtomicUsize,
}

impl Limit {
    /// Allows this many operations at once (at least 1), and 16 times as many in the queue, each for at most
    /// 1 s.
    #[must_use]
    pub fn new(at_once: usize) -> Self {
        let at_once = at_once.clamp(1, Semaphore::MAX_PERMITS);
        let shared = Shared { permits: Semaphore::new(at_once), waiting: AtomicUsize::new(0) };
        Self {
            shared: Arc::new(shared),
            queue: at_once.saturating_mul(16),
            max_wait: Duration::from_secs(1),
            deadline: DEFAULT_DEADLINE,
        }
    }

    /// The length of the queue. With 0 no call waits.
    #[must_use]
    pub const fn queue(mut self, waiting: usize) -> Self {
        self.queue = waiting;
        self
    }

    /// How long a call waits in the queue at most. It never waits longer than half of the time left until the
    /// deadline.
    #[must_use]
    pub const fn max_wait(mut self, max_wait: Duration) -> Self {
        self.max_wait = max_wait;
        self
    }

    async fn enter(&self) -> Result<SemaphorePermit<'_>> {
        let Shared { permits, waiting } = &*self.shared;
        if let Ok(permit) = permits.try_acquire() {
            return Ok(permit);
        }
        let _waiter = Waiter::begin(waiting, self.queue)?;
        // The operation gets the other half.
        let wait = self.max_wait.min(time_left(self.deadline) / 2);
        match tokio::time::timeout(wait, permits.acquire()).await {
            Ok(permit) => Ok(permit.expect("the semaphore is never closed")),
            Err(_) => Err(busy("timed out waiting for a free slot (concurrency limit reached)")),
        }
    }
}

/// A call in the queue, until it is dropped.
struct Waiter<'l>(&'l AtomicUsize);

impl<'l> Waiter<'l> {
    fn begin(waiting: &'l AtomicUsize, most: usize) -> Result<Self> {
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        let waiter = Self(waiting);
        if before < most {
            Ok(waiter)
        } else {
            Err(busy("the concurrency limit is reached and the queue is full"))
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cold]
fn busy(message: &'static str) -> Error {
    // A retry would add to the overload.
    Error::new(ErrorKind::Busy, message).with_retryable(false)
}

impl Layer for Limit {
    async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> Result<C::Output> {
        let is_limited = !C::OPERATION.operator && on.again().is_some();
        let _permit = if is_limited { Some(self.enter().await?) } else { None };
        call.run(on).await
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }
}

#[cfg(all(test, feature = "memory"))]
mod tests {
    use futures_util::{FutureExt, StreamExt, future::join_all};
    use serde_json::json;

    use super::*;
    use crate::{Memory, Outcome, Storage, Transactional, UsageStore, layer::Fault};

    const SECOND: Duration = Duration::from_secs(1);

    /// Every operation takes a second.
    async fn slow(
        limit: Limit,
    ) -> Storage<impl UsageStore + Transactional + crate::ConfigStore + crate::Exportable> {
        let memory = Storage::<Memory>::open("memory:").await.unwrap();
        memory.layer(Fault::seeded(1).delays(1.0, SECOND..=SECOND)).layer(limit)
    }

    #[tokio::test(start_paused = true)]
    async fn calls_beyond_the_limit_and_the_queue_are_refused() {
        let storage = slow(Limit::new(2).queue(4).max_wait(SECOND * 10)).await;
        let begun = tokio::time::Instant::now();
        let results = join_all((0..10).map(|_| storage.increment_usage("a", "b", 1))).await;
        assert_eq!(begun.elapsed().as_secs(), 3, "six calls, two at once");
        let (ran, shed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        assert_eq!((ran.len(), shed.len()), (6, 4));
        for error in shed.into_iter().map(Result::unwrap_err) {
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::Busy, Outcome::NotApplied));
        }
        assert_eq!(storage.increment_usage("a", "b", 0).await.unwrap(), 6, "refused calls were not applied");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_bounded_and_a_dropped_call_frees_its_slot() {
        let storage = slow(Limit::new(1).queue(1).max_wait(SECOND / 2)).await;
        let (ran, late) = tokio::join!(storage.get_config("a"), storage.set_config("a", json!(1)));
        assert_eq!(ran.unwrap_err().kind(), ErrorKind::NotFound);
        let late = late.unwrap_err();
        assert_eq!((late.kind(), late.outcome()), (ErrorKind::Busy, Outcome::NotApplied));

        let mut running = Box::pin(storage.get_config("a"));
        assert!(running.as_mut().now_or_never().is_none());
        for _ in 0..10 {
            assert!(storage.get_config("a").now_or_never().is_none(), "the queue has a free slot");
        }
        drop(running);
        assert_eq!(storage.get_config("a").await.unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_the_set_time_or_half_of_the_time_left() {
        let limit = Limit::new(1).max_wait(SECOND * 4);
        let memory = Storage::<Memory>::open("memory:").await.unwrap();
        let storage = memory.layer(Fault::seeded(1).delays(1.0, SECOND * 60..=SECOND * 60)).layer(limit);
        let mut running = Box::pin(storage.get_config("a"));
        assert!(running.as_mut().now_or_never().is_none());
        let waits = async |storage: &Storage<_>| {
            let begun = tokio::time::Instant::now();
            let error = storage.get_config("a").await.unwrap_err();
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::Busy, Outcome::NotApplied));
            begun.elapsed().as_millis()
        };
        assert_eq!(waits(&storage).await, 4_000);
        let faster = storage.with_deadline(SECOND);
        assert_eq!(waits(&faster).await, 500);
        assert_eq!(waits(&faster.with_deadline(SECOND * 30)).await, 4_000, "the set time is kept");

        let within = storage.clone().layer(crate::layer::Timeout::new(SECOND * 5));
        let begun = tokio::time::Instant::now();
        assert_eq!(within.get_config("a").await.unwrap_err().kind(), ErrorKind::Busy);
        assert_eq!(begun.elapsed().as_millis(), 2_450, "half of the time that the timeout leaves");
    }

    #[tokio::test(start_paused = true)]
    async fn a_transaction_never_waits_for_the_limit() {
        let storage = slow(Limit::new(1).queue(0)).await;
        let mut tx = storage.begin().await.unwrap();
        let stream = storage.export();
        let mut outside = Box::pin(storage.set_config("b", json!(1)));
        assert!(outside.as_mut().now_or_never().is_none(), "it holds the only permit");
        assert_eq!(storage.get_config("b").await.unwrap_err().kind(), ErrorKind::Busy);
        tx.set_config("a", json!(1)).await.unwrap();
        tx.commit().await.unwrap();
        storage.health().await.unwrap();
        assert_eq!(stream.count().await, 0);
        outside.await.unwrap();
    }
}
