//! The server or the cluster behind all handles of a store.

use std::{sync::Arc, time::Duration};

use super::{
    RedisOptions, RedisTopology,
    address::Address,
    cluster::Cluster,
    connection::Settings,
    error::SERVER,
    node::{self, Node},
    options::check_connections,
    sentinel::Sentinels,
    target::Target,
    wide::WideReplies,
};
use crate::{
    PoolStats, Result,
    backend::remote::{Effect, ON_THIS_MACHINE, call, connection_timeout, gate::Gate},
};

pub(super) struct Server {
    pub(super) servers: Servers,
    settings: Arc<Settings>,
    /// The effect of a write that changes nothing: a read, unless writes must wait for replicas.
    pub(super) probe_effect: Effect,
    /// The calls in progress, which closing waits for.
    pub(super) calls: Gate,
    pub(super) wide_replies: WideReplies,
}

pub(super) enum Servers {
    /// One server, or the current master of a replicated one.
    One(Arc<Node>),
    Cluster(Arc<Cluster>),
}

const DEFAULT_PORT: u16 = 6379;
const DEFAULT_SENTINEL_PORT: u16 = 26_379;

impl Server {
    pub(super) async fn new(options: &RedisOptions) -> Result<Self> {
        options.check()?;
        let settings = Arc::new(Settings::new(options).await?);
        let one = |target| {
            Node::new(&settings, target, options, options.pool_size).map(|node| Servers::One(Arc::new(node)))
        };
        let servers = match &options.topology {
            RedisTopology::Single => one(Target::Server(Address::parse(&options.addr, DEFAULT_PORT)?))?,
            RedisTopology::Sentinel(sentinel) => {
                let addrs = Address::parse_list(&options.addr, DEFAULT_SENTINEL_PORT)?;
                one(Target::Master(Sentinels::new(addrs, sentinel)))?
            }
            RedisTopology::Cluster => {
                let seeds = Address::parse_list(&options.addr, DEFAULT_PORT)?;
                Servers::Cluster(Arc::new(Cluster::new(settings.clone(), seeds, options)))
            }
        };
        Ok(Self {
            servers,
            settings,
            probe_effect: if options.wait_replicas > 0 { Effect::Write } else { Effect::Read },
            calls: Gate::new(),
            wide_replies: WideReplies::new(),
        })
    }

    /// Finds the servers of a cluster, and starts to open the minimum number of connections to each server.
    pub(super) async fn connect(&self, timeout: Duration) -> Result<()> {
        if let Servers::Cluster(cluster) = &self.servers {
            let refreshed = tokio::time::timeout(timeout, cluster.refresh()).await;
            refreshed.map_err(|_| connection_timeout(SERVER))??;
        }
        self.nodes().iter().for_each(|node| node.shared.warm());
        Ok(())
    }

    /// Every server that owns data.
    pub(super) fn nodes(&self) -> Vec<Arc<Node>> {
        match &self.servers {
            Servers::One(node) => vec![node.clone()],
            Servers::Cluster(cluster) => cluster.masters(),
        }
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.servers, Servers::Cluster(_))
    }

    /// How connections are secured, for the statistics. The master of sentinels can be on any machine.
    pub(super) fn tls(&self) -> &'static str {
        let is_local = self.nodes().iter().all(|node| node.addr().is_some_and(Address::is_local));
        match (self.settings.tls.is_some(), is_local) {
            (true, _) => "verified",
            (false, true) => ON_THIS_MACHINE,
            (false, false) => "none",
        }
    }

    pub(super) fn pool_stats(&self) -> Result<PoolStats> {
        let _call = self.calls.enter()?;
        Ok(self.nodes().iter().map(|node| node.stats()).fold(PoolStats::default(), node::sum))
    }

    /// Sets the maximum number of exclusive connections to each server. Calls in progress finish on their
    /// connections.
    pub(super) fn resize(&self, max: u32) -> Result<()> {
        check_connections(max)?;
        match &self.servers {
            Servers::One(node) => node.resize(max),
            Servers::Cluster(cluster) => cluster.resize(max),
        }
    }

    /// Waits for the calls in progress, but not longer than the timeout, and disconnects.
    pub(super) async fn close(&self, timeout: Duration) -> Result<()> {
        // Also disconnects if this future is dropped.
        let _disconnect = Disconnect(&self.servers);
        self.calls.close_within(timeout).await
    }
}

/// A call of an operation.
pub(super) type Call<'s> = call::Call<'s, Server>;

/// Closes all connections when it is dropped.
struct Disconnect<'s>(&'s Servers);

impl Drop for Disconnect<'_> {
    fn drop(&mut self) {
        match self.0 {
            Servers::One(node) => node.close(),
            Servers::Cluster(cluster) => cluster.close(),
        }
    }
}
