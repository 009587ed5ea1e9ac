//! One server of the store.

use std::sync::Arc;

use super::{
    RedisOptions,
    connection::Settings,
    pool::{Pool, Sharing},
    target::Target,
    wait::Wait,
};
use crate::{PoolStats, Result, backend::remote::Effect};

/// The connections to one server.
pub(super) struct Node {
    pool: Pool,
    /// For writes that wait for replicas: WAIT blocks the requests behind it on its connection.
    wait: Option<(Wait, Pool)>,
}

impl Node {
    /// `max` is the maximum number of connections per pool.
    pub(super) fn new(
        settings: &Arc<Settings>,
        target: impl Fn() -> Target,
        options: &RedisOptions,
        max: u32,
    ) -> Result<Self> {
        let pool = |sharing| Pool::new(settings.clone(), target(), options, max, sharing);
        let wait = match Wait::new(options) {
            Some(wait) => Some((wait, pool(Sharing::Exclusive)?)),
            None => None,
        };
        Ok(Self { pool: pool(Sharing::Shared)?, wait })
    }

    /// The connections for requests with this effect, and whether these wait for replicas.
    pub(super) fn pool(&self, effect: Effect) -> (&Pool, Option<Wait>) {
        match (&self.wait, effect) {
            (Some((wait, pool)), Effect::Write) => (pool, Some(*wait)),
            _ => (&self.pool, None),
        }
    }

    fn pools(&self) -> impl Iterator<Item = &Pool> {
        std::iter::once(&self.pool).chain(self.wait.as_ref().map(|(_, pool)| pool))
    }

    pub(super) fn warm(&self) {
        self.pools().for_each(Pool::warm);
    }

    pub(super) fn resize(&self, max: u32) -> Result<()> {
        self.pools().try_for_each(|pool| pool.resize(max))
    }

    pub(super) fn close(&self) {
        self.pools().for_each(Pool::close);
    }

    pub(super) fn stats(&self) -> PoolStats {
        self.pools().map(Pool::stats).fold(PoolStats::default(), sum)
    }
}

pub(super) fn sum(left: PoolStats, right: PoolStats) -> PoolStats {
    PoolStats {
        max: left.max.saturating_add(right.max),
        open: left.open.saturating_add(right.open),
        idle: left.idle.saturating_add(right.idle),
        waiting: left.waiting.saturating_add(right.waiting),
    }
}
