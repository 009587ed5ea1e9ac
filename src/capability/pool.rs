//! [`Pooled`]: backends with a connection pool.

use crate::{Backend, PoolStats, Result, capability};

/// Reports on the connection pool and resizes it.
#[capability(wrapper = PooledWrapper)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no connection pool",
    note = "backends with one: `MongoDb`, `Postgres`, `Redis`; `File`, `Git` and `Memory` are in this process and have none"
)]
pub trait Pooled: Backend {
    /// Counts the pool's connections and the callers that wait for one.
    #[operation(control, harmless, operator)]
    fn pool_stats(&self) -> impl Future<Output = Result<PoolStats>> + Send;

    /// Sets the maximum number of connections in the pool. No call fails because of it.
    ///
    /// - Zero is [`InvalidValue`](crate::ErrorKind::InvalidValue).
    #[operation(control, overwrites, operator)]
    fn resize_pool(&self, max: u32) -> impl Future<Output = Result<()>> + Send;
}
