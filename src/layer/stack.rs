//! [`Stack`]: the library's layers in their right order.

use std::time::Duration;

use futures_core::Stream;

use crate::{
    Backend, Error, Pooled, Result, StorageStats,
    layer::{Call, Instrument, Layer, Limit, Operation, POOL_INTERVAL, Receiver, Retry, Timeout},
};

/// The library's layers, always in their right order: instrument(timeout(retry(limit(backend)))).
///
/// In this order spans and metrics report what the caller saw, and the deadline covers all attempts and
/// pauses. Each attempt waits for a permit of its own, and the limit bounds the requests that reach the
/// server. A layer that is left out costs nothing.
///
/// ```
/// use std::time::Duration;
/// use gateway_storage::{layer::{Limit, Retry, Timeout, Stack}, Memory, Storage};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
/// let storage = Storage::<Memory>::open("memory:").await?;
/// let stack = Stack::new()
///     .limit(Limit::new(64))
///     .retry(Retry::new())
///     .timeout(Timeout::new(Duration::from_secs(5)))
///     .instrument(storage.backend());
/// let storage = storage.layer(stack);
/// # storage.health().await
/// # }
/// ```
///
/// The full type is `Storage<Layered<Stack, Memory>>`; a layer that is left out is `()` in it. Layers of your
/// own go around the stack or inside it with [`Storage::layer`](crate::Storage::layer).
#[derive(Clone, Debug)]
pub struct Stack<I = Instrument, T = Timeout, R = Retry, L = Limit> {
    instrument: I,
    timeout: T,
    retry: R,
    limit: L,
}

impl Stack<(), (), (), ()> {
    /// No layers yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { instrument: (), timeout: (), retry: (), limit: () }
    }
}

impl Default for Stack<(), (), (), ()> {
    fn default() -> Self {
        Self::new()
    }
}

impl<I, T, R, L> Stack<I, T, R, L> {
    /// Outermost layer: spans and metrics of this backend's operations. See [`Instrument::new`].
    #[must_use]
    pub fn instrument(self, backend: &impl Backend) -> Stack<Instrument, T, R, L> {
        self.instrument_with(Instrument::new(backend))
    }

    /// As [`instrument`](Stack::instrument), and updates the pool's gauges every [`POOL_INTERVAL`]: see
    /// [`Instrument::sample_pool`].
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime.
    #[must_use]
    pub fn instrument_pool(self, backend: &impl Pooled) -> Stack<Instrument, T, R, L> {
        self.instrument_with(Instrument::new(backend).sample_pool(backend, POOL_INTERVAL))
    }

    /// Outermost layer: spans and metrics, from an existing [`Instrument`].
    #[must_use]
    pub fn instrument_with(self, instrument: Instrument) -> Stack<Instrument, T, R, L> {
        let Self { timeout, retry, limit, .. } = self;
        Stack { instrument, timeout, retry, limit }
    }

    /// Around the retries: one deadline for all attempts.
    #[must_use]
    pub fn timeout(self, timeout: Timeout) -> Stack<I, Timeout, R, L> {
        let Self { instrument, retry, limit, .. } = self;
        Stack { instrument, timeout, retry, limit }
    }

    /// Around the limit: each attempt waits for its own permit.
    #[must_use]
    pub fn retry(self, retry: Retry) -> Stack<I, T, Retry, L> {
        let Self { instrument, timeout, limit, .. } = self;
        Stack { instrument, timeout, retry, limit }
    }

    /// Innermost layer: bounds the calls that reach the backend.
    #[must_use]
    pub fn limit(self, limit: Limit) -> Stack<I, T, R, Limit> {
        let Self { instrument, timeout, retry, .. } = self;
        Stack { instrument, timeout, retry, limit }
    }
}

/// A call with a layer around it, as a call.
struct Within<'l, L, C> {
    layer: &'l L,
    call: C,
}

impl<Rc: Receiver, L: Layer, C: Call<Rc>> Call<Rc> for Within<'_, L, C> {
    type Output = C::Output;
    const OPERATION: Operation = C::OPERATION;

    #[inline]
    fn batch_size(&self) -> Option<usize> {
        self.call.batch_size()
    }

    fn failure(output: &C::Output) -> Option<&Error> {
        C::failure(output)
    }

    #[inline]
    async fn run(&self, on: Rc) -> Result<C::Output> {
        self.layer.around(on, &self.call).await
    }

    fn failed_items(output: &mut C::Output, again: impl FnMut(&mut Error) -> bool) -> Vec<usize> {
        C::failed_items(output, again)
    }

    async fn run_items(&self, on: Rc, items: &[usize]) -> Result<C::Output> {
        self.layer.around(on, Part { call: &self.call, items }).await
    }

    fn merge_items(report: &mut C::Output, items: &[usize], result: Result<C::Output>) {
        C::merge_items(report, items, result);
    }
}

/// A batch, restricted to some of its items.
struct Part<'c, C> {
    call: &'c C,
    items: &'c [usize],
}

impl<Rc: Receiver, C: Call<Rc>> Call<Rc> for Part<'_, C> {
    type Output = C::Output;
    const OPERATION: Operation = C::OPERATION;

    fn batch_size(&self) -> Option<usize> {
        Some(self.items.len())
    }

    fn failure(output: &C::Output) -> Option<&Error> {
        C::failure(output)
    }

    fn run(&self, on: Rc) -> impl Future<Output = Result<C::Output>> + Send {
        self.call.run_items(on, self.items)
    }
}

impl<I: Layer, T: Layer, R: Layer, L: Layer> Layer for Stack<I, T, R, L> {
    #[inline]
    async fn around<Rc: Receiver, C: Call<Rc>>(&self, on: Rc, call: C) -> Result<C::Output> {
        let call = Within { layer: &self.limit, call };
        let call = Within { layer: &self.retry, call };
        let call = Within { layer: &self.timeout, call };
        self.instrument.around(on, call).await
    }

    fn around_stream<O: Send, S: Stream<Item = Result<O>> + Send>(
        &self,
        operation: Operation,
        items: S,
    ) -> impl Stream<Item = Result<O>> + Send {
        let items = self.limit.around_stream(operation, items);
        let items = self.retry.around_stream(operation, items);
        let items = self.timeout.around_stream(operation, items);
        self.instrument.around_stream(operation, items)
    }

    fn complete_stats(&self, stats: &mut StorageStats) {
        self.limit.complete_stats(stats);
        self.retry.complete_stats(stats);
        self.timeout.complete_stats(stats);
        self.instrument.complete_stats(stats);
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.limit.set_deadline(deadline);
        self.retry.set_deadline(deadline);
        self.timeout.set_deadline(deadline);
        self.instrument.set_deadline(deadline);
    }

    fn put_on(&mut self, deadline: Duration) {
        self.limit.put_on(deadline);
        self.retry.put_on(deadline);
        self.timeout.put_on(deadline);
        self.instrument.put_on(deadline);
    }
}

#[cfg(test)]
mod tests {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    use super::*;
    use crate::{PoolStats, Storage};

    /// A backend with a pool of 7 connections.
    #[derive(Clone)]
    struct Pool;

    impl Backend for Pool {
        fn label(&self) -> &'static str {
            "pool"
        }

        fn set_deadline(&mut self, _: Duration) {}

        async fn health(&self) -> Result<()> {
            Ok(())
        }

        async fn stats(&self) -> Result<StorageStats> {
            Ok(StorageStats::new("pool"))
        }

        async fn close(&self) -> Result<()> {
            Ok(())
        }
    }

    impl Pooled for Pool {
        async fn pool_stats(&self) -> Result<PoolStats> {
            Ok(PoolStats { max: 7, ..PoolStats::default() })
        }

        async fn resize_pool(&self, _: u32) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stack_reports_the_pool_until_the_store_is_closed() {
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        let max = || {
            let metrics = snapshotter.snapshot().into_vec().into_iter();
            let named = metrics.filter(|(key, ..)| key.key().name() == "db.client.connection.max");
            let values = named.map(|(_, _, _, value)| match value {
                DebugValue::Gauge(value) => value.into_inner(),
                other => panic!("{other:?}"),
            });
            values.collect::<Vec<_>>()
        };
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        metrics::with_local_recorder(&recorder, || {
            runtime.block_on(async {
                let storage = Storage::new(Pool);
                let stack = Stack::new().retry(Retry::new()).instrument_pool(storage.backend());
                let storage = storage.layer(stack);
                tokio::time::sleep(POOL_INTERVAL / 2).await;
                assert_eq!(max(), [7.0]);
                storage.close().await.unwrap();
                tokio::time::sleep(POOL_INTERVAL / 2).await;
                assert_eq!(max(), [0.0]);
            });
        });
    }
}
