//! Connections, counted and resized.

use super::Redis;
use crate::{PoolStats, Pooled, Result};

impl Pooled for Redis {
    /// Calls share connections, so one is idle as long as there are fewer calls than connections.
    async fn pool_stats(&self) -> Result<PoolStats> {
        let pool = self.server.pool()?;
        let state = pool.state();
        let busy = u32::try_from(self.server.calls_under_way()).unwrap_or(u32::MAX);
        Ok(PoolStats {
            max: pool.config().max_size,
            open: state.connections,
            idle: state.connections.saturating_sub(busy),
            waiting: u32::try_from(self.server.calls_that_wait()).unwrap_or(u32::MAX),
        })
    }

    async fn resize_pool(&self, max: u32) -> Result<()> {
        // Held, so that a store which is being closed does not get a new pool afterwards.
        let _call = self.call()?;
        self.server.resize(max)
    }
}
