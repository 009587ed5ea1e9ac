//! [`Fault`]: injects errors, delays and lost replies, for tests.

use std::{
    ops::{Bound, RangeBounds, RangeInclusive},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
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
/// same order meet the same ones. Clones share the sequence and the [switch](Fault::switch_off).
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
///
/// With the probability 1, [`on`](Fault::on) and [`nth`](Fault::nth) choose the calls exactly:
///
/// ```
/// # use gateway_storage::{layer::Fault, ErrorKind, Memory, Storage};
/// # use serde_json::json;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
/// let second = Fault::seeded(1).errors(1.0).kind(ErrorKind::Busy).on(["set_config"]).nth(2);
/// let storage = Storage::<Memory>::open("memory:").await?.layer(second);
/// storage.set_config("a", json!(1)).await?;
/// assert_eq!(storage.set_config("a", json!(2)).await.unwrap_err().kind(), ErrorKind::Busy);
/// storage.set_config("a", json!(3)).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Fault {
    seed: u64,
    shared: Arc<Shared>,
    names: Option<Arc<[Named]>>,
    numbers: (Bound<u64>, Bound<u64>),
    kind: ErrorKind,
    errors: f64,
    lost_requests: f64,
    lost_replies: f64,
    delays: f64,
    delay: (Duration, Duration),
}

/// What clones share.
#[derive(Debug, Default)]
struct Shared {
    calls: AtomicU64,
    is_off: AtomicBool,
}

/// The name of an operation, and whether there was a call of it.
#[derive(Debug)]
struct Named {
    name: &'static str,
    is_met: AtomicBool,
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
    /// No faults yet. They can meet every operation but [health, statistics, `close` and the
    /// pool](Operation::operator).
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        let delay = (Duration::ZERO, Duration::ZERO);
        Self {
            seed,
            shared: Arc::default(),
            names: None,
            numbers: (Bound::Unbounded, Bound::Unbounded),
            kind: ErrorKind::Unavailable,
            errors: 0.0,
            lost_requests: 0.0,
            lost_replies: 0.0,
            delays: 0.0,
            delay,
        }
    }

    /// Faults meet these operations only: `"set_credential"`, `"export"`, `"health"`. A name is that of the
    /// method of the capability. Operations of a transaction are called `"transaction_set_credential"` and so
    /// on; those that begin and end it `"begin"`, `"commit"` and `"rollback"`.
    ///
    /// A name that no operation has is no error, because applications have operations of their own. A test
    /// can assert that [`unmet`](Fault::unmet) is empty.
    #[must_use]
    pub fn on(mut self, operations: impl IntoIterator<Item = &'static str>) -> Self {
        let named = |name| Named { name, is_met: AtomicBool::new(false) };
        self.names = Some(operations.into_iter().map(named).collect());
        self
    }

    /// The names of [`on`](Fault::on) of which there was no call so far: a misspelt one, for example.
    ///
    /// ```
    /// # use gateway_storage::{layer::Fault, Memory, Storage};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
    /// let fault = Fault::seeded(1).errors(1.0).on(["get_config", "set_confg"]);
    /// let storage = Storage::<Memory>::open("memory:").await?.layer(fault.clone());
    /// storage.get_config("a").await.unwrap_err();
    /// storage.set_config("a", serde_json::json!(1)).await?;
    /// assert_eq!(fault.unmet(), ["set_confg"]);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn unmet(&self) -> Vec<&'static str> {
        let names = self.names.iter().flat_map(|names| names.iter());
        names.filter(|named| !named.is_met.load(Ordering::Relaxed)).map(|named| named.name).collect()
    }

    /// Faults meet this call only. The calls of all operations that faults can meet are counted together,
    /// from 1, and only while faults are switched on.
    #[must_use]
    pub fn nth(self, call: u64) -> Self {
        self.calls(call..=call)
    }

    /// Faults meet these calls only, counted as [`nth`](Fault::nth) counts: `calls(..=2)` are the first two.
    #[must_use]
    pub fn calls(mut self, numbers: impl RangeBounds<u64>) -> Self {
        self.numbers = (numbers.start_bound().cloned(), numbers.end_bound().cloned());
        self
    }

    /// The kind of [`errors`](Fault::errors), in place of `Unavailable`. They are retryable as
    /// [`Error::new`] makes that kind, and a [`NotFound`](ErrorKind::NotFound) has no key.
    ///
    /// [`Timeout`](ErrorKind::Timeout) is also that of [lost requests](Fault::lost_requests) and
    /// [replies](Fault::lost_replies). No other kind is: it would mean that there was a reply.
    #[must_use]
    pub const fn kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// No call meets a fault, until [`switch_on`](Fault::switch_on). Clones share the switch, which is on at
    /// first. A call that has begun, with its delay, goes on.
    ///
    /// ```
    /// # use gateway_storage::{layer::Fault, Memory, Storage};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
    /// let outage = Fault::seeded(1).errors(1.0);
    /// let storage = Storage::<Memory>::open("memory:").await?.layer(outage.clone());
    /// storage.list_configs().await.unwrap_err();
    /// outage.switch_off();
    /// storage.list_configs().await?;
    /// # Ok(()) }
    /// ```
    pub fn switch_off(&self) {
        self.shared.is_off.store(true, Ordering::Relaxed);
    }

    /// Calls meet faults again.
    pub fn switch_on(&self) {
        self.shared.is_off.store(false, Ordering::Relaxed);
    }

    /// The operation does not run, and the error says so: [`Unavailable`](ErrorKind::Unavailable) unless
    /// [`kind`](Fault::kind) is set, [`NotApplied`](Outcome::NotApplied). A stream returns this error instead of its items.
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
        let is_chosen = match &self.names {
            None => !operation.operator,
            Some(names) => {
                let named = names.iter().find(|Named { name, .. }| *name == operation.name);
                named.inspect(|named| named.is_met.store(true, Ordering::Relaxed)).is_some()
            }
        };
        if is_chosen && !self.shared.is_off.load(Ordering::Relaxed) {
            self.next()
        } else {
            (Fate::None, None)
        }
    }

    /// The fault and the delay of the next call.
    fn next(&self) -> (Fate, Option<Duration>) {
        // One generator per call: the numbers that a call draws do not depend on the calls before it.
        let call = self.shared.calls.fetch_add(1, Ordering::Relaxed);
        if !self.numbers.contains(&(call + 1)) {
            return (Fate::None, None);
        }
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

    #[cold]
    fn error(&self, fate: Fate, operation: Operation) -> Error {
        const NO_REPLY: &str = "injected fault: no reply";
        let (kind, message, outcome) = match (fate, self.kind) {
            (Fate::Refused, kind) => (kind, "injected fault: refused", Outcome::NotApplied),
            (_, ErrorKind::Timeout) => (ErrorKind::Timeout, NO_REPLY, operation.when_lost),
            _ => (ErrorKind::Unavailable, NO_REPLY, operation.when_lost),
        };
        Error::new(kind, message).with_outcome(outcome)
    }
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
                Err(self.error(fate, C::OPERATION))
            }
            Fate::Refused | Fate::RequestLost => Err(self.error(fate, C::OPERATION)),
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
            Fate::Refused | Fate::RequestLost => (0, Some(Err(self.error(fate, operation)))),
            Fate::ReplyLost => (1, Some(Err(self.error(fate, operation)))),
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
    use crate::{Memory, OptionalExt, Storage, layer::Retry};

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
        tx.set_config("k", json!(1)).await.unwrap();
        let tx = crate::layer::LayeredTransaction::new(Fault::seeded(1).lost_replies(1.0), tx);
        assert_eq!(crate::Transaction::commit(tx).await.unwrap_err().outcome(), Outcome::Unknown);
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

    #[tokio::test]
    async fn faults_meet_the_named_operations_and_numbers() {
        let fault =
            Fault::seeded(1).errors(1.0).on(["set_config", "delete_config", "set_confg"]).calls(2..=3);
        let (_, faulty) = with(fault.clone()).await;
        let set = async || faulty.set_config("a", json!(1)).await.is_ok();
        assert_eq!(fault.unmet(), ["set_config", "delete_config", "set_confg"]);
        assert!(set().await);
        faulty.get_config("a").await.unwrap();
        faulty.delete_config("a").await.unwrap_err();
        assert_eq!([set().await, set().await], [false, true]);
        faulty.get_config("a").await.unwrap();
        assert_eq!(fault.unmet(), ["set_confg"]);

        let (_, faulty) = with(Fault::seeded(1).errors(1.0).nth(2)).await;
        let listed = async || faulty.list_configs().await.is_ok();
        assert_eq!([listed().await, listed().await, listed().await], [true, false, true]);
        let (_, faulty) = with(Fault::seeded(1).errors(1.0).calls(3..)).await;
        let listed = async || faulty.list_configs().await.is_ok();
        assert_eq!(
            [listed().await, listed().await, listed().await, listed().await],
            [true, true, false, false]
        );
    }

    #[tokio::test]
    async fn an_operation_of_operators_fails_if_it_is_named() {
        let (_, faulty) = with(Fault::seeded(1).errors(1.0).on(["health"])).await;
        faulty.health().await.unwrap_err();
        faulty.stats().await.unwrap();
        let (_, faulty) = with(Fault::seeded(1).errors(1.0)).await;
        faulty.health().await.unwrap();
    }

    #[tokio::test]
    async fn an_error_of_each_kind_is_like_that_kind_elsewhere() {
        for kind in ErrorKind::ALL {
            let (memory, faulty) = with(Fault::seeded(1).errors(1.0).kind(kind)).await;
            let error = faulty.set_config("a", json!(1)).await.unwrap_err();
            let usual = Error::new(kind, "");
            assert_eq!((error.kind(), error.outcome()), (kind, Outcome::NotApplied));
            assert_eq!(error.is_retryable(), usual.is_retryable());
            assert!(memory.get_config("a").await.optional().unwrap().is_none());

            let (memory, faulty) = with(Fault::seeded(1).lost_replies(1.0).kind(kind)).await;
            let error = faulty.set_config("a", json!(1)).await.unwrap_err();
            let lost = if kind == ErrorKind::Timeout { kind } else { ErrorKind::Unavailable };
            assert_eq!((error.kind(), error.outcome()), (lost, Outcome::Unknown));
            memory.get_config("a").await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_ends_when_it_is_switched_off() {
        let outage = Fault::seeded(1).errors(1.0).kind(ErrorKind::Busy);
        outage.switch_off();
        let (_, faulty) = with(outage.clone()).await;
        let faulty = faulty.layer(Retry::new().tries(100));
        faulty.set_config("a", json!(1)).await.unwrap();
        outage.switch_on();
        let second = Duration::from_secs(1);
        let end = async {
            tokio::time::sleep(second).await;
            outage.switch_off();
        };
        let begun = tokio::time::Instant::now();
        let (read, ()) = tokio::join!(faulty.get_config("a"), end);
        read.unwrap();
        assert!((second..second * 3).contains(&begun.elapsed()), "{:?}", begun.elapsed());

        let first = Fault::seeded(1).errors(1.0).nth(1);
        first.switch_off();
        let (_, faulty) = with(first.clone()).await;
        faulty.list_configs().await.unwrap();
        first.switch_on();
        faulty.list_configs().await.expect_err("calls before the outage are not counted");
    }

    #[tokio::test]
    async fn streams_and_transactions_have_names() {
        let fault = Fault::seeded(1).errors(1.0).kind(ErrorKind::Busy).on(["export"]).nth(2);
        let (memory, faulty) = with(fault).await;
        memory.set_config("a", json!(1)).await.unwrap();
        let failures = async || {
            let failures = faulty.export().map(|item| item.err().map(|error| error.kind()));
            failures.collect::<Vec<_>>().await
        };
        assert_eq!(failures().await, [None]);
        assert_eq!(failures().await, [Some(ErrorKind::Busy)]);
        assert_eq!(failures().await, [None]);

        for (name, failing) in [("begin", 0), ("transaction_set_config", 1), ("commit", 2)] {
            let fault = Fault::seeded(1).errors(1.0).kind(ErrorKind::Conflict).on([name]);
            let (memory, faulty) = with(fault.clone()).await;
            let attempt = async {
                let mut tx = faulty.begin().await.map_err(|error| (0, error.kind()))?;
                tx.set_config("a", json!(1)).await.map_err(|error| (1, error.kind()))?;
                tx.commit().await.map_err(|error| (2, error.kind()))
            };
            assert_eq!(attempt.await, Err((failing, ErrorKind::Conflict)));
            assert!(fault.unmet().is_empty());
            assert!(memory.list_configs().await.unwrap().is_empty());
        }
    }
}
