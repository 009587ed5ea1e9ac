//! Operations as values, and what is put around them.
//!
//! Every operation of every capability is a [`Call`]: a small value that knows its name and how to run. A
//! [`Layer`] is written once, around any call there is or will be. [`Layered`] puts a layer on a backend and has
//! exactly the capabilities that the backend has; `#[capability]` generates its forwarding.
//!
//! The library's own, in the order in which [`Stack`] puts them around a backend:
//!
//! | | |
//! |---|---|
//! | [`Instrument`] | spans, metrics, recent performance |
//! | [`Timeout`] | one deadline for everything inside |
//! | [`Retry`] | another try, where it is harmless, within a budget |
//! | [`Limit`] | so many at once, so many in the queue |
//! | [`Count`], [`Fault`] | for tests: what was called; what goes wrong |
//!
//! **The deadline** of a layer is told to all that is inside: a layer that ends a call runs it [`within`] a time, and a backend (or a
//! layer that waits) asks for the [`time_left`] where a call begins. So what is inside ends a little before what is outside, and
//! the error is of the one who knows whether anything was done.
//!
//! A whole layer, which says what is slow:
//!
//! ```
//! use std::time::{Duration, Instant};
//! use gateway_storage::{Call, Layer, Memory, Receiver, Result, Storage};
//!
//! #[derive(Clone)]
//! struct LogSlow(Duration);
//!
//! impl Layer for LogSlow {
//!     async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> Result<C::Output> {
//!         let start = Instant::now();
//!         let result = call.run(on).await;
//!         if start.elapsed() > self.0 {
//!             eprintln!("{} took {:?}", C::OPERATION.name, start.elapsed());
//!         }
//!         result
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<()> {
//! let storage = Storage::<Memory>::open("memory:").await?.layer(LogSlow(Duration::from_millis(100)));
//! storage.set_config("retries", serde_json::json!(3)).await?;
//! # Ok(()) }
//! ```

mod count;
mod deadline;
mod fault;
mod instrument;
mod limit;
mod retry;
mod stack;
mod timeout;

use std::{collections::BTreeMap, marker::PhantomData, time::Duration};

pub use count::Count;
#[cfg(any(feature = "mongodb", feature = "postgres", feature = "redis"))]
pub(crate) use deadline::later;
pub use deadline::{time_left, within};
pub use fault::Fault;
use futures_core::Stream;
pub use instrument::{Instrument, POOL_INTERVAL};
pub use limit::Limit;
pub use retry::Retry;
pub use stack::Stack;
pub use timeout::Timeout;

use crate::{BatchFailure, BatchReport, Error, ErrorKind, Found, Outcome, Result, StorageStats};

/// What is known of an operation when the program is compiled: what its `#[operation(..)]` says, and its receiver.
///
/// Layers go by these facts and never by the name, so that a stranger's operations mean to them what the library's own do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Operation {
    /// The method's name: `"get_credential"`, `"commit"`. Stable, and safe as a metric's attribute.
    pub name: &'static str,
    /// What the operation does to the data.
    pub kind: OperationKind,
    /// What is known of it if it is late, or its reply is lost. [`NotApplied`](Outcome::NotApplied) of a read, of what is
    /// `harmless`, and of a write in a transaction, since a transaction that was not committed did not happen. Else
    /// [`Unknown`](Outcome::Unknown).
    pub when_lost: Outcome,
    /// Whether doing it twice is the same as doing it once, in effect and in result, whatever others write in between. So are reads,
    /// what is `harmless`, and what is marked `replayable`: a plan under its key.
    pub replayable: bool,
    /// Whether doing it twice is the same as doing it once, unless someone else writes in between: the second one overwrites that.
    pub overwrites: bool,
    /// Whether it is an operator's, and no application's work: health, statistics, `close`, the pool. He needs them most when all
    /// others are slow or refused, so they are not limited.
    pub operator: bool,
    /// Whether the store is closed when it succeeds.
    pub closes: bool,
    /// Whether it is a stream that, read to its end, is a backup of the store.
    pub backup: bool,
    /// Of the name, for tables by operation.
    hash: u32,
}

/// How `#[capability]` makes them, a word a method.
#[doc(hidden)]
impl Operation {
    #[must_use]
    pub const fn new(name: &'static str, kind: OperationKind) -> Self {
        let operation = Self {
            name,
            kind,
            when_lost: Outcome::Unknown,
            replayable: false,
            overwrites: false,
            operator: false,
            closes: false,
            backup: false,
            hash: fnv1a(name),
        };
        if matches!(kind, OperationKind::Read) { operation.harmless() } else { operation }
    }

    #[must_use]
    pub const fn harmless(mut self) -> Self {
        (self.when_lost, self.replayable) = (Outcome::NotApplied, true);
        self
    }

    #[must_use]
    pub const fn replayable(mut self) -> Self {
        self.replayable = true;
        self
    }

    #[must_use]
    pub const fn overwrites(mut self) -> Self {
        self.overwrites = true;
        self
    }

    #[must_use]
    pub const fn operator(mut self) -> Self {
        self.operator = true;
        self
    }

    #[must_use]
    pub const fn closes(mut self) -> Self {
        self.closes = true;
        self
    }

    #[must_use]
    pub const fn backup(mut self) -> Self {
        self.backup = true;
        self
    }

    /// A transaction's operation that does not end it.
    #[must_use]
    pub const fn in_transaction(mut self) -> Self {
        if matches!(self.kind, OperationKind::Write) {
            self.when_lost = Outcome::NotApplied;
        }
        self
    }
}

const fn fnv1a(text: &str) -> u32 {
    let (bytes, mut hash, mut at) = (text.as_bytes(), 0x811c_9dc5_u32, 0);
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    hash
}

/// What an operation does to the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OperationKind {
    /// Reads it.
    Read,
    /// Changes it.
    Write,
    /// Neither: health, statistics, begin and end of a transaction, close.
    Control,
}

/// An operation as a value: what it is called, and how to run it on a receiver.
///
/// `#[capability]` generates one for each method. [`run`](Call::run) borrows the call, so a layer may run it again.
pub trait Call<R>: Send + Sync {
    /// What the operation gives if it succeeds.
    type Output: Send;

    /// What is known of it.
    const OPERATION: Operation;

    /// How many items a batch has; `None` for an operation that is not a batch.
    fn batch_size(&self) -> Option<usize> {
        None
    }

    /// What went wrong although the operation succeeded: the first failure in a batch's report that is not
    /// [`NotFound`](crate::ErrorKind::NotFound).
    fn failure(output: &Self::Output) -> Option<&Error> {
        let _ = output;
        None
    }

    /// Runs the operation.
    fn run(&self, on: R) -> impl Future<Output = Result<Self::Output>> + Send;

    /// Shows each failure of a batch's report, which may be changed, and gives the places of those for which `again` says yes, sorted:
    /// for [`run_items`](Call::run_items). None of an operation that can't be run for some of its items.
    fn failed_items(output: &mut Self::Output, again: impl FnMut(&mut Error) -> bool) -> Vec<usize> {
        let _ = (output, again);
        Vec::new()
    }

    /// Runs a batch for these of its items only. An operation whose batch is a slice can.
    fn run_items(&self, on: R, items: &[usize]) -> impl Future<Output = Result<Self::Output>> + Send {
        let _ = (on, items);
        std::future::ready(Err(Error::new(ErrorKind::Unsupported, "this operation has no items")))
    }

    /// Puts what came of these items in place of what the report said of them.
    fn merge_items(report: &mut Self::Output, items: &[usize], result: Result<Self::Output>) {
        let _ = (report, items, result);
    }
}

/// A borrowed call is a call, so that a layer can give it to another one.
impl<R, C: Call<R>> Call<R> for &C {
    type Output = C::Output;
    const OPERATION: Operation = C::OPERATION;

    #[inline]
    fn batch_size(&self) -> Option<usize> {
        (**self).batch_size()
    }

    fn failure(output: &Self::Output) -> Option<&Error> {
        C::failure(output)
    }

    #[inline]
    fn run(&self, on: R) -> impl Future<Output = Result<Self::Output>> + Send {
        (**self).run(on)
    }

    fn failed_items(output: &mut Self::Output, again: impl FnMut(&mut Error) -> bool) -> Vec<usize> {
        C::failed_items(output, again)
    }

    fn run_items(&self, on: R, items: &[usize]) -> impl Future<Output = Result<Self::Output>> + Send {
        (**self).run_items(on, items)
    }

    fn merge_items(report: &mut Self::Output, items: &[usize], result: Result<Self::Output>) {
        C::merge_items(report, items, result);
    }
}

/// What an operation runs on: `&B` (a backend), `&mut T` (a transaction), or [`Owned<T>`] (a transaction that
/// ends).
pub trait Receiver: Send + Sized {
    /// The same receiver for another try, if there can be one: only a backend can be asked twice.
    fn again(&self) -> Option<Self>;
}

impl<B: Sync> Receiver for &B {
    #[inline]
    fn again(&self) -> Option<Self> {
        Some(self)
    }
}

impl<T: Send> Receiver for &mut T {
    #[inline]
    fn again(&self) -> Option<Self> {
        None
    }
}

/// A receiver that the operation consumes, as `commit` does.
#[derive(Debug)]
pub struct Owned<T>(pub T);

impl<T: Send> Receiver for Owned<T> {
    #[inline]
    fn again(&self) -> Option<Self> {
        None
    }
}

/// Middleware around every operation, written once. The [module's page](self) shows a whole one.
pub trait Layer: Clone + Send + Sync + 'static {
    /// Runs the call, and does its own work before and after. May run it not at all, or, if it is replayable and the
    /// receiver can be had [again](Receiver::again), more than once.
    fn around<R: Receiver, C: Call<R>>(
        &self,
        on: R,
        call: C,
    ) -> impl Future<Output = Result<C::Output>> + Send;

    /// Wraps an operation that gives a stream. Passes it through unless the layer says otherwise.
    fn around_stream<T: Send, S: Stream<Item = Result<T>> + Send>(
        &self,
        operation: Operation,
        items: S,
    ) -> impl Stream<Item = Result<T>> + Send {
        let _ = operation;
        items
    }

    /// Adds what the layer knows to the store's statistics: see [`Backend::stats`](crate::Backend::stats).
    fn complete_stats(&self, stats: &mut StorageStats) {
        let _ = stats;
    }

    /// Is told that calls on this handle may take so long: see [`Backend::set_deadline`](crate::Backend::set_deadline).
    fn set_deadline(&mut self, deadline: Duration) {
        let _ = deadline;
    }

    /// Is told, when [`Storage::layer`](crate::Storage::layer) puts it on, how long calls on the handle
    /// [may take](crate::Backend::deadline). The same as [`set_deadline`](Layer::set_deadline), but for a layer that was given a number of its own,
    /// which it keeps. A layer that consists of others tells them.
    fn put_on(&mut self, deadline: Duration) {
        self.set_deadline(deadline);
    }
}

/// No layer: costs nothing. For types that have a place for one.
impl Layer for () {
    #[inline]
    async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> Result<C::Output> {
        call.run(on).await
    }
}

/// A backend with a layer around it: implements exactly the capabilities that `B` has.
#[derive(Clone, Debug)]
pub struct Layered<L, B> {
    layer: L,
    inner: B,
}

impl<L, B> Layered<L, B> {
    /// Puts the layer around the backend.
    #[must_use]
    pub const fn new(layer: L, inner: B) -> Self {
        Self { layer, inner }
    }

    /// The layer.
    #[inline]
    pub const fn layer(&self) -> &L {
        &self.layer
    }

    /// The layer, to change its settings.
    #[inline]
    pub const fn layer_mut(&mut self) -> &mut L {
        &mut self.layer
    }

    /// The backend inside.
    #[inline]
    pub const fn inner(&self) -> &B {
        &self.inner
    }

    /// The backend inside, to change its settings.
    #[inline]
    pub const fn inner_mut(&mut self) -> &mut B {
        &mut self.inner
    }
}

/// A transaction with its storage's layer around it.
#[derive(Debug)]
pub struct LayeredTransaction<L, T> {
    layer: L,
    inner: T,
}

impl<L, T> LayeredTransaction<L, T> {
    /// Puts the layer around the transaction.
    #[must_use]
    pub const fn new(layer: L, inner: T) -> Self {
        Self { layer, inner }
    }

    /// The layer and the transaction inside.
    #[inline]
    pub const fn parts(&mut self) -> (&L, &mut T) {
        (&self.layer, &mut self.inner)
    }

    /// The layer and the transaction, taken apart.
    #[inline]
    pub fn into_parts(self) -> (L, T) {
        (self.layer, self.inner)
    }
}

/// What a batch gives, asked for its failures. Only `#[capability]` needs this: of a report the inherent functions are found, of
/// anything else the trait's.
#[doc(hidden)]
pub struct Outcomes<T>(PhantomData<T>);

/// What reports have in common.
trait Report: Sized {
    fn failures(&mut self) -> &mut Vec<BatchFailure>;

    /// Adds what another one says of items that succeeded.
    fn add_succeeded(&mut self, part: Self);
}

impl Report for BatchReport {
    fn failures(&mut self) -> &mut Vec<BatchFailure> {
        &mut self.failures
    }

    fn add_succeeded(&mut self, part: Self) {
        self.succeeded += part.succeeded;
    }
}

impl Report for Found {
    fn failures(&mut self) -> &mut Vec<BatchFailure> {
        &mut self.failures
    }

    fn add_succeeded(&mut self, part: Self) {
        self.credentials.extend(part.credentials);
    }
}

fn first(failures: &[BatchFailure]) -> Option<&Error> {
    failures.iter().map(|failure| &failure.error).find(|error| error.kind() != ErrorKind::NotFound)
}

fn failed_items(report: &mut impl Report, mut again: impl FnMut(&mut Error) -> bool) -> Vec<usize> {
    let failures = report.failures().iter_mut();
    let mut items: Vec<_> =
        failures.filter_map(|failure| again(&mut failure.error).then_some(failure.index)).collect();
    items.sort_unstable();
    items
}

/// What an earlier try may have done to an item, a later one does not undo: its outcome stays Unknown.
fn merge_items<T: Report>(report: &mut T, items: &[usize], result: Result<T>) {
    let told = |before: &Error, error: Error| match before.outcome() {
        Outcome::Unknown => error.with_outcome(Outcome::Unknown),
        Outcome::NotApplied => error,
    };
    match result {
        Ok(mut part) => {
            let mut failed: BTreeMap<usize, Error> =
                part.failures().drain(..).map(|failure| (items[failure.index], failure.error)).collect();
            report.failures().retain_mut(|failure| {
                let is_repeated = items.binary_search(&failure.index).is_ok();
                match failed.remove(&failure.index) {
                    Some(error) => failure.error = told(&failure.error, error),
                    None if is_repeated => return false,
                    None => {}
                }
                true
            });
            report.add_succeeded(part);
        }
        Err(error) => {
            for failure in report.failures() {
                if items.binary_search(&failure.index).is_ok() {
                    failure.error = told(&failure.error, error.clone());
                }
            }
        }
    }
}

macro_rules! outcomes_of_reports {
    ($($report:ty),*) => {$(
        #[doc(hidden)]
        impl Outcomes<$report> {
            #[must_use]
            pub fn failure(output: &$report) -> Option<&Error> {
                first(&output.failures)
            }

            pub fn failed_items(output: &mut $report, again: impl FnMut(&mut Error) -> bool) -> Vec<usize> {
                failed_items(output, again)
            }

            pub fn merge_items(output: &mut $report, items: &[usize], result: Result<$report>) {
                merge_items(output, items, result);
            }
        }
    )*};
}

outcomes_of_reports!(BatchReport, Found);

#[doc(hidden)]
pub trait NoReport<T> {
    #[must_use]
    fn failure(_: &T) -> Option<&Error> {
        None
    }

    fn failed_items(_: &mut T, _: impl FnMut(&mut Error) -> bool) -> Vec<usize> {
        Vec::new()
    }

    fn merge_items(_: &mut T, _: &[usize], _: Result<T>) {}
}

impl<T> NoReport<T> for Outcomes<T> {}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// A stranger's operations mean to layers what the library's do: they go by facts. Only the metrics' table looks for a name, which
    /// is a label there.
    #[test]
    fn no_layer_compares_names() {
        fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
            for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
                match entry.file_type().unwrap().is_dir() {
                    true => sources(&entry.path(), found),
                    false => {
                        let name = entry.file_name().into_string().unwrap();
                        found.push((name, fs::read_to_string(entry.path()).unwrap()));
                    }
                }
            }
        }
        let mut found = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/layer"), &mut found);
        assert!(found.len() > 8, "the layers are elsewhere");
        let compares = |code: &str| {
            let forms = ["name ==", "name !=", "match operation.name", "match C::OPERATION.name"];
            let spoken = |line: &&str| !line.trim_start().starts_with("//");
            let line = |line: &str| {
                forms.iter().any(|form| line.contains(form))
                    || line.contains("matches!(") && line.contains(".name")
            };
            code.lines().filter(spoken).filter(|text| line(text)).count()
        };
        for (file, code) in &found {
            let code = code.split("#[cfg(test)]").next().unwrap().split("#[cfg(all(test").next().unwrap();
            let allowed = usize::from(file == "meters.rs");
            assert_eq!(compares(code), allowed, "{file} compares names of operations");
        }
        let wrong = "if C::OPERATION.name == \"close\" {\n// name == x\nmatches!(operation.name, \"commit\")";
        assert_eq!(compares(wrong), 2, "the test sees what it forbids");
    }
}
