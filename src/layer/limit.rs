//! [`Limit`]: so many operations at once, and so many that wait.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::time_left;
use crate::{Call, DEFAULT_DEADLINE, Error, ErrorKind, Layer, Receiver, Result};

/// Lets so many operations run at once, and so many wait for their turn, in order. Beyond that it sheds load: the error is
/// [`ErrorKind::Busy`], at once, and nothing was done ([`NotApplied`](crate::Outcome::NotApplied)). It is not
/// [retryable](crate::Error::is_retryable), so that no [`Retry`](crate::Retry) adds to what is too much already.
///
/// Clones share the limit. What is limited are reads, writes and `begin`. What is not:
///
/// - Operations on a transaction, commit and rollback: others may wait for its locks, and if they held all the places, nobody
///   could go on. A place is held for one call and never across two, so nobody waits for himself.
/// - Streams, since they are as slow as their reader.
/// - [`health`, statistics, `close`, the pool](crate::Operation::operator): an operator needs them most when all is full.
///
/// One that waits for its turn gives up after half of the time that is left of the deadline at the latest: that of the handle, or
/// of a [`Timeout`](crate::Timeout) or [`Retry`](crate::Retry) around it. Dropping a call that waits gives its place in the queue back. One that
/// runs gives its place back, too, although the server may still be at it.
///
/// ```
/// # use gateway_storage::{Limit, Memory, Storage};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
/// let storage = Storage::<Memory>::open("memory:").await?.layer(Limit::new(64).queue(256));
/// # storage.health().await
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Limit {
    shared: Arc<Shared>,
    queue: usize,
    patience: Duration,
    deadline: Duration,
}

#[derive(Debug)]
struct Shared {
    places: Semaphore,
    waiting: AtomicUsize,
}

impl Limit {
    /// This many at once (at least one), 16 times as many in the queue, each for at most a second.
    #[must_use]
    pub fn new(at_once: usize) -> Self {
        let at_once = at_once.clamp(1, Semaphore::MAX_PERMITS);
        let shared = Shared { places: Semaphore::new(at_once), waiting: AtomicUsize::new(0) };
        Self {
            shared: Arc::new(shared),
            queue: at_once.saturating_mul(16),
            patience: Duration::from_secs(1),
            deadline: DEFAULT_DEADLINE,
        }
    }

    /// How many may wait. With 0 nobody waits.
    #[must_use]
    pub const fn queue(mut self, waiting: usize) -> Self {
        self.queue = waiting;
        self
    }

    /// How long one may wait, if half of what is left of the deadline is not less.
    #[must_use]
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    async fn enter(&self) -> Result<SemaphorePermit<'_>> {
        let Shared { places, waiting } = &*self.shared;
        if let Ok(place) = places.try_acquire() {
            return Ok(place);
        }
        let _waiter = Waiter::begin(waiting, self.queue)?;
        // The operation gets the other half.
        let patience = self.patience.min(time_left(self.deadline) / 2);
        match tokio::time::timeout(patience, places.acquire()).await {
            Ok(place) => Ok(place.expect("nobody closes it")),
            Err(_) => Err(busy("too many operations at once: it was not this one's turn in time")),
        }
    }
}

/// One who waits, until it is dropped.
struct Waiter<'l>(&'l AtomicUsize);

impl<'l> Waiter<'l> {
    fn begin(waiting: &'l AtomicUsize, most: usize) -> Result<Self> {
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        let waiter = Self(waiting);
        if before < most {
            Ok(waiter)
        } else {
            Err(busy("too many operations at once, and the queue is full"))
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
    // Another try would add to what is too much.
    Error::new(ErrorKind::Busy, message).with_retryable(false)
}

impl Layer for Limit {
    async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> Result<C::Output> {
        let is_limited = !C::OPERATION.operator && on.again().is_some();
        let _place = if is_limited { Some(self.enter().await?) } else { None };
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
    use crate::{Fault, Key, Memory, Outcome, Storage, Transaction, Transactional, UsageStore};

    const SECOND: Duration = Duration::from_secs(1);

    /// Every operation takes a second.
    async fn slow(
        limit: Limit,
    ) -> Storage<impl UsageStore + Transactional + crate::ConfigStore + crate::Exportable> {
        let memory = Storage::<Memory>::open("memory:").await.unwrap();
        memory.layer(Fault::seeded(1).delays(1.0, SECOND..=SECOND)).layer(limit)
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_run_so_many_wait_and_the_rest_is_told() {
        let storage = slow(Limit::new(2).queue(4).patience(SECOND * 10)).await;
        let begun = tokio::time::Instant::now();
        let results = join_all((0..10).map(|_| storage.increment_usage("a", "b", 1))).await;
        assert_eq!(begun.elapsed().as_secs(), 3, "six of them, two at once");
        let (ran, shed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        assert_eq!((ran.len(), shed.len()), (6, 4));
        for error in shed.into_iter().map(Result::unwrap_err) {
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::Busy, Outcome::NotApplied));
        }
        assert_eq!(storage.increment_usage("a", "b", 0).await.unwrap(), 6, "what was shed was not done");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_forever_and_who_leaves_leaves_no_trace() {
        let storage = slow(Limit::new(1).queue(1).patience(SECOND / 2)).await;
        let (ran, late) = tokio::join!(storage.get_config("a"), storage.set_config("a", json!(1)));
        assert_eq!(ran.unwrap_err().kind(), ErrorKind::NotFound);
        let late = late.unwrap_err();
        assert_eq!((late.kind(), late.outcome()), (ErrorKind::Busy, Outcome::NotApplied));

        let mut running = Box::pin(storage.get_config("a"));
        assert!(running.as_mut().now_or_never().is_none());
        for _ in 0..10 {
            assert!(storage.get_config("a").now_or_never().is_none(), "there is a place in the queue");
        }
        drop(running);
        assert_eq!(storage.get_config("a").await.unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[tokio::test(start_paused = true)]
    async fn patience_is_what_was_set_or_half_of_what_is_left() {
        let limit = Limit::new(1).patience(SECOND * 4);
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
        let hasty = storage.with_deadline(SECOND);
        assert_eq!(waits(&hasty).await, 500);
        assert_eq!(waits(&hasty.with_deadline(SECOND * 30)).await, 4_000, "nothing is forgotten");

        let within = storage.clone().layer(crate::Timeout::new(SECOND * 5));
        let begun = tokio::time::Instant::now();
        assert_eq!(within.get_config("a").await.unwrap_err().kind(), ErrorKind::Busy);
        assert_eq!(begun.elapsed().as_millis(), 2_450, "half of what the timeout leaves");
    }

    #[tokio::test(start_paused = true)]
    async fn a_transaction_is_never_in_its_own_way() {
        let storage = slow(Limit::new(1).queue(0)).await;
        let mut tx = storage.begin().await.unwrap();
        let stream = storage.export();
        let mut outside = Box::pin(storage.set_config("b", json!(1)));
        assert!(outside.as_mut().now_or_never().is_none(), "it has the only place");
        assert_eq!(storage.get_config("b").await.unwrap_err().kind(), ErrorKind::Busy);
        tx.set_config(&Key::new("a").unwrap(), &json!(1).try_into().unwrap()).await.unwrap();
        tx.commit().await.unwrap();
        storage.health().await.unwrap();
        assert_eq!(stream.count().await, 0);
        outside.await.unwrap();
    }
}
