//! Operations as values, and layers around them.
//!
//! Every operation of every capability is a [`Call`]: a small value that knows its name and how to run. A
//! [`Layer`] is written once and wraps every call. [`Layered`] puts a layer around a backend and has exactly
//! its capabilities; `#[capability]` generates the forwarding, also for new operations.
//!
//! The library's layers, in the order in which [`Stack`] puts them around a backend:
//!
//! | | |
//! |---|---|
//! | [`Instrument`] | spans, metrics, recent performance |
//! | [`Timeout`] | one deadline for everything inside |
//! | [`Retry`] | repeats failed calls where that is safe, within a budget |
//! | [`Limit`] | bounds the calls that run at once, and the queue |
//! | [`Count`], [`Fault`] | for tests: counts calls; injects faults |
//!
//! **The deadline** of a layer reaches everything inside: a layer that ends a call runs it [`within`] a time,
//! and a backend (or a layer that waits) asks for the [`time_left`] when a call begins. So the inner call
//! ends first, and the error comes from the code that knows whether a write was applied.
//!
//! A complete layer, which reports slow operations:
//!
//! ```
//! use std::time::{Duration, Instant};
//! use gateway_storage::{layer::{Call, Receiver, Layer}, Memory, Result, Storage};
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

mod backoff;
mod count;
mod deadline;
mod fault;
mod instrument;
mod limit;
mod retry;
mod stack;
mod timeout;

use std::{collections::BTreeMap, marker::PhantomData, mem, time::Duration};

pub(crate) use backoff::{Backoff, jittered};
pub use count::Count;
pub(crate) use deadline::later;
pub use deadline::{time_left, within};
pub use fault::Fault;
use futures_core::Stream;
pub(crate) use instrument::system_name;
pub use instrument::{Instrument, POOL_INTERVAL};
pub use limit::Limit;
pub use retry::Retry;
pub use stack::Stack;
pub use timeout::Timeout;

use crate::{
    BatchFailure, BatchReport, Error, ErrorKind, Found, Outcome, Result, StorageStats, model::Totals,
};

/// The compile-time facts about an operation, from its `#[operation(..)]` and its receiver.
///
/// Layers decide by these facts, not by the name, so they treat an application's operations like the
/// library's. [`Fault::on`] alone compares names, which the application gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Operation {
    /// The method's name, such as `"get_credential"` or `"commit"`. Stable, and safe as a metric's attribute.
    pub name: &'static str,
    /// What the operation does to the data.
    pub kind: OperationKind,
    /// The outcome of a call that timed out or whose reply was lost. [`NotApplied`](Outcome::NotApplied) for
    /// a read, for an operation marked `harmless`, and for a write in a transaction, because an uncommitted
    /// transaction has no effect. Otherwise [`Unknown`](Outcome::Unknown).
    pub when_lost: Outcome,
    /// Whether running it twice has the effect and result of running it once, whatever is written in between.
    /// True for reads and operations marked `harmless` or `replayable`, such as a plan under its key.
    pub replayable: bool,
    /// Whether running it twice has the effect of running it once, unless another caller writes in between:
    /// the second run overwrites that.
    pub overwrites: bool,
    /// Whether it is an operator's: health, statistics, `close`, the pool. Operators need these most when
    /// other operations are slow or refused, so they are not limited.
    pub operator: bool,
    /// Whether its success closes the store.
    pub closes: bool,
    /// Whether it is a stream that, read to its end, is a backup of the store.
    pub backup: bool,
    /// Whether it is a stream that ends only with an error: its reader drops it in the end.
    pub endless: bool,
    /// The hash of the name, for tables indexed by operation.
    hash: u32,
}

/// For `#[capability]`: one method per word of the attribute.
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
            endless: false,
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

    #[must_use]
    pub const fn endless(mut self) -> Self {
        self.endless = true;
        self
    }

    /// An operation on a transaction that does not end it.
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
    /// Reads data.
    Read,
    /// Changes data.
    Write,
    /// Does neither: health, statistics, begin and end of a transaction, close.
    Control,
}

/// An operation as a value: its name, and how to run it on a receiver.
///
/// `#[capability]` generates one per method. [`run`](Call::run) borrows the call, so a layer can repeat it.
pub trait Call<R>: Send + Sync {
    /// The result of a successful call.
    type Output: Send;

    /// The facts about the operation.
    const OPERATION: Operation;

    /// The number of items of a batch, or `None` for an operation that is not a batch.
    fn batch_size(&self) -> Option<usize> {
        None
    }

    /// A failure inside a successful result: the first one in a batch's report that is not
    /// [`NotFound`](crate::ErrorKind::NotFound).
    fn failure(output: &Self::Output) -> Option<&Error> {
        let _ = output;
        None
    }

    /// Runs the operation.
    fn run(&self, on: R) -> impl Future<Output = Result<Self::Output>> + Send;

    /// Passes each failure of a batch's report to `again`, which may change it. Returns the sorted indices of
    /// the items for which it returned true, for [`run_items`](Call::run_items); none if the batch cannot be
    /// divided.
    fn failed_items(output: &mut Self::Output, again: impl FnMut(&mut Error) -> bool) -> Vec<usize> {
        let _ = (output, again);
        Vec::new()
    }

    /// Runs a batch for the items with these indices only. Supported by operations whose batch is a slice.
    fn run_items(&self, on: R, items: &[usize]) -> impl Future<Output = Result<Self::Output>> + Send {
        let _ = (on, items);
        std::future::ready(Err(Error::new(ErrorKind::Unsupported, "this batch cannot be divided")))
    }

    /// Replaces the report's entries for these items by their new result.
    fn merge_items(report: &mut Self::Output, items: &[usize], result: Result<Self::Output>) {
        let _ = (report, items, result);
    }
}

/// A borrowed call is a call, so that a layer can pass it to another layer.
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

/// The receiver of an operation: `&B` (a backend), `&mut T` (a transaction), or [`Owned<T>`] (a transaction
/// that ends).
pub trait Receiver: Send + Sized {
    /// The same receiver for another attempt. `Some` only for a backend.
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

/// Middleware around every operation, written once. The [module's page](self) shows a complete one.
pub trait Layer: Clone + Send + Sync + 'static {
    /// Runs the call, with the layer's own work before and after. It may skip the call or, if the call is
    /// replayable and the receiver is available [again](Receiver::again), run it more than once.
    fn around<R: Receiver, C: Call<R>>(
        &self,
        on: R,
        call: C,
    ) -> impl Future<Output = Result<C::Output>> + Send;

    /// Wraps an operation that returns a stream. By default the stream passes through.
    fn around_stream<T: Send, S: Stream<Item = Result<T>> + Send>(
        &self,
        operation: Operation,
        items: S,
    ) -> impl Stream<Item = Result<T>> + Send {
        let _ = operation;
        items
    }

    /// Adds the layer's data to the store's statistics: see [`Backend::stats`](crate::Backend::stats).
    fn complete_stats(&self, stats: &mut StorageStats) {
        let _ = stats;
    }

    /// Sets how long calls on this handle may take: see
    /// [`Backend::set_deadline`](crate::Backend::set_deadline).
    fn set_deadline(&mut self, deadline: Duration) {
        let _ = deadline;
    }

    /// [`Storage::layer`](crate::Storage::layer) calls this with the [deadline](crate::Backend::deadline) of
    /// the handle. By default it calls [`set_deadline`](Layer::set_deadline). A layer with its own deadline
    /// ignores it, and a layer made of others passes it on to them.
    fn put_on(&mut self, deadline: Duration) {
        self.set_deadline(deadline);
    }
}

/// No layer, at no cost. For types that have a parameter for one.
impl Layer for () {
    #[inline]
    async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> Result<C::Output> {
        call.run(on).await
    }
}

/// A backend with a layer around it. It has exactly the capabilities of `B`.
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

/// A transaction with the layer of its storage around it.
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

    /// Splits into the layer and the transaction.
    #[inline]
    pub fn into_parts(self) -> (L, T) {
        (self.layer, self.inner)
    }
}

/// The failures in an operation's result, for `#[capability]`: method lookup finds the inherent functions for
/// a report, and those of [`NoReport`] for other types.
#[doc(hidden)]
pub struct Outcomes<T>(PhantomData<T>);

/// The common part of the reports.
pub(crate) trait Report: Sized {
    fn failures(&mut self) -> &mut Vec<BatchFailure>;

    /// Adds the successful items of the report on a part of the batch: the items with these indices.
    fn add_succeeded(&mut self, part: Self, items: &[usize]);

    /// Turns the report on the items with these indices into one on the whole batch of `len` items.
    fn spread(&mut self, items: &[usize], len: usize) {
        let _ = (items, len);
    }
}

impl Report for BatchReport {
    fn failures(&mut self) -> &mut Vec<BatchFailure> {
        &mut self.failures
    }

    fn add_succeeded(&mut self, part: Self, _: &[usize]) {
        self.succeeded += part.succeeded;
    }
}

impl<V> Report for Found<V> {
    fn failures(&mut self) -> &mut Vec<BatchFailure> {
        &mut self.failures
    }

    fn add_succeeded(&mut self, part: Self, _: &[usize]) {
        self.values.extend(part.values);
    }
}

impl Report for Totals {
    fn failures(&mut self) -> &mut Vec<BatchFailure> {
        &mut self.failures
    }

    fn add_succeeded(&mut self, part: Self, items: &[usize]) {
        for (total, item) in part.totals.into_iter().zip(items) {
            if let (Some(total), Some(place)) = (total, self.totals.get_mut(*item)) {
                *place = Some(total);
            }
        }
    }

    fn spread(&mut self, items: &[usize], len: usize) {
        let part = mem::replace(self, Self { totals: vec![None; len], ..Self::default() });
        self.failures = part.failures.clone();
        self.add_succeeded(part, items);
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

/// An item that an earlier attempt left Unknown stays Unknown, because a later attempt does not undo it.
fn merge_items<T: Report>(report: &mut T, items: &[usize], result: Result<T>) {
    let keep_unknown = |before: &Error, error: Error| match before.outcome() {
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
                    Some(error) => failure.error = keep_unknown(&failure.error, error),
                    None if is_repeated => return false,
                    None => {}
                }
                true
            });
            report.add_succeeded(part, items);
        }
        Err(error) => {
            for failure in report.failures() {
                if items.binary_search(&failure.index).is_ok() {
                    failure.error = keep_unknown(&failure.error, error.clone());
                }
            }
        }
    }
}

macro_rules! outcomes_of_reports {
    ($($report:ty $(, $value:ident)?;)*) => {$(
        #[doc(hidden)]
        impl$(<$value>)? Outcomes<$report> {
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

outcomes_of_reports!(BatchReport; Found<V>, V; Totals;);

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

    /// Layers decide by facts. Two compare names: the table of metrics, in which they are labels, and
    /// `Fault`, to which the application gives them.
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
        assert!(found.len() > 8, "the layers are in another folder");
        let compares = |code: &str| {
            let forms = ["name ==", "name !=", "match operation.name", "match C::OPERATION.name"];
            let is_code = |line: &&str| !line.trim_start().starts_with("//");
            let line = |line: &str| {
                forms.iter().any(|form| line.contains(form))
                    || line.contains("matches!(") && line.contains(".name")
            };
            code.lines().filter(is_code).filter(|text| line(text)).count()
        };
        for (file, code) in &found {
            let code = code.split("#[cfg(test)]").next().unwrap().split("#[cfg(all(test").next().unwrap();
            let allowed = usize::from(["fault.rs", "meters.rs"].contains(&file.as_str()));
            assert_eq!(compares(code), allowed, "{file} compares operations by name");
        }
        let wrong = "if C::OPERATION.name == \"close\" {\n// name == x\nmatches!(operation.name, \"commit\")";
        assert_eq!(compares(wrong), 2, "the test finds such comparisons");
    }
}
