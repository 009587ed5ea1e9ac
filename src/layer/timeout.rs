//! [`Timeout`]: one deadline for everything inside.

use std::time::Duration;

use super::within;
use crate::{
    DEFAULT_DEADLINE, Result,
    layer::{Call, Layer, Receiver},
};

/// Ends every operation at a deadline, including its attempts, pauses and waits in a queue.
///
/// Every backend of this library, [`Limit`](crate::layer::Limit) and [`Retry`](crate::layer::Retry) see the
/// deadline and end [a little earlier](crate::layer::time_left). So the error comes from them, and they know
/// whether a write was applied. This layer's own error is the last resort.
///
/// That error is [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) with the outcome
/// [`Operation::when_lost`](crate::layer::Operation::when_lost): `Unknown` for a write, a commit, and every
/// other operation that is neither a read nor marked harmless, because this layer cannot see how far the call
/// got.
///
/// [`Timeout::default`] takes the backend's deadline (`?deadline=60s` in a URL) when it is put around the
/// backend; [`Timeout::new`] keeps its own. [`with_deadline`](crate::Storage::with_deadline) sets either,
/// together with the backend's. Streams have no timeout as a whole: the backend's deadline applies to each of
/// their steps. `close` is an operation and has one.
///
/// The call is dropped at the deadline, and is applied as a whole or not at all.
#[derive(Clone, Copy, Debug)]
pub struct Timeout {
    deadline: Duration,
    is_own: bool,
}

impl Timeout {
    /// Ends every operation after this duration.
    #[must_use]
    pub const fn new(deadline: Duration) -> Self {
        Self { deadline, is_own: true }
    }
}

impl Default for Timeout {
    fn default() -> Self {
        Self { deadline: DEFAULT_DEADLINE, is_own: false }
    }
}

impl Layer for Timeout {
    async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> Result<C::Output> {
        within(self.deadline, C::OPERATION, call.run(on)).await
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    fn put_on(&mut self, deadline: Duration) {
        if !self.is_own {
            self.deadline = deadline;
        }
    }
}

#[cfg(all(test, feature = "memory"))]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Backend, ErrorKind, Memory, Outcome, Storage, Transaction, layer::Fault};

    /// Every operation takes a minute, except an operator's.
    async fn slow() -> Storage<crate::layer::Layered<Fault, Memory>> {
        let minute = Duration::from_secs(60);
        Storage::open("memory:")
            .await
            .map(|memory: Storage<Memory>| memory.layer(Fault::seeded(1).delays(1.0, minute..=minute)))
            .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn ends_at_the_deadline_with_the_known_outcome() {
        let storage = slow().await.layer(Timeout::new(Duration::from_secs(2)));
        let begun = tokio::time::Instant::now();
        let error = storage.get_config("a").await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied));
        assert_eq!(begun.elapsed().as_secs(), 2);
        let error = storage.set_config("a", json!(1)).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown));
        assert!(error.is_retryable());
        storage.health().await.unwrap();

        let slower = storage.with_deadline(Duration::from_secs(61));
        slower.set_config("a", json!(1)).await.unwrap();
        let tx = slower.begin().await.unwrap();
        let mut faster = crate::layer::LayeredTransaction::new(Timeout::new(Duration::from_secs(1)), tx);
        faster.get_config(&crate::Key::new("a").unwrap()).await.unwrap_err();
        let error = faster.commit().await.unwrap_err();
        assert_eq!(
            (error.kind(), error.outcome()),
            (ErrorKind::Timeout, Outcome::Unknown),
            "a commit may have been applied"
        );
        storage.get_config("a").await.expect_err("other handles keep their deadline");
    }

    #[tokio::test(start_paused = true)]
    async fn the_default_follows_the_deadline_of_the_handle() {
        let ends_after = async |storage: Storage<crate::layer::Layered<Timeout, _>>| {
            let begun = tokio::time::Instant::now();
            storage.get_config("a").await.unwrap_err();
            begun.elapsed().as_secs()
        };
        let (twenty, five) = (Duration::from_secs(20), Duration::from_secs(5));
        assert_eq!(ends_after(slow().await.layer(Timeout::default())).await, 10);
        let before = slow().await.with_deadline(twenty).layer(Timeout::default());
        assert_eq!(before.backend().deadline(), twenty);
        assert_eq!(ends_after(before).await, 20);
        assert_eq!(ends_after(slow().await.layer(Timeout::default()).with_deadline(twenty)).await, 20);
        let own = slow().await.with_deadline(twenty).layer(Timeout::new(five));
        assert_eq!(ends_after(own.clone()).await, 5, "its own deadline");
        assert_eq!(ends_after(own.with_deadline(twenty)).await, 20);
        let stack = crate::layer::Stack::new().timeout(Timeout::default());
        let begun = tokio::time::Instant::now();
        slow().await.with_deadline(twenty).layer(stack).get_config("a").await.unwrap_err();
        assert_eq!(begun.elapsed().as_secs(), 20, "a layer of a stack follows it, too");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_ready_at_once_never_times_out() {
        let storage = Storage::<Memory>::open("memory:").await.unwrap().layer(Timeout::new(Duration::ZERO));
        storage.set_config("a", json!(1)).await.unwrap();
        storage.get_config("a").await.unwrap();
    }
}
