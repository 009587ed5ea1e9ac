//! [`Retry`]: repeats failed calls where that is safe and may help.

use std::{
    mem::take,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{deadline::shortened, time_left, within};
use crate::{
    DEFAULT_DEADLINE, Error, ErrorKind, Outcome, Result,
    layer::{Call, Layer, Operation, Receiver},
};

/// Repeats a call after a transient error, if it cannot be applied twice.
///
/// That is the case if the operation is [replayable](Operation::replayable), as reads and plans are, or the
/// error's outcome is [`NotApplied`](Outcome::NotApplied). Any other write whose reply was lost is never
/// repeated: the caller gets [`Outcome::Unknown`] and decides. This includes a plain `set`: if it was applied
/// and another caller has since deleted or replaced the record, a second `set` would undo that. If no other
/// caller writes under the same keys, [`overwriting`](Retry::overwriting) repeats it. Only
/// [retryable](Error::is_retryable) errors lead to a retry. The `Conflict` of a plain operation is one,
/// because the operation has read nothing that could be stale.
///
/// - **Pauses** are random: up to 20 ms before the second attempt, and up to twice as much before each
///   further one, at most a second ("full jitter": callers that failed together do not retry together).
/// - **Attempts** are at most 4. They end at the handle's [deadline](crate::Backend::deadline), or a little
///   before that of a [`Timeout`](crate::layer::Timeout) around them; from the second one on each sees the
///   time that is left. If a write's outcome is known, and less time is left than the last attempt took, no
///   other attempt begins: a timeout would make the outcome `Unknown`. The call ends with the error of its
///   last attempt; its outcome is `Unknown` if that of any attempt was.
/// - **The budget** is shared by all clones: 100 retries in reserve, and half a retry more for each operation
///   that succeeds. [`NotFound`](ErrorKind::NotFound) counts as a success; a batch whose report has another
///   failure does not. So a store that is down soon gets one request per call instead of four.
/// - **A batch** whose report has failures is repeated only for the items to which all of this applies. The
///   report covers all attempts.
///
/// Streams and a transaction's operations are not repeated; [`transact!`](crate::transact) repeats
/// transactions.
///
/// Each retry emits a `tracing` event (DEBUG) and counts in the metric `gateway_storage.operation.retries`.
#[derive(Clone, Debug)]
pub struct Retry {
    tries: u32,
    first_pause: Duration,
    longest_pause: Duration,
    deadline: Duration,
    is_overwriting: bool,
    budget: Arc<Budget>,
}

impl Retry {
    /// The defaults described [above](Retry).
    #[must_use]
    pub fn new() -> Self {
        Self {
            tries: 4,
            first_pause: Duration::from_millis(20),
            longest_pause: Duration::from_secs(1),
            deadline: DEFAULT_DEADLINE,
            is_overwriting: false,
            budget: Arc::new(Budget::new(100)),
        }
    }

    /// The maximum number of attempts per call, including the first one.
    #[must_use]
    pub const fn tries(mut self, tries: u32) -> Self {
        self.tries = tries;
        self
    }

    /// The maximum of the first pause, and of any pause.
    #[must_use]
    pub const fn pauses(mut self, first: Duration, longest: Duration) -> Self {
        (self.first_pause, self.longest_pause) = (first, longest);
        self
    }

    /// A new budget with this many retries in reserve. Existing clones keep the old budget.
    #[must_use]
    pub fn budget(mut self, reserve: u32) -> Self {
        self.budget = Arc::new(Budget::new(reserve));
        self
    }

    /// Also repeats [overwriting](Operation::overwrites) operations after an attempt that may have been
    /// applied: `set_credential`, `set_credentials`, `set_config`, `set_cache`, `revert`. For applications
    /// that are the only writer of their keys: what others write between two attempts is overwritten. Never
    /// an import.
    #[must_use]
    pub const fn overwriting(mut self) -> Self {
        self.is_overwriting = true;
        self
    }

    fn is_safe(&self, operation: Operation, error: &Error) -> bool {
        operation.replayable
            || error.outcome() == Outcome::NotApplied
            || self.is_overwriting && operation.overwrites
    }

    /// A random pause after this many attempts. Its maximum doubles each time.
    fn pause(&self, attempts: u32) -> Duration {
        let longest = self.first_pause.saturating_mul(1 << (attempts - 1).min(20)).min(self.longest_pause);
        longest.mul_f64(fastrand::f64())
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self::new()
    }
}

impl Layer for Retry {
    async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> Result<C::Output> {
        let operation = C::OPERATION;
        let (begun, deadline) = (Instant::now(), time_left(self.deadline));
        let (mut on, mut attempts, mut started, mut is_unknown) = (on, 1, begun, false);
        // For a batch: its report so far, and the indices of the items to repeat.
        let mut part: Option<Box<(C::Output, Vec<usize>)>> = None;
        loop {
            let again = if attempts < self.tries { on.again() } else { None };
            let result = if attempts == 1 {
                call.run(on).await
            } else {
                let left = deadline.saturating_sub(begun.elapsed());
                match part.take() {
                    None => within(left, operation, call.run(on)).await,
                    // Boxed, so that the futures of single calls stay small.
                    Some(mut part) => {
                        let items = take(&mut part.1);
                        let result = within(left, operation, Box::pin(call.run_items(on, &items))).await;
                        C::merge_items(&mut part.0, &items, result);
                        Ok(part.0)
                    }
                }
            };
            // A block, so that the future stores none of these variables during the pause.
            let pause = {
                let (result, error) = match result {
                    Ok(mut output) => {
                        let items = C::failed_items(&mut output, |error| {
                            if is_unknown {
                                *error = merged(operation, error.clone(), true);
                            }
                            error.is_retryable() && self.is_safe(operation, error)
                        });
                        let Some(failure) = C::failure(&output).cloned() else {
                            self.budget.deposit();
                            return Ok(output);
                        };
                        (Ok((output, items)), failure)
                    }
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        self.budget.deposit();
                        return Err(merged(operation, error, is_unknown));
                    }
                    Err(error) => {
                        is_unknown |= error.outcome() == Outcome::Unknown;
                        (Err(merged(operation, error.clone(), is_unknown)), error)
                    }
                };
                let may_help = match &result {
                    Ok((_, items)) => !items.is_empty(),
                    Err(_) => error.is_retryable() && self.is_safe(operation, &error),
                };
                let Some(next) = again.filter(|_| may_help) else { return result.map(|(output, _)| output) };
                let pause = self.pause(attempts);
                let left = shortened(deadline.saturating_sub(begun.elapsed() + pause));
                // A timeout would turn a known outcome into Unknown.
                let loses_outcome = operation.when_lost == Outcome::Unknown && !is_unknown;
                let least = if loses_outcome { started.elapsed() } else { Duration::ZERO };
                if left <= least || !self.budget.withdraw() {
                    return result.map(|(output, _)| output);
                }
                report(operation, &error, attempts, pause);
                (on, part) = (next, result.ok().map(Box::new));
                pause
            };
            sleep(pause).await;
            (attempts, started) = (attempts + 1, Instant::now());
        }
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }
}

/// The last attempt's error with the outcome of all attempts: the last one does not undo an earlier one.
fn merged(operation: Operation, error: Error, is_unknown: bool) -> Error {
    if is_unknown && operation.when_lost == Outcome::Unknown {
        error.with_outcome(Outcome::Unknown)
    } else {
        error
    }
}

#[cold]
fn report(operation: Operation, error: &Error, tried: u32, pause: Duration) {
    let (operation, kind) = (operation.name, error.kind().as_str());
    tracing::debug!(target: "gateway_storage", operation, "error.type" = kind, tried, ?pause, "trying again");
    metrics::counter!("gateway_storage.operation.retries", "db.operation.name" => operation, "error.type" => kind)
        .increment(1);
}

/// Counts half retries, never more than at the beginning.
#[derive(Debug)]
struct Budget {
    halves: AtomicU32,
    most: u32,
}

impl Budget {
    fn new(reserve: u32) -> Self {
        let most = reserve.saturating_mul(2);
        Self { halves: AtomicU32::new(most), most }
    }

    /// Only one load while nothing is withdrawn, because every successful call runs this.
    #[inline]
    fn deposit(&self) {
        if self.halves.load(Ordering::Relaxed) < self.most {
            self.change(|halves| (halves < self.most).then_some(halves + 1));
        }
    }

    #[cold]
    fn withdraw(&self) -> bool {
        self.change(|halves| halves.checked_sub(2))
    }

    fn change(&self, change: impl FnMut(u32) -> Option<u32>) -> bool {
        self.halves.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
    }
}

#[cfg(all(test, feature = "memory"))]
mod tests {
    use std::{collections::VecDeque, sync::Mutex};

    use serde_json::json;

    use super::*;
    use crate::{
        Backend, ErrorKind, Increment, Key, Memory, Storage, UsageStore,
        layer::{Count, Fault},
        model::{Totals, Within},
    };

    const SECOND: Duration = Duration::from_secs(1);

    async fn memory() -> Storage<Memory> {
        Storage::open("memory:").await.unwrap()
    }

    /// The layer around faults, and the count of calls that reached the faults.
    fn around(
        retry: Retry,
        fault: Fault,
        memory: Storage<Memory>,
    ) -> (Storage<impl UsageStore + crate::ConfigBatch + crate::CredentialStore + crate::Exportable>, Count)
    {
        let asked = Count::default();
        (memory.layer(fault).layer(asked.clone()).layer(retry), asked)
    }

    #[tokio::test(start_paused = true)]
    async fn repeats_only_what_is_safe() {
        let lost = || Fault::seeded(1).lost_replies(1.0);
        for (retry, sets) in [(Retry::new(), 1), (Retry::new().overwriting(), 4)] {
            let (storage, asked) = around(retry, lost(), memory().await);
            storage.increment_usage("a", "b", 1).await.unwrap_err();
            storage.delete_config("a").await.unwrap_err();
            storage.set_config("a", json!(1)).await.unwrap_err();
            storage.get_config("a").await.unwrap_err();
            crate::Exportable::import(storage.backend(), &[]).await.unwrap_err();
            let plan =
                crate::plan::Plan::new([crate::plan::Mutation::delete(&Key::new("b").unwrap())]).unwrap();
            storage.apply_plan("a", &plan, &crate::plan::ApplyOptions::default()).await.unwrap_err();
            let counts =
                ["increment_usage", "delete_config", "set_config", "get_config", "import", "apply_plan"];
            assert_eq!(counts.map(|name| asked.of(name)), [1, 1, sets, 4, 1, 4]);
        }

        let (storage, asked) = around(Retry::new(), Fault::seeded(1).errors(1.0), memory().await);
        storage.increment_usage("a", "b", 1).await.unwrap_err();
        assert_eq!(asked.of("increment_usage"), 4, "it was not applied, so it may be repeated");

        let (storage, asked) = around(Retry::new(), Fault::seeded(1), memory().await);
        storage.get_config("a").await.unwrap_err();
        assert_eq!(asked.of("get_config"), 1, "NotFound is not retried");
    }

    /// A record that another handle deleted after the lost reply stays deleted, unless retries may overwrite.
    #[tokio::test(start_paused = true)]
    async fn a_lost_write_is_not_written_over_what_came_after_it() {
        for (retry, is_back) in [(Retry::new(), false), (Retry::new().overwriting(), true)] {
            let other = memory().await;
            let (storage, _) = around(retry, Fault::seeded(1).lost_replies(1.0), other.clone());
            let mut setting = Box::pin(storage.set_credential("alice", json!({ "token": "A" })));
            // It was applied, and its reply lost. It ends, or pauses before a retry.
            let ended = futures_util::poll!(&mut setting);
            other.delete_credential("alice").await.unwrap();
            let error = match ended {
                std::task::Poll::Ready(result) => result.unwrap_err(),
                std::task::Poll::Pending => setting.await.unwrap_err(),
            };
            assert_eq!(error.outcome(), Outcome::Unknown);
            assert_eq!(other.get_credential("alice").await.is_ok(), is_back);
        }
    }

    /// The failures of the next batches, by item.
    type Reports = Arc<Mutex<VecDeque<Vec<(usize, Error)>>>>;

    /// Counts in memory, fails the items that `reports` names, and records which items were requested.
    #[derive(Clone)]
    struct Partly {
        memory: Memory,
        reports: Reports,
        asked: Arc<Mutex<Vec<String>>>,
    }

    impl Backend for Partly {
        fn label(&self) -> &'static str {
            "partly"
        }

        fn set_deadline(&mut self, _: Duration) {}

        async fn health(&self) -> Result<()> {
            Ok(())
        }

        async fn stats(&self) -> Result<crate::StorageStats> {
            self.memory.stats().await
        }

        async fn close(&self) -> Result<()> {
            Ok(())
        }
    }

    impl UsageStore for Partly {
        async fn increment_usage(&self, _: &Key, _: &Key, _: i64) -> Result<i64> {
            Err(Error::new(ErrorKind::Unavailable, "down"))
        }

        async fn increment_many(&self, increments: &[Increment]) -> Result<Totals> {
            let names: Vec<_> = increments.iter().map(|increment| increment.key.as_str()).collect();
            self.asked.lock().unwrap().push(names.join(" "));
            let failures = self.reports.lock().unwrap().pop_front().unwrap_or_default();
            let mut totals = Totals::default();
            for (index, Increment { key, field, delta }) in increments.iter().enumerate() {
                let failure = failures.iter().find(|(at, _)| *at == index);
                let result = match failure {
                    Some((_, error)) => Err(error.clone()),
                    None => self.memory.increment_usage(key, field, *delta).await,
                };
                totals.record(key, result);
            }
            Ok(totals)
        }

        async fn increment_within(&self, _: &Key, _: &Key, _: i64, _: i64) -> Result<Within> {
            Err(Error::new(ErrorKind::Unavailable, "down"))
        }

        async fn get_usage(&self, key: &Key) -> Result<crate::UsageRecord> {
            self.memory.get_usage(key).await
        }

        async fn reset_usage(&self, key: &Key) -> Result<()> {
            self.memory.reset_usage(key).await
        }

        async fn list_usage(&self) -> Result<std::collections::BTreeMap<Key, crate::UsageRecord>> {
            self.memory.list_usage().await
        }
    }

    async fn partly(reports: impl IntoIterator<Item = Vec<(usize, Error)>>) -> Partly {
        let reports = Arc::new(Mutex::new(reports.into_iter().collect()));
        Partly { memory: memory().await.backend().clone(), reports, asked: Arc::default() }
    }

    fn increments(names: &str) -> Vec<Increment> {
        let key = |name: &str| Key::new(name).unwrap();
        names.split(' ').map(|name| Increment { key: key(name), field: key("n"), delta: 1 }).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn repeats_only_the_items_of_a_batch_that_are_safe() {
        let gone = || Error::new(ErrorKind::Unavailable, "gone");
        let lost = || gone().with_outcome(Outcome::Unknown);
        let bad = Error::new(ErrorKind::Overflow, "too much");
        let stack = || crate::layer::Stack::new().limit(crate::layer::Limit::new(1)).retry(Retry::new());
        // b fails, c may have been counted, d and f pass at the second and third attempt, e is lost at its
        // second.
        let reports = [
            vec![(1, bad), (2, lost()), (3, gone()), (4, gone()), (5, gone())],
            vec![(1, lost()), (2, gone())],
        ];
        let backend = partly(reports).await;
        let storage = Storage::new(backend.clone()).layer(stack());
        let report = storage.increment_many(&increments("a b c d e f")).await.unwrap();
        assert_eq!(*backend.asked.lock().unwrap(), ["a b c d e f", "d e f", "f"]);
        assert_eq!(report.totals, [Some(1), None, None, Some(1), None, Some(1)]);
        let failures: Vec<_> = report
            .failures
            .iter()
            .map(|failure| {
                (failure.index, failure.key.as_str(), failure.error.kind(), failure.error.outcome())
            })
            .collect();
        let expected = [
            (1, "b", ErrorKind::Overflow, Outcome::NotApplied),
            (2, "c", ErrorKind::Unavailable, Outcome::Unknown),
            (4, "e", ErrorKind::Unavailable, Outcome::Unknown),
        ];
        assert_eq!(failures, expected);
        assert_eq!(storage.list_usage().await.unwrap().len(), 3, "each was counted once");

        let backend = partly([vec![(0, lost())]]).await;
        let storage = Storage::new(backend.clone()).layer(Retry::new());
        assert_eq!(storage.increment_many(&increments("a b")).await.unwrap().failures.len(), 1);
        assert_eq!(*backend.asked.lock().unwrap(), ["a b"], "nothing to repeat");
    }

    /// An outage adds nothing to the budget, although each batch returns a report.
    #[tokio::test(start_paused = true)]
    async fn a_report_of_failures_earns_no_budget() {
        let down = || Error::new(ErrorKind::Unavailable, "down");
        let backend = partly((0..2_000).map(|_| vec![(0, down())])).await;
        let asked = Count::default();
        let storage = Storage::new(backend).layer(asked.clone()).layer(Retry::new().budget(10));
        for _ in 0..100 {
            storage.increment_usage("a", "b", 1).await.unwrap_err();
            let report = storage.increment_many(&increments("a b")).await.unwrap();
            assert!(!report.is_complete());
        }
        let tries = asked.of("increment_usage") + asked.of("increment_many");
        assert_eq!(tries, 200 + 10, "one per call, and the reserve");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_the_limit_refused_is_not_repeated() {
        let second = Duration::from_secs(1)..=Duration::from_secs(1);
        let slow = memory().await.layer(Fault::seeded(1).delays(1.0, second));
        let retry = Retry::new();
        let budget = retry.budget.clone();
        let stack = crate::layer::Stack::new().limit(crate::layer::Limit::new(1).queue(0)).retry(retry);
        let storage = slow.layer(stack);
        let (ran, shed) = tokio::join!(storage.set_config("a", json!(1)), async {
            let begun = Instant::now();
            let shed = storage.set_config("a", json!(2)).await;
            assert_eq!(begun.elapsed(), Duration::ZERO, "Busy, at once");
            shed
        });
        ran.unwrap();
        let shed = shed.unwrap_err();
        assert_eq!((shed.kind(), shed.outcome()), (ErrorKind::Busy, Outcome::NotApplied));
        assert!(!shed.is_retryable());
        assert_eq!(budget.halves.load(Ordering::Relaxed), budget.most, "nothing was spent");
    }

    #[tokio::test(start_paused = true)]
    async fn ends_at_the_deadline_or_with_the_last_error() {
        let refuse =
            Fault::seeded(1).errors(1.0).delays(1.0, Duration::from_secs(1)..=Duration::from_secs(1));
        let retry = Retry::new().tries(100);
        let (storage, asked) = around(retry, refuse, memory().await);
        let begun = Instant::now();
        let error = storage.with_deadline(Duration::from_secs(5)).get_config("a").await.unwrap_err();
        // The last attempt was refused, or the deadline came during it.
        assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error:?}");
        assert!(begun.elapsed() <= Duration::from_secs(5), "{:?}", begun.elapsed());
        assert!((4..=5).contains(&asked.of("get_config")), "{}", asked.of("get_config"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_outcome_covers_all_attempts() {
        let (mut undone, mut unknown) = (0, 0);
        for seed in 0..300 {
            let memory = memory().await;
            let fault = Fault::seeded(seed).lost_replies(0.4).errors(0.5);
            let (storage, _) = around(Retry::new().tries(3).overwriting(), fault, memory.clone());
            let result = storage.set_config("a", json!(1)).await;
            let is_stored = memory.get_config("a").await.is_ok();
            match result {
                Ok(()) => assert!(is_stored),
                Err(error) if error.outcome() == Outcome::NotApplied => {
                    assert!(!is_stored, "seed {seed}");
                    undone += 1;
                }
                Err(_) => unknown += 1,
            }
        }
        assert!(undone > 10 && unknown > 10, "{undone} {unknown}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_attempt_passes_the_deadline_or_loses_a_known_outcome() {
        let slow = || Fault::seeded(1).delays(1.0, SECOND * 4..=SECOND * 4);
        let (storage, asked) = around(Retry::new().tries(100), slow().errors(1.0), memory().await);
        let storage = storage.with_deadline(SECOND * 5);
        let begun = Instant::now();
        let error = storage.get_config("a").await.unwrap_err();
        assert!(begun.elapsed() > SECOND * 4 && begun.elapsed() <= SECOND * 5, "{:?}", begun.elapsed());
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied));
        assert_eq!(asked.of("get_config"), 2);

        let begun = Instant::now();
        let error = storage.set_config("a", json!(1)).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
        assert_eq!(begun.elapsed().as_secs(), 4);
        assert_eq!(asked.of("set_config"), 1, "a second attempt would time out and be Unknown");

        let lost = slow().lost_replies(1.0);
        let (storage, asked) = around(Retry::new().overwriting(), lost, memory().await);
        let error = storage.with_deadline(SECOND * 5).set_config("a", json!(1)).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown));
        assert_eq!(asked.of("set_config"), 2, "it is Unknown already");
    }

    /// Fails after a second, two, three, .. and records the time that each attempt had.
    #[derive(Clone, Default)]
    struct TimeLeft(Arc<Mutex<Vec<Duration>>>);

    impl Layer for TimeLeft {
        async fn around<R: Receiver, C: Call<R>>(&self, _: R, _: C) -> Result<C::Output> {
            let tries = {
                let mut times = self.0.lock().unwrap();
                times.push(time_left(DEFAULT_DEADLINE));
                times.len()
            };
            sleep(SECOND * u32::try_from(tries).unwrap()).await;
            Err(Error::new(ErrorKind::Unavailable, "gone"))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_attempt_sees_the_time_left() {
        let (times, pause) = (TimeLeft::default(), Duration::ZERO);
        let storage = memory().await.layer(times.clone()).layer(Retry::new().pauses(pause, pause));
        storage.with_deadline(SECOND * 8).increment_usage("a", "b", 1).await.unwrap_err();
        let left: Vec<_> = times.0.lock().unwrap().iter().map(Duration::as_millis).collect();
        assert_eq!(
            left,
            [10_000, 6_900, 4_900],
            "the first attempt has the backend's own deadline; a fourth would time out"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_budget_is_shared_spent_and_earned() {
        let (storage, asked) = around(Retry::new().budget(10), Fault::seeded(1).errors(1.0), memory().await);
        for _ in 0..100 {
            storage.clone().get_config("a").await.unwrap_err();
        }
        assert_eq!(asked.of("get_config"), 110, "one request per call, and ten retries");

        let budget = Budget::new(1);
        assert!(budget.withdraw() && !budget.withdraw());
        budget.deposit();
        assert!(!budget.withdraw(), "one success is half a retry");
        (0..10).for_each(|_| budget.deposit());
        assert!(budget.withdraw() && !budget.withdraw(), "never more than the reserve");
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_are_random() {
        let retry = Retry::new();
        for (attempts, longest) in [(1, 20), (2, 40), (3, 80), (7, 1_000), (100, 1_000)] {
            let longest = Duration::from_millis(longest);
            let pauses: Vec<_> = (0..1_000).map(|_| retry.pause(attempts)).collect();
            assert!(pauses.iter().all(|pause| *pause <= longest));
            assert!(pauses.iter().any(|pause| *pause < longest / 10), "full jitter");
            assert!(pauses.iter().any(|pause| *pause > longest / 10 * 9), "full jitter");
        }
    }
}
