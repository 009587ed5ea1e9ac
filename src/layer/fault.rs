//! [`Fault`]: injects errors, delays and lost replies, for tests.

use std::{
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use futures_core::Stream;
use futures_util::{FutureExt, StreamExt, future::ready, stream};

use crate::{
    Error, ErrorKind, Outcome, Result,
    layer::{Call, Layer, Operation, Receiver},
};

/// Makes operations fail, wait, or lose their reply, to test how an application reacts.
///
/// Each fault has a probability, 0 unless set. The seed determines the faults: the same operations in the
/// same order meet the same ones. Clones share the sequence. [Health, statistics, `close` and the
/// pool](Operation::operator) never fail.
///
/// ```
/// # use gateway_storage::{layer::Fault, Memory, Outcome, Storage};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
/// let storage = Storage::<Memory>::open("memory:").await?.layer(Fault::seeded(7).lost_replies(0.5));
/// let lost = loop {
///     if let Err(error) = storage.increment_usage("alice", "requests", 1).await { break error }
/// };
/// assert_eq!(lost.outcome(), Outcome::Unknown); // it was counted, and the reply was lost
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Fault {
    seed: u64,
    calls: Arc<AtomicU64>,
    errors: f64,
    lost_requests: f64,
    lost_replies: f64,
    delays: f64,
    delay: (Duration, Duration),
}

/// The fault of one call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    None,
    Refused,
    RequestLost,
    ReplyLost,
}

impl Fault {
    /// No faults yet.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        let delay = (Duration::ZERO, Duration::ZERO);
        Self {
            seed,
            calls: Arc::default(),
            errors: 0.0,
            lost_requests: 0.0,
            lost_replies: 0.0,
            delays: 0.0,
            delay,
        }
    }

    /// The operation does not run, and the error says so: [`Unavailable`](ErrorKind::Unavailable),
    /// [`NotApplied`](Outcome::NotApplied). A stream returns this error instead of its items.
    #[must_use]
    pub const fn errors(mut self, probability: f64) -> Self {
        self.errors = probability;
        self
    }

    /// The operation does not run, and the caller cannot know it: `Unavailable`,
    /// [`Unknown`](Outcome::Unknown). A stream returns this error instead of its items.
    #[must_use]
    pub const fn lost_requests(mut self, probability: f64) -> Self {
        self.lost_requests = probability;
        self
    }

    /// The operation runs, and the caller cannot know it: `Unavailable`, [`Unknown`](Outcome::Unknown). A
    /// stream ends with this error after its first item.
    #[must_use]
    pub const fn lost_replies(mut self, probability: f64) -> Self {
        self.lost_replies = probability;
        self
    }

    /// Delays the operation, or a stream's first item, by a time in this range. Other faults follow the
    /// delay.
    #[must_use]
    pub fn delays(mut self, probability: f64, range: RangeInclusive<Duration>) -> Self {
        (self.delays, self.delay) = (probability, range.into_inner());
        self
    }

    /// The fault and the delay of a call of this operation.
    fn draw(&self, operation: Operation) -> (Fate, Option<Duration>) {
        if operation.operator { (Fate::None, None) } else { self.next() }
    }

    /// The fault and the delay of the next call.
    fn next(&self) -> (Fate, Option<Duration>) {
        // One generator per call: the numbers that a call draws do not depend on the calls before it.
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let mut random = Rng::with_seed(self.seed ^ call.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut at = random.f64();
        let mut fate = Fate::None;
        for (candidate, probability) in [
            (Fate::Refused, self.errors),
            (Fate::RequestLost, self.lost_requests),
            (Fate::ReplyLost, self.lost_replies),
        ] {
            if at < probability {
                fate = candidate;
                break;
            }
            at -= probability;
        }
        let (shortest, longest) = self.delay;
        let delay = (random.f64() < self.delays)
            .then(|| shortest + longest.saturating_sub(shortest).mul_f64(random.f64()));
        (fate, delay)
    }
}

#[cold]
fn error(fate: Fate, operation: Operation) -> Error {
    let (message, outcome) = match fate {
        Fate::Refused => ("injected fault: refused", Outcome::NotApplied),
        _ => ("injected fault: no reply", operation.when_lost),
    };
    Error::new(ErrorKind::Unavailable, message).with_outcome(outcome)
}

impl Layer for Fault {
    async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> Result<C::Output> {
        let (fate, delay) = self.draw(C::OPERATION);
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        match fate {
            Fate::None => call.run(on).await,
            Fate::ReplyLost => {
                // The reply is lost even if it is an error.
                drop(call.run(on).await);
                Err(error(fate, C::OPERATION))
            }
            Fate::Refused | Fate::RequestLost => Err(error(fate, C::OPERATION)),
        }
    }

    fn around_stream<T: Send, S: Stream<Item = Result<T>> + Send>(
        &self,
        operation: Operation,
        items: S,
    ) -> impl Stream<Item = Result<T>> + Send {
        let (fate, delay) = self.draw(operation);
        let (most, end) = match fate {
            Fate::None => (usize::MAX, None),
            Fate::Refused | Fate::RequestLost => (0, Some(Err(error(fate, operation)))),
            Fate::ReplyLost => (1, Some(Err(error(fate, operation)))),
        };
        let is_whole = end.is_none();
        // An error is the last item of a stream. If it is lost, the injected error replaces it.
        let given = items.take(most).filter(move |item| ready(is_whole || item.is_ok()));
        let items = given.chain(stream::iter(end));
        async move {
            if let Some(delay) = delay {
                tokio::time::sleep(delay).await;
            }
            items
        }
        .flatten_stream()
    }
}

#[cfg(all(test, feature = "memory"))]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Memory, Storage, Transaction};

    async fn with(fault: Fault) -> (Storage<Memory>, Storage<crate::layer::Layered<Fault, Memory>>) {
        let memory = Storage::<Memory>::open("memory:").await.unwrap();
        (memory.clone(), memory.layer(fault))
    }

    #[tokio::test]
    async fn each_fault_has_its_effect_and_outcome() {
        let (memory, faulty) = with(Fault::seeded(1).errors(1.0)).await;
        let error = faulty.increment_usage("a", "b", 1).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
        assert!(error.is_retryable());
        assert!(memory.get_usage("a").await.is_err());
        assert_eq!(faulty.export().collect::<Vec<_>>().await.len(), 1);
        faulty.health().await.unwrap();

        let (memory, faulty) = with(Fault::seeded(1).lost_requests(1.0)).await;
        let error = faulty.increment_usage("a", "b", 1).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::Unknown));
        assert!(memory.get_usage("a").await.is_err());

        let (memory, faulty) = with(Fault::seeded(1).lost_replies(1.0)).await;
        let error = faulty.increment_usage("a", "b", 1).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::Unknown));
        assert_eq!(memory.increment_usage("a", "b", 0).await.unwrap(), 1);
        assert_eq!(
            faulty.get_config("a").await.unwrap_err().outcome(),
            Outcome::NotApplied,
            "a read changes nothing"
        );

        let mut tx = memory.begin().await.unwrap();
        tx.set_config(&crate::Key::new("k").unwrap(), &json!(1).try_into().unwrap()).await.unwrap();
        let tx = crate::layer::LayeredTransaction::new(Fault::seeded(1).lost_replies(1.0), tx);
        assert_eq!(tx.commit().await.unwrap_err().outcome(), Outcome::Unknown);
        memory.get_config("k").await.expect("it was committed");
    }

    #[tokio::test(start_paused = true)]
    async fn each_fault_occurs_in_streams() {
        let items = async |fault: Fault| {
            let (memory, faulty) = with(fault).await;
            for id in ["a", "b", "c"] {
                memory.increment_usage(id, "requests", 1).await.unwrap();
            }
            let items: Vec<_> = faulty.export().collect().await;
            let last = items.last().unwrap().as_ref().err().map(|error| (error.kind(), error.outcome()));
            (items.len(), last)
        };
        let lost = Some((ErrorKind::Unavailable, Outcome::NotApplied));
        assert_eq!(items(Fault::seeded(1)).await, (3, None));
        assert_eq!(items(Fault::seeded(1).errors(1.0)).await, (1, lost));
        assert_eq!(items(Fault::seeded(1).lost_requests(1.0)).await, (1, lost));
        assert_eq!(items(Fault::seeded(1).lost_replies(1.0)).await, (2, lost));
        let begun = tokio::time::Instant::now();
        let second = Duration::from_secs(1);
        assert_eq!(items(Fault::seeded(1).delays(1.0, second..=second)).await, (3, None));
        assert!(begun.elapsed() >= second);
    }

    #[tokio::test]
    async fn a_seed_repeats_its_faults_in_the_given_proportions() {
        let run = |seed| {
            let fault = Fault::seeded(seed).errors(0.1).lost_requests(0.2).lost_replies(0.3);
            (0..10_000).map(|_| fault.next().0).collect::<Vec<_>>()
        };
        let fates = run(7);
        assert_eq!(fates, run(7));
        assert_ne!(fates, run(8));
        for (fate, share) in [(Fate::Refused, 1_000), (Fate::RequestLost, 2_000), (Fate::ReplyLost, 3_000)] {
            let count = fates.iter().filter(|other| **other == fate).count();
            assert!(count.abs_diff(share) < share / 10, "{fate:?}: {count} of 10,000");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_delay_comes_before_other_faults() {
        let second = Duration::from_secs(1);
        let (_, faulty) = with(Fault::seeded(1).errors(1.0).delays(1.0, second..=second * 3)).await;
        let begun = tokio::time::Instant::now();
        faulty.get_config("a").await.unwrap_err();
        assert!((second..second * 3 + second / 100).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }
}
