//! [`Timeout`]: a deadline around everything that is inside.

use std::time::Duration;

use crate::{Call, DEFAULT_DEADLINE, Error, ErrorKind, Layer, Operation, Receiver, Result};

/// Ends every operation at a deadline, with all that is inside: tries, pauses, queues.
///
/// The error is [`ErrorKind::Timeout`]. Its outcome is [what is known of the operation when it is lost](Operation::when_lost):
/// `Unknown` for a write, a commit, and whatever else is neither a read nor marked harmless, since from here no one sees how far it
/// came. What is inside often knows better (a backend whose own deadline ends, [`Limit`](crate::Limit) whose queue is too long), so give it less time than this.
///
/// Without a number of its own it is [`DEFAULT_DEADLINE`];
/// [`with_deadline`](crate::Storage::with_deadline) sets it together with the backend's. A stream is not timed: it may be read
/// for as long as it takes, and each of its steps has the backend's deadline. `close` is one of the operations.
///
/// The call is dropped at the deadline, and so applied as a whole or not at all.
#[derive(Clone, Copy, Debug)]
pub struct Timeout(Duration);

impl Timeout {
    /// Ends every operation after this time.
    #[must_use]
    pub const fn new(deadline: Duration) -> Self {
        Self(deadline)
    }
}

impl Default for Timeout {
    fn default() -> Self {
        Self(DEFAULT_DEADLINE)
    }
}

impl Layer for Timeout {
    async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> Result<C::Output> {
        // The call is asked before the clock: what needs no waiting never comes too late.
        match tokio::time::timeout(self.0, call.run(on)).await {
            Ok(result) => result,
            Err(_) => Err(late(C::OPERATION)),
        }
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.0 = deadline;
    }
}

#[cold]
pub(super) fn late(operation: Operation) -> Error {
    Error::new(ErrorKind::Timeout, "the operation did not end in time").with_outcome(operation.when_lost)
}

#[cfg(all(test, feature = "memory"))]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Fault, Memory, Outcome, Storage, Transaction};

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
    async fn what_is_there_is_never_late() {
        let storage = Storage::<Memory>::open("memory:").await.unwrap().layer(Timeout::new(Duration::ZERO));
        storage.set_config("a", json!(1)).await.unwrap();
        storage.get_config("a").await.unwrap();
    }
}
