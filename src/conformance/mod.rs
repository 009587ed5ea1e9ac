//! What every backend must do, as a test-kit: one function per capability, which asserts each bullet of its contract.
//!
//! The author of a backend, or of a layer, calls it from a test. The compiler picks the cases: a capability that the
//! backend does not have can't be named.
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
//! // Last: these close the storage, and see that it is.
//! conformance::backend(&storage).await;
//! conformance::closed::configs(&storage).await;
//! # Ok(()) }
//! ```
//!
//! Each function
//!
//! - needs a storage without records of its kind, which nobody else uses; says so if it has some; and leaves none,
//! - needs a Tokio runtime with time that is not paused; more than one thread finds more,
//! - panics at the first bullet that is violated, with its text, and what was seen,
//! - spawns every assertion, so that code generic over the backend is seen to be `Send`,
//! - ends: a bullet that takes longer than two minutes is a failure.
//!
//! Some of what it stores holds [`CANARY`]: a test that listens to logs, spans and metrics meanwhile sees what leaks.
//!
//! What types see to is not asserted: a returned value is the caller's own, a transaction is not used after its end.
//! What only the backend's author can stage is not either: a lost connection, a full disk, a crash.
//! [`restart`] needs a way to open the store again; [`export_snapshot`] is for those who promise it.

mod backend;
mod cache;
pub mod closed;
mod configs;
mod credentials;
mod documents;
mod export;
mod plans;
pub mod restart;
mod transactions;
mod usage;
mod values;

use std::{any::Any, fmt::Debug, future::poll_fn, pin::pin, task::Poll, time::Duration};

pub use backend::backend;
pub use cache::cache;
pub use configs::configs;
pub use credentials::credentials;
pub use export::{export, export_snapshot, export_usage};
use futures_util::StreamExt;
pub use plans::plans;
use tokio::{task::JoinSet, time};
pub use transactions::{transactions, transactions_at_close};
pub use usage::usage;
pub use values::{
    CANARY, hostile_credentials, hostile_keys, hostile_values, identical, identical_fields, identical_records,
};

use crate::{BatchFailure, BatchReport, Error, ErrorKind, Exportable, Key, Outcome, Record, Result, Storage};

/// How long the assertion of one bullet may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// How many tasks do the same thing at once.
const TASKS: usize = 64;

/// Runs what asserts one bullet of the contract as a task of its own, and panics with the bullet's text if it does or
/// if it never ends.
async fn must(bullet: impl AsRef<str>, assertion: impl Future<Output = ()> + Send + 'static) {
    let bullet = bullet.as_ref();
    let mut task = tokio::spawn(assertion);
    match time::timeout(PATIENCE, &mut task).await {
        Ok(Ok(())) => {}
        Ok(Err(end)) => match end.try_into_panic() {
            Ok(panic) => panic!("the contract is violated: {bullet}: {}", text(&*panic)),
            Err(end) => panic!("the contract is violated: {bullet}: {end}"),
        },
        Err(_) => {
            task.abort();
            panic!("the contract is violated: {bullet}: no end after {PATIENCE:?}");
        }
    }
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked")
}

/// The value, or a panic that says what did not succeed.
#[track_caller]
fn ok<T>(what: impl AsRef<str>, result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{} failed: {error:?}", what.as_ref()))
}

/// Panics unless the result is an error of this kind, which says that nothing was changed.
#[track_caller]
fn fails<T>(what: impl AsRef<str>, wanted: ErrorKind, result: Result<T>) {
    let what = what.as_ref();
    match result {
        Ok(_) => panic!("{what} is Ok and not {wanted}"),
        Err(error) => {
            assert!(error.kind() == wanted, "{what} is not {wanted} but {error:?}");
            assert!(error.outcome() == Outcome::NotApplied, "{what} is {wanted}, but its outcome is unknown");
            let text = format!("{error} {error:#} {error:?} {error:#?}");
            assert!(!CANARY.iter().any(|word| text.contains(word)), "{what}: the error tells what is stored");
        }
    }
}

/// The same for what is wrong with one record: the error has its key.
#[track_caller]
fn fails_about<T>(what: impl AsRef<str>, wanted: ErrorKind, key: &Key, result: Result<T>) {
    let what = what.as_ref();
    let named = result.as_ref().err().and_then(Error::key).cloned();
    fails(what, wanted, result);
    same(format!("{what}: the key of the error"), Some(key.as_str()), named.as_ref().map(Key::as_str));
}

/// Panics unless the failures are these, in this order, all of one kind.
#[track_caller]
fn fail_with(what: &str, wanted: ErrorKind, items: &[(usize, &Key)], failures: &[BatchFailure]) {
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
    assert!(report.succeeded == items, "{what}: {} of {items} are said to have succeeded", report.succeeded);
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

/// Panics unless the keys are these, in this order. Names them: a key does not print itself.
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
        let (lost, more) = (without(wanted, &found), without(&found, wanted));
        let problem =
            if lost.is_empty() && more.is_empty() { "not sorted, or named twice" } else { "not those" };
        panic!("{}: {problem}: {lost:?} are lost, {more:?} should not be there", what.as_ref());
    }
}

/// Two texts, or where they part if they are long.
fn difference(wanted: &str, found: &str) -> String {
    const SHOWN: usize = 200;
    let parts = wanted.chars().zip(found.chars()).take_while(|(wanted, found)| wanted == found).count();
    let shown =
        |text: &str| text.chars().skip(parts.saturating_sub(SHOWN / 4)).take(SHOWN).collect::<String>();
    format!("wanted {}, found {} (they part at character {parts})", shown(wanted), shown(found))
}

fn key(name: &str) -> Key {
    Key::new(name).expect("the kit's own keys are keys")
}

fn numbered(prefix: &str, count: usize) -> Vec<Key> {
    (0..count).map(|n| key(&format!("{prefix}{n:05}"))).collect()
}

fn sorted(mut keys: Vec<Key>) -> Vec<Key> {
    keys.sort_by(|left, right| left.as_str().as_bytes().cmp(right.as_str().as_bytes()));
    keys
}

/// The results of all, run as tasks at once.
async fn at_once<T: Send + 'static>(
    work: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let mut tasks: JoinSet<T> = work.into_iter().collect();
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

/// Polls a call so often, with a pause between, and drops it. Its result, if it came to that.
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

/// Gives a call that was dropped, or that timed out, the time to be applied after all.
async fn settle() {
    time::sleep(Duration::from_millis(300)).await;
}

/// Waits for what comes soon, for longer than a busy machine needs.
struct Patience(time::Instant);

impl Patience {
    fn new() -> Self {
        Self(time::Instant::now() + Duration::from_secs(20))
    }

    /// Says what is wrong if it has not come by now.
    #[track_caller]
    fn wait(&self, wrong: &str) -> impl Future<Output = ()> + use<> {
        assert!(time::Instant::now() < self.0, "{wrong}");
        time::sleep(Duration::from_millis(20))
    }
}

async fn records<B: Exportable>(storage: &Storage<B>) -> Vec<Record> {
    let items: Vec<Result<Record>> = storage.export().collect().await;
    items.into_iter().map(|item| ok("export", item)).collect()
}
