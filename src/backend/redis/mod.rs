//! [`Redis`]: one round trip per operation, over a few connections that all calls share.

mod address;
mod cache;
mod call;
mod cluster;
mod config;
mod connection;
mod credential;
mod dial;
mod error;
mod exchange;
mod export;
mod health;
mod layout;
mod legacy;
mod node;
mod options;
mod plan;
mod pool;
mod reply;
mod routing;
mod scan;
mod sentinel;
mod server;
mod slot;
mod stall;
mod stats;
mod target;
mod tls;
mod usage;
mod wait;

use std::{sync::Arc, time::Duration};

use layout::Layout;
pub use options::{RedisDurability, RedisOptions, RedisSentinel, RedisTls, RedisTopology};
use server::Server;

use crate::{Backend, Open, PoolStats, Pooled, Result, StorageStats, layer::time_left};

/// How many chunks of a batch run at once.
const CONCURRENT_CHUNKS: usize = 10;

/// A store on Redis, version 6 or later: for many processes at once, and the one that caches.
///
/// Open it with `redis://user:password@host:port/db`, or another URL or field of [`RedisOptions`]: one
/// server, a cluster or sentinels, over TCP, TLS or a Unix socket. It can do everything but transactions.
///
/// # How it works
///
/// An operation is one command, one pipeline or, for a batch, one MGET, MSET or pipeline a chunk. All calls
/// share a few multiplexed connections; no call owns one. A dead connection is noticed when it dies, not by a
/// PING before each use. A read whose connection is lost is sent once more; a write never is: when a
/// connection dies, every write in flight on it, of all callers, is [`Unknown`](crate::Outcome::Unknown).
///
/// A server that became a replica is noticed by the first write, by [`health`](Backend::health), and by ROLE,
/// which a connection in use is asked every 5 s: reads stay with it for no longer, and its sentinels, or its
/// name, say who is the master now. After a quiet time the first reads are answered before ROLE is.
///
/// # Where things are
///
/// | key | type | holds |
/// |---|---|---|
/// | `<prefix>cred:<id>` | string | a credential, as JSON |
/// | `<prefix>config` | hash | every config value by its key, as JSON |
/// | `<prefix>usage:<key>` | hash | the counters of one usage record |
/// | `<prefix>cache:<key>` | string | a cache value, which expires |
/// | `{<prefix>config}:plan:<key>` | hash | the record of a plan, which expires: what it replaced (`b<config key>`) and left (`a<config key>`) |
/// | `{<prefix>config}:audit` | stream | the audit of plans |
///
/// The braces put these two where the configuration is in a cluster. (If the prefix has a `{tag}` of its own
/// they are left out; if it has a stray `}`, a number in braces stands before it.)
///
/// Other keys are never touched. A config value that is not JSON and does not look like it (a bare word that
/// another program left) is read as a string. What can't be read is [`Corrupt`](crate::ErrorKind::Corrupt),
/// and the error has the record's key, if its name is one. A name that is no key fails lists and exports;
/// [`stats`](Backend::stats) counts those.
///
/// # What it promises and refuses
///
/// - `Ok` means what the server promises: with its default settings a crash can lose a second or more of
///   writes, and a server with `allkeys-*` eviction may drop credentials. [`stats`](Backend::stats) lists
///   such dangers as `warnings`.
/// - A batch is applied in chunks of 1000; a chunk of stored credentials is all or nothing, but in a cluster.
/// - A plan is one script, which holds the server up: some 0.1 s for the most mutations. A server that evicts
///   keys that expire (`volatile-*`) may forget a plan before its time.
/// - An export is not a snapshot: what changes meanwhile may be seen or not.
/// - A call that gets no connection is [`NotApplied`](crate::Outcome::NotApplied); a write that was sent and
///   has no answer is [`Unknown`](crate::Outcome::Unknown).
/// - With `wait_replicas`, a write that too few replicas have is an error although it is done: see
///   [`RedisOptions`].
/// - In a cluster, keys that are moved while they are listed may be missing from the list.
/// - Where a database holds millions of keys of others, lists look through all of them, and fail with
///   [`Timeout`](crate::ErrorKind::Timeout) if they don't come to the end in time: give the store a database
///   of its own.
/// - A server keeps commands that were slow in its SLOWLOG, with the first 128 bytes of what they wrote.
///   `stats` warns of that.
/// - Of two stores on one database neither's prefix may be the other's followed by one of the words above.
#[derive(Clone)]
pub struct Redis {
    server: Arc<Server>,
    layout: Arc<Layout>,
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
        "redis"
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
        self.server.close(time_left(self.deadline)).await
    }
}

impl Open for Redis {
    type Options = RedisOptions;

    /// Refuses a replica. Opens a server that is full or has too few replicas, and a cluster with one live
    /// master.
    async fn open(options: RedisOptions) -> Result<Self> {
        let redis = Self {
            layout: Arc::new(Layout::new(&options.prefix)),
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
    /// A connection is idle when no call waits for a reply on it, because calls share connections. For a
    /// cluster the sum over its masters.
    async fn pool_stats(&self) -> Result<PoolStats> {
        self.server.pool_stats()
    }

    /// Sets the maximum number of connections to each server. Open connections up to this number are kept.
    async fn resize_pool(&self, max: u32) -> Result<()> {
        // Keeps a store that is being closed from getting new connections afterwards.
        let _call = self.call()?;
        self.server.resize(max)
    }
}
