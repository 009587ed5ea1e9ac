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
mod fault;
mod instrument;
mod limit;
mod retry;
mod stack;
mod timeout;

use std::time::Duration;

pub use count::Count;
pub use fault::Fault;
use futures_core::Stream;
pub use instrument::{Instrument, POOL_INTERVAL};
pub use limit::Limit;
pub use retry::Retry;
pub use stack::Stack;
pub use timeout::Timeout;

use crate::{BatchFailure, BatchReport, Error, ErrorKind, Found, Result, StorageStats};

/// What is known of an operation when the program is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Operation {
    /// The method's name: `"get_credential"`, `"commit"`. Stable, and safe as a metric's attribute.
    pub name: &'static str,
    /// What the operation does to the data.
    pub kind: OperationKind,
    /// Whether doing it twice is the same as doing it once, in effect and in result.
    pub replayable: bool,
    /// Of the name, for tables by operation.
    hash: u32,
}

impl Operation {
    /// An operation. Only `#[capability]` needs this.
    #[doc(hidden)]
    #[must_use]
    pub const fn new(name: &'static str, kind: OperationKind, replayable: bool) -> Self {
        Self { name, kind, replayable, hash: fnv1a(name) }
    }

    /// Whether it does an application's work. Health, statistics, close and the pool's operations don't: an operator needs
    /// them most when all the others are slow or refused.
    #[must_use]
    pub const fn is_work(self) -> bool {
        !matches!(self.kind, OperationKind::Control) || !self.replayable
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

    /// Its name, kind, and whether it may be repeated.
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

/// What a batch gives, asked for a failure. Only `#[capability]` needs this: of a report the inherent method is found, of
/// anything else the trait's.
#[doc(hidden)]
pub struct Outcomes<'o, T>(pub &'o T);

fn first(failures: &[BatchFailure]) -> Option<&Error> {
    failures.iter().map(|failure| &failure.error).find(|error| error.kind() != ErrorKind::NotFound)
}

impl<'o> Outcomes<'o, BatchReport> {
    #[doc(hidden)]
    #[must_use]
    pub fn failure(&self) -> Option<&'o Error> {
        first(&self.0.failures)
    }
}

impl<'o> Outcomes<'o, Found> {
    #[doc(hidden)]
    #[must_use]
    pub fn failure(&self) -> Option<&'o Error> {
        first(&self.0.failures)
    }
}

#[doc(hidden)]
pub trait NoReport<'o> {
    fn failure(&self) -> Option<&'o Error>;
}

impl<'o, T> NoReport<'o> for Outcomes<'o, T> {
    fn failure(&self) -> Option<&'o Error> {
        None
    }
}
