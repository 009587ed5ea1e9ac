//! [`Timeout`]: a deadline around everything that is inside.

use std::time::Duration;

use super::within;
use crate::{Call, DEFAULT_DEADLINE, Layer, Receiver, Result};

/// Ends every operation at a deadline, with all that is inside: tries, pauses, queues.
///
/// What is inside is told when that is, and ends [a little earlier](crate::layer::time_left): every backend of this library,
/// [`Limit`](crate::Limit), [`Retry`](crate::Retry). So the error is theirs, who know whether anything was done. That of this layer is the
/// last resort, for what does not end by itself.
///
/// It is [`ErrorKind::Timeout`](crate::ErrorKind::Timeout). Its outcome is [what is known of the operation when it is lost](crate::Operation::when_lost):
/// `Unknown` for a write, a commit, and whatever else is neither a read nor marked harmless, since from here no one sees how far it
/// came.
///
/// Without a number of its own it takes the backend's deadline (a URL's `?deadline=60s`) when it is put on. A number of its own it
/// keeps then; [`with_deadline`](crate::Storage::with_deadline) sets either, together with the backend's. A stream is not timed: it may be read
/// for as long as it takes, and each of its steps has the backend's deadline. `close` is one of the operations.
///
/// The call is dropped at the deadline, and so applied as a whole or not at all.
#[derive(Clone, Copy, Debug)]
pub struct Timeout {
    deadline: Duration,
    is_own: bool,
}

impl Timeout {
    /// Ends every operation after this time.
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
    use crate::{Backend, ErrorKind, Fault, Memory, Outcome, Storage, Transaction};

    /// Every operation takes a minute, but for those that are no work.
    async fn slow() -> Storage<crate::Layered<Fault, Memory>> {
        let minute = Duration::from_secs(60);
        Storage::open("memory:")
            .await
            .map(|memory: Storage<Memory>| memory.layer(Fault::seeded(1).delays(1.0, minute..=minute)))
            .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn ends_and_says_what_is_known() {
        let storage = slow().await.layer(Timeout::new(Duration::from_secs(2)));
        let begun = tokio::time::Instant::now();
        let error = storage.get_config("a").await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied));
        assert_eq!(begun.elapsed().as_secs(), 2);
        let error = storage.set_config("a", json!(1)).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown));
        assert!(error.is_retryable());
        storage.health().await.unwrap();

        let patient = storage.with_deadline(Duration::from_secs(61));
        patient.set_config("a", json!(1)).await.unwrap();
        let tx = patient.begin().await.unwrap();
        let mut hasty = crate::LayeredTransaction::new(Timeout::new(Duration::from_secs(1)), tx);
        hasty.get_config(&crate::Key::new("a").unwrap()).await.unwrap_err();
        let error = hasty.commit().await.unwrap_err();
        assert_eq!(
            (error.kind(), error.outcome()),
            (ErrorKind::Timeout, Outcome::Unknown),
            "nobody knows of a commit"
        );
        storage.get_config("a").await.expect_err("other handles keep theirs");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_number_it_has_the_handles() {
        let ends_after = async |storage: Storage<crate::Layered<Timeout, _>>| {
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
        assert_eq!(ends_after(own.clone()).await, 5, "a number of its own");
        assert_eq!(ends_after(own.with_deadline(twenty)).await, 20);
        let stack = crate::Stack::new().timeout(Timeout::default());
        let begun = tokio::time::Instant::now();
        slow().await.with_deadline(twenty).layer(stack).get_config("a").await.unwrap_err();
        assert_eq!(begun.elapsed().as_secs(), 20, "a part of a stack is told, too");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_there_is_never_late() {
        let storage = Storage::<Memory>::open("memory:").await.unwrap().layer(Timeout::new(Duration::ZERO));
        storage.set_config("a", json!(1)).await.unwrap();
        storage.get_config("a").await.unwrap();
    }
}
