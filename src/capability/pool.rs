//! [`Pooled`]: backends that hold connections.

use crate::{Backend, PoolStats, Result, capability};

/// Holds a pool of connections that can be watched and resized.
#[capability]
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no connection pool",
    note = "backends with one: `MongoDb`, `Postgres`, `Redis`; `File`, `Git` and `Memory` are in this process and have none"
)]
pub trait Pooled: Backend {
    /// Counts the pool's connections and the callers that wait for one.
    #[operation(control, harmless, operator)]
    fn pool_stats(&self) -> impl Future<Output = Result<PoolStats>> + Send;

    /// Sets the most connections that the pool may hold, from now on. No call fails for it.
    ///
    /// - Zero is [`InvalidValue`](crate::ErrorKind::InvalidValue).
    #[operation(control, overwrites, operator)]
    fn resize_pool(&self, max: u32) -> impl Future<Output = Result<()>> + Send;
}
