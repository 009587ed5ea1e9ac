//! [`Redis`]: one round trip per operation, over a few connections that all calls share.

mod address;
mod cache;
mod call;
mod cluster;
mod conditional;
mod config;
mod connection;
mod credential;
mod dial;
mod error;
mod exchange;
mod exclusive;
mod export;
mod health;
mod keys;
mod layout;
mod lease;
mod legacy;
mod many;
mod node;
mod options;
mod plan;
mod pushed;
mod reply;
mod request;
mod routing;
mod scan;
mod sentinel;
mod server;
mod shared;
mod slot;
mod stats;
mod target;
mod tls;
mod tracking;
mod usage;
mod wait;
mod watch;
mod wide;
mod within;

use std::{sync::Arc, time::Duration};

use layout::Layout;
pub use options::{RedisDurability, RedisOptions, RedisSentinel, RedisTls, RedisTopology};
use server::Server;

use crate::{Backend, Open, PoolStats, Pooled, Result, StorageStats, backend::feed::Feed, layer::time_left};

const LABEL: &str = "redis";

/// How many chunks of a batch run at once.
const CONCURRENT_CHUNKS: usize = 10;

/// A store on Redis, version 6 or later, for many processes at once. It can hold cache values.
///
#[doc = include_str!("docs.md")]
#[derive(Clone)]
pub struct Redis {
    server: Arc<Server>,
    layout: Arc<Layout>,
    feed: Feed,
    /// The database's number.
    namespace: Arc<str>,
    deadline: Duration,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl Backend for Redis {
    fn label(&self) -> &'static str {
        LABEL
    }

    fn namespace(&self) -> Option<&str> {
        Some(&self.namespace)
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Sends a write that changes nothing to every server that owns data. It fails on a replica, on a server
    /// that is full, can't save or has too few replicas (its own setting, or `wait_replicas`), and for a user
    /// who may not write. For a cluster the error says how many slots are not served.
    async fn health(&self) -> Result<()> {
        self.check_health().await
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.collect_stats().await
    }

    async fn close(&self) -> Result<()> {
        self.feed.close();
        self.server.close(time_left(self.deadline)).await
    }
}

impl Open for Redis {
    type Options = RedisOptions;
    const SCHEMES: &'static [&'static str] = options::SCHEMES;

    /// Refuses a replica. Opens a server that is full or has too few replicas, and a cluster with one live
    /// master.
    async fn open(options: RedisOptions) -> Result<Self> {
        let redis = Self {
            layout: Arc::new(Layout::new(&options.prefix)),
            feed: Feed::new(LABEL),
            namespace: options.db.to_string().into(),
            deadline: options.deadline,
            server: Arc::new(Server::new(&options).await?),
        };
        redis.server.connect(options.deadline).await?;
        redis.check_open().await?;
        redis.check_durability(options.durability).await?;
        Ok(redis)
    }
}

impl Pooled for Redis {
    /// Counts the connections that calls share and those that one call has for itself. A shared one is idle
    /// when no call waits for a reply on it. For a cluster the sum over its masters.
    async fn pool_stats(&self) -> Result<PoolStats> {
        self.server.pool_stats()
    }

    /// Sets the maximum number of connections to each server that one call has for itself. Calls that use one
    /// finish on it.
    async fn resize_pool(&self, max: u32) -> Result<()> {
        // Keeps a store that is being closed from getting new connections afterwards.
        let _call = self.call()?;
        self.server.resize(max)
    }
}
