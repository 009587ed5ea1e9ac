//! The contract of every capability as a test kit: one function per capability asserts each of its bullets.
//!
//! Authors of backends and layers call these functions from their tests. The compiler picks the cases: a
//! function does not compile for a backend that lacks its capability.
//!
//! ```
//! use gateway_storage::{Memory, Storage, conformance};
//!
//! # #[tokio::main] async fn main() -> gateway_storage::Result<()> {
//! let storage = Storage::<Memory>::open("memory:").await?;
//! conformance::configs(&storage).await;
//! conformance::credentials(&storage).await;
//! conformance::usage(&storage).await;
//!
//! // Last: the first of these closes the storage, and the other asserts that it is closed.
//! conformance::backend(&storage).await;
//! conformance::closed::configs(&storage).await;
//! # Ok(()) }
//! ```
//!
//! Each function
//!
//! - needs exclusive use of a storage without records of its kind, panics if it has some, and leaves none,
//! - needs a Tokio runtime whose time is not paused; a runtime with several threads finds more faults,
//! - panics at the first violated bullet, with the bullet's text and what was found,
//! - spawns every assertion, which proves that the backend's futures are `Send`,
//! - ends: a bullet that takes longer than two minutes is violated.
//!
//! Some keys are as long as the backend's [`max_key_bytes`](crate::Backend::max_key_bytes), which must be at
//! least 64.
//!
//! Some of the stored keys and values contain [`CANARY`]. A test that captures logs, spans and metrics during
//! the run can search them for these words and so find leaks.
//!
//! The kit does not assert what types guarantee: that a returned value is the caller's own, that a
//! transaction is not used after its end. Nor does it assert what only a backend's author can cause: a lost
//! connection, a full disk, a crash. [`restart`] needs a way to open the store again; [`export_snapshot`] is
//! for backends that promise snapshots.

mod backend;
mod batches;
mod budgets;
mod cache;
pub mod closed;
mod conditional;
mod configs;
mod credentials;
mod documents;
mod export;
mod leases;
mod plans;
pub mod restart;
mod streams;
mod transactions;
mod usage;
mod values;
mod watch;

use std::{any::Any, fmt::Debug, future::poll_fn, pin::pin, task::Poll, time::Duration};

pub use backend::backend;
pub use cache::cache;
pub use conditional::{conditional, conditional_import, conditional_plans, conditional_transactions};
pub use configs::configs;
pub use credentials::credentials;
pub use export::{export, export_snapshot, export_usage};
use futures_util::{FutureExt, StreamExt};
pub use leases::leases;
pub use plans::plans;
use tokio::{
    task::{JoinHandle, JoinSet},
    time,
};
pub use transactions::{transactions, transactions_at_close};
pub use usage::usage;
pub use values::{
    CANARY, hostile_credentials, hostile_keys, hostile_values, identical, identical_fields, identical_records,
};
pub use watch::{watch, watch_at_close, watch_conditional, watch_import, watch_plans, watch_transactions};

use crate::{
    BatchFailure, BatchReport, Error, ErrorKind, Exportable, Key, Outcome, Record, Result, Storage,
    model::Totals,
};

/// How long the assertion of one bullet may take.
const BULLET_TIMEOUT: Duration = Duration::from_secs(120);

/// The number of concurrent tasks in tests of concurrency.
const TASKS: usize = 64;

/// Asserts one bullet of the contract in a task of its own. Panics with the bullet's text if the assertion
/// panics or does not finish.
async fn must(bullet: impl AsRef<str>, assertion: impl Future<Output = ()> + Send + 'static) {
    ends_well(bullet.as_ref(), spawn(assertion)).await;
}

fn spawn(assertion: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    // Boxed, because a type of task for each assertion takes minutes to compile.
    tokio::spawn(assertion.boxed())
}

async fn ends_well(bullet: &str, mut task: JoinHandle<()>) {
    match time::timeout(BULLET_TIMEOUT, &mut task).await {
        Ok(Ok(())) => {}
        Ok(Err(end)) => match end.try_into_panic() {
            Ok(panic) => panic!("the contract is violated: {bullet}: {}", text(&*panic)),
            Err(end) => panic!("the contract is violated: {bullet}: {end}"),
        },
        Err(_) => {
            task.abort();
            panic!("the contract is violated: {bullet}: not finished after {BULLET_TIMEOUT:?}");
        }
    }
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked")
}

/// Unwraps the result; the panic names the operation that failed.
#[track_caller]
fn ok<T>(what: impl AsRef<str>, result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{} failed: {error:?}", what.as_ref()))
}

/// Panics unless the result is an error of this kind whose outcome is [`Outcome::NotApplied`].
#[track_caller]
fn fails<T>(what: impl AsRef<str>, wanted: ErrorKind, result: Result<T>) {
    let what = what.as_ref();
    match result {
        Ok(_) => panic!("{what} is Ok and not {wanted}"),
        Err(error) => {
            assert!(error.kind() == wanted, "{what} is not {wanted} but {error:?}");
            assert!(error.outcome() == Outcome::NotApplied, "{what} is {wanted}, but its outcome is unknown");
            let text = format!("{error} {error:#} {error:?} {error:#?}");
            assert!(!CANARY.iter().any(|word| text.contains(word)), "{what}: the error prints stored data");
        }
    }
}

/// Like [`fails`], for an operation on one record: the error must also have this key.
#[track_caller]
fn fails_about<T>(what: impl AsRef<str>, wanted: ErrorKind, key: &Key, result: Result<T>) {
    let what = what.as_ref();
    let named = result.as_ref().err().and_then(Error::key).cloned();
    fails(what, wanted, result);
    same(format!("{what}: the key of the error"), Some(key.as_str()), named.as_ref().map(Key::as_str));
}

/// Panics unless these items failed, in this order, each with an error of this kind that has the item's key.
#[track_caller]
fn same_failures(what: &str, wanted: ErrorKind, items: &[(usize, &Key)], failures: &[BatchFailure]) {
    let found: Vec<_> = failures.iter().map(|failure| (failure.index, failure.key.as_str())).collect();
    let items: Vec<_> = items.iter().map(|(index, key)| (*index, key.as_str())).collect();
    same(format!("{what}: the failures"), items, found);
    for failure in failures {
        assert!(failure.error.kind() == wanted, "{what}: a failure is not {wanted} but {:?}", failure.error);
        let (wanted, found) = (Some(failure.key.as_str()), failure.error.key().map(Key::as_str));
        same(format!("{what}: the key of a failure's error"), wanted, found);
    }
}

/// Panics unless all items of the batch succeeded.
#[track_caller]
fn complete(what: impl AsRef<str>, items: usize, report: Result<BatchReport>) {
    let (what, report) = (what.as_ref(), ok(&what, report));
    assert!(
        report.is_complete(),
        "{what}: {} of {items} failed: {:?}",
        report.failures.len(),
        report.failures
    );
    assert!(report.succeeded == items, "{what}: {} of {items} are reported as succeeded", report.succeeded);
}

/// Panics unless all items of the batch were counted, and returns the totals.
#[track_caller]
fn counted(what: impl AsRef<str>, items: usize, totals: Result<Totals>) -> Vec<i64> {
    let (what, totals) = (what.as_ref(), ok(&what, totals));
    assert!(
        totals.is_complete(),
        "{what}: {} of {items} failed: {:?}",
        totals.failures.len(),
        totals.failures
    );
    same(format!("{what}: the number of totals"), items, totals.totals.len());
    ok(what, totals.complete())
}

#[track_caller]
fn same<T: PartialEq + Debug>(what: impl AsRef<str>, wanted: T, found: T) {
    assert!(
        wanted == found,
        "{}: {}",
        what.as_ref(),
        difference(&format!("{wanted:?}"), &format!("{found:?}"))
    );
}

/// Panics unless the keys are these, in this order. The panic prints them, which `Debug` of a key does not.
#[track_caller]
fn same_keys(what: impl AsRef<str>, wanted: &[Key], found: impl IntoIterator<Item = Key>) {
    let found: Vec<Key> = found.into_iter().collect();
    if wanted != found {
        let without = |keys: &[Key], others: &[Key]| -> Vec<String> {
            keys.iter()
                .filter(|key| !others.contains(key))
                .take(5)
                .map(|key| key.as_str().to_owned())
                .collect()
        };
        let (missing, extra) = (without(wanted, &found), without(&found, wanted));
        let problem = if missing.is_empty() && extra.is_empty() { "not sorted or unique" } else { "differ" };
        panic!("{}: {problem}: missing {missing:?}, unexpected {extra:?}", what.as_ref());
    }
}

/// Both texts, or the parts around their first difference if they are long.
fn difference(wanted: &str, found: &str) -> String {
    const SHOWN: usize = 200;
    let equal = wanted.chars().zip(found.chars()).take_while(|(wanted, found)| wanted == found).count();
    let shown =
        |text: &str| text.chars().skip(equal.saturating_sub(SHOWN / 4)).take(SHOWN).collect::<String>();
    format!("wanted {}, found {} (first difference at character {equal})", shown(wanted), shown(found))
}

fn key(name: &str) -> Key {
    Key::new(name).expect("the kit's own keys are valid")
}

fn numbered(prefix: &str, count: usize) -> Vec<Key> {
    (0..count).map(|n| key(&format!("{prefix}{n:05}"))).collect()
}

fn sorted(mut keys: Vec<Key>) -> Vec<Key> {
    keys.sort_by(|left, right| left.as_str().as_bytes().cmp(right.as_str().as_bytes()));
    keys
}

/// Runs the futures as concurrent tasks and returns their results, in the order in which they end.
async fn concurrently<T: Send + 'static>(
    work: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let mut tasks: JoinSet<T> = work.into_iter().map(FutureExt::boxed).collect();
    let mut results = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(result) => results.push(result),
            Err(end) => match end.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(end) => panic!("{end}"),
            },
        }
    }
    results
}

/// The keys in up to 32 shares, for tasks that work on them at once.
fn shares(keys: &[Key]) -> impl Iterator<Item = Vec<Key>> {
    keys.chunks(keys.len().div_ceil(32).max(1)).map(<[Key]>::to_vec)
}

/// Polls a call this many times, with pauses between, then drops it. Returns its result if it finished.
async fn drop_after<T>(polls: u32, call: impl Future<Output = T>) -> Option<T> {
    let mut call = pin!(call);
    for _ in 0..polls {
        if let Poll::Ready(result) = poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await {
            return Some(result);
        }
        time::sleep(Duration::from_micros(200)).await;
    }
    None
}

/// Waits until a call that was dropped or timed out has been applied, if it still will be.
async fn settle() {
    time::sleep(Duration::from_millis(300)).await;
}

/// Limits a loop that waits for a state: 20 seconds, more than a busy machine needs.
struct WaitLimit(time::Instant);

impl WaitLimit {
    fn new() -> Self {
        Self(time::Instant::now() + Duration::from_secs(20))
    }

    /// Pauses before the next check. Panics with `violation` if the limit has passed.
    #[track_caller]
    fn pause(&self, violation: &str) -> impl Future<Output = ()> + use<> {
        assert!(time::Instant::now() < self.0, "{violation}");
        time::sleep(Duration::from_millis(20))
    }
}

async fn records<B: Exportable>(storage: &Storage<B>) -> Vec<Record> {
    let items: Vec<Result<Record>> = storage.export().collect().await;
    items.into_iter().map(|item| ok("export", item)).collect()
}
