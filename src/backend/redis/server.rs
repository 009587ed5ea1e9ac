//! The server, or the servers, behind all handles of a store, and requests to them.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use redis::{
    Cmd, Pipeline, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tokio::time::{Instant, timeout_at};

use super::{
    Redis, RedisConfig, RedisTopology,
    cluster::{self, Cluster, REDIRECTS},
    connection::{Address, Lease, Settings, Target},
    failure,
    gate::{Entry, Gate},
    node::{self, Envelope, Node, Wait},
    pool::{Pool, STALL},
    reply,
    sentinel::Sentinels,
};
use crate::{Error, ErrorKind, Outcome, PoolStats, Result};

pub(super) struct Server {
    servers: Servers,
    settings: Arc<Settings>,
    read_timeout: Duration,
    wait: Option<Wait>,
    /// The calls under way, which closing waits for.
    calls: Gate,
}

/// Where the data is.
enum Servers {
    /// On one server, or on the master of several that hold the same.
    One(Arc<Node>),
    /// Spread over several.
    Cluster(Arc<Cluster>),
}

const DEFAULT_PORT: u16 = 6379;
const DEFAULT_SENTINEL_PORT: u16 = 26_379;

/// Whether a request may change something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Read,
    Write,
}

impl Effect {
    /// What is known of a request that was sent and has no answer.
    pub(super) const fn when_lost(self) -> Outcome {
        match self {
            Self::Read => Outcome::NotApplied,
            Self::Write => Outcome::Unknown,
        }
    }
}

impl Server {
    pub(super) fn new(config: &RedisConfig) -> Result<Self> {
        let settings = Arc::new(Settings::new(config)?);
        let one = |target: &dyn Fn() -> Target| {
            Node::new(&settings, target, config, config.pool_size).map(|node| Servers::One(Arc::new(node)))
        };
        let servers = match &config.topology {
            RedisTopology::Single => {
                let addr = Address::parse(&config.addr, DEFAULT_PORT)?;
                one(&|| Target::Server(addr.clone()))?
            }
            RedisTopology::Sentinel(sentinel) => {
                let addrs = Address::parse_list(&config.addr, DEFAULT_SENTINEL_PORT)?;
                one(&|| Target::Master(Sentinels::new(addrs.clone(), sentinel)))?
            }
            RedisTopology::Cluster if config.db != 0 => {
                return Err(Error::new(ErrorKind::InvalidValue, "a Redis cluster has only database 0"));
            }
            RedisTopology::Cluster => {
                let seeds = Address::parse_list(&config.addr, DEFAULT_PORT)?;
                Servers::Cluster(Arc::new(Cluster::new(settings.clone(), seeds, config)))
            }
        };
        Ok(Self {
            servers,
            settings,
            read_timeout: config.read_timeout,
            wait: Wait::new(config),
            calls: Gate::new(),
        })
    }

    /// Finds the servers of a cluster, and opens the least number of connections to each.
    pub(super) async fn begin(&self, deadline: Duration) -> Result<()> {
        match &self.servers {
            Servers::One(node) => node.warm(),
            Servers::Cluster(cluster) => {
                tokio::time::timeout(deadline, cluster.learn()).await.map_err(|_| no_connection())??;
                cluster.warm();
            }
        }
        Ok(())
    }

    /// Every server that owns data, with its name in a cluster.
    pub(super) fn nodes(&self) -> Vec<(Option<Address>, Arc<Node>)> {
        match &self.servers {
            Servers::One(node) => vec![(None, node.clone())],
            Servers::Cluster(cluster) => {
                cluster.masters().into_iter().map(|(addr, node)| (Some(addr), node)).collect()
            }
        }
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.servers, Servers::Cluster(_))
    }

    pub(super) fn uses_tls(&self) -> bool {
        self.settings.uses_tls()
    }

    pub(super) fn pool_stats(&self) -> Result<PoolStats> {
        if self.calls.is_closed() {
            return Err(Error::closed());
        }
        Ok(self.nodes().iter().map(|(_, node)| node.stats()).fold(PoolStats::default(), node::sum))
    }

    /// Sets the most connections to each server. Calls under way finish on the connections that they have.
    pub(super) fn resize(&self, max: u32) -> Result<()> {
        match &self.servers {
            Servers::One(node) => node.resize(max),
            Servers::Cluster(cluster) => cluster.resize(max),
        }
    }

    /// Waits until the calls under way are done, then disconnects. After the deadline it does not wait for them.
    pub(super) async fn close(&self, deadline: Duration) -> Result<()> {
        let all = tokio::time::timeout(deadline, self.calls.close()).await;
        match &self.servers {
            Servers::One(node) => node.close(),
            Servers::Cluster(cluster) => cluster.close(),
        }
        match all {
            Ok(()) => Ok(()),
            Err(_) => Err(Error::new(ErrorKind::Timeout, "closed, while calls were still under way")),
        }
    }
}

#[cold]
fn no_connection() -> Error {
    Error::new(ErrorKind::Timeout, "no connection to the Redis server in time")
}

/// One call of an operation: it has a deadline, and a store that is being closed waits for it.
pub(super) struct Call<'s> {
    server: &'s Server,
    deadline: Deadline,
    _under_way: Entry<'s>,
}

#[derive(Clone, Copy)]
enum Deadline {
    /// For the call as a whole.
    At(Instant),
    /// For each request.
    Each(Duration),
}

impl Redis {
    pub(super) fn call(&self) -> Result<Call<'_>> {
        self.call_until(Deadline::At(later(Instant::now(), self.deadline)))
    }

    /// A call that may take as long as it has to, if only each of its requests is in time.
    pub(super) fn long_call(&self) -> Result<Call<'_>> {
        self.call_until(Deadline::Each(self.deadline))
    }

    fn call_until(&self, deadline: Deadline) -> Result<Call<'_>> {
        let under_way = self.server.calls.enter()?;
        Ok(Call { server: &self.server, deadline, _under_way: under_way })
    }
}

/// A deadline that is too far away to be told is as good as one that is very far away.
fn later(now: Instant, duration: Duration) -> Instant {
    now.checked_add(duration).unwrap_or_else(|| now + Duration::from_secs(365 * 24 * 60 * 60))
}

/// One command, or a pipeline of some.
trait Request: Sync {
    type Reply: Send;
    fn send(&self, driver: MultiplexedConnection) -> impl Future<Output = RedisResult<Self::Reply>> + Send;

    /// Whether a server says that it is a replica.
    fn is_demoted(reply: &Self::Reply) -> bool;
}

impl Request for Cmd {
    type Reply = Value;

    async fn send(&self, mut driver: MultiplexedConnection) -> RedisResult<Value> {
        driver.req_packed_command(self).await
    }

    fn is_demoted(reply: &Value) -> bool {
        matches!(reply, Value::ServerError(error) if error.code() == "READONLY")
    }
}

impl Request for Pipeline {
    /// A reply each; errors among them are values.
    type Reply = Vec<Value>;

    async fn send(&self, mut driver: MultiplexedConnection) -> RedisResult<Vec<Value>> {
        driver.req_packed_commands(self, 0, self.len()).await
    }

    fn is_demoted(replies: &Vec<Value>) -> bool {
        replies.iter().any(Cmd::is_demoted)
    }
}

impl Call<'_> {
    /// Sends a command to the server that has its key, and waits for the reply: one round trip.
    pub(super) async fn send(&self, effect: Effect, command: &Cmd) -> Result<Value> {
        match &self.server.servers {
            Servers::One(node) => reply::checked(self.one(node, effect, command, false).await?),
            Servers::Cluster(cluster) => self.route(cluster, effect, command).await,
        }
    }

    /// Sends a command to this server.
    pub(super) async fn send_to(&self, node: &Node, effect: Effect, command: &Cmd) -> Result<Value> {
        let reply = self.one(node, effect, command, false).await.and_then(reply::checked);
        if let Servers::Cluster(cluster) = &self.server.servers {
            return reply.inspect_err(|error| doubt(cluster, error));
        }
        reply
    }

    /// Sends many commands at once: one pipeline for each server that has some of their keys. A result for each.
    pub(super) async fn send_all(&self, effect: Effect, commands: Vec<Cmd>) -> Vec<Result<Value>> {
        match &self.server.servers {
            Servers::One(node) => self
                .many(node, effect, commands)
                .await
                .into_iter()
                .map(|reply| reply::checked(reply?))
                .collect(),
            Servers::Cluster(cluster) => self.spread(cluster, effect, commands).await,
        }
    }

    /// Whether one command may name any keys. Otherwise they must be of one slot.
    pub(super) fn takes_many_keys(&self) -> bool {
        !self.server.is_cluster()
    }

    async fn route(&self, cluster: &Arc<Cluster>, effect: Effect, command: &Cmd) -> Result<Value> {
        let mut node = cluster.owner(cluster::slot(command)?).inspect_err(|_| cluster.suspect())?;
        let mut asking = false;
        for _ in 0..REDIRECTS {
            let reply =
                self.one(&node, effect, command, asking).await.inspect_err(|error| doubt(cluster, error))?;
            match cluster.redirect(&reply, &node)? {
                None => return reply::checked(reply).inspect_err(|error| doubt(cluster, error)),
                Some(redirect) => {
                    if !redirect.asking {
                        cluster.suspect();
                    }
                    (node, asking) = (redirect.node, redirect.asking);
                }
            }
        }
        Err(Error::new(ErrorKind::Unavailable, "the Redis cluster is being rearranged"))
    }

    async fn spread(&self, cluster: &Arc<Cluster>, effect: Effect, commands: Vec<Cmd>) -> Vec<Result<Value>> {
        let mut results: Vec<Option<Result<Value>>> = commands.iter().map(|_| None).collect();
        let mut shares: Vec<(Arc<Node>, Vec<usize>)> = Vec::new();
        for (index, command) in commands.iter().enumerate() {
            match cluster::slot(command).and_then(|slot| cluster.owner(slot)) {
                Ok(node) => match shares.iter_mut().find(|(other, _)| Arc::ptr_eq(other, &node)) {
                    Some((_, share)) => share.push(index),
                    None => shares.push((node, vec![index])),
                },
                Err(error) => {
                    doubt(cluster, &error);
                    results[index] = Some(Err(error));
                }
            }
        }
        let replies = join_all(shares.iter().map(|(node, share)| {
            self.many(node, effect, share.iter().map(|index| commands[*index].clone()).collect())
        }))
        .await;
        let mut moved = Vec::new();
        for ((node, share), replies) in shares.iter().zip(replies) {
            for (index, reply) in share.iter().copied().zip(replies) {
                match &reply {
                    Ok(reply) if matches!(cluster.redirect(reply, node), Ok(Some(_))) => moved.push(index),
                    Ok(_) => results[index] = Some(reply.and_then(reply::checked)),
                    Err(error) => {
                        doubt(cluster, error);
                        results[index] = Some(reply);
                    }
                }
            }
        }
        // They were not done. In their order, so that of two with one key the later one stays.
        moved.sort_unstable();
        for index in moved {
            results[index] = Some(self.route(cluster, effect, &commands[index]).await);
        }
        results
            .into_iter()
            .map(|result| result.unwrap_or_else(|| Err(failure::unexpected_reply(effect))))
            .collect()
    }

    async fn one(&self, node: &Node, effect: Effect, command: &Cmd, asking: bool) -> Result<Value> {
        let wait = self.wait(effect);
        if !asking && wait.is_none() {
            return self.exchange(node, effect, command).await;
        }
        let envelope = Envelope::new(vec![command.clone()], asking, wait);
        let replies = self.exchange(node, effect, &envelope.pipeline).await?;
        envelope.open(replies).pop().unwrap_or_else(|| Err(failure::unexpected_reply(effect)))
    }

    async fn many(&self, node: &Node, effect: Effect, commands: Vec<Cmd>) -> Vec<Result<Value>> {
        let number = commands.len();
        if number == 0 {
            return Vec::new();
        }
        let envelope = Envelope::new(commands, false, self.wait(effect));
        match self.exchange(node, effect, &envelope.pipeline).await {
            Ok(replies) => envelope.open(replies),
            Err(error) => vec![Err(error); number],
        }
    }

    fn wait(&self, effect: Effect) -> Option<Wait> {
        self.server.wait.filter(|_| effect == Effect::Write)
    }

    /// Sends a request and waits for its reply. A read whose connection is lost is sent again, once.
    async fn exchange<R: Request>(&self, node: &Node, effect: Effect, request: &R) -> Result<R::Reply> {
        let mut again = effect == Effect::Read;
        loop {
            let now = Instant::now();
            let deadline = match self.deadline {
                Deadline::At(deadline) => deadline,
                Deadline::Each(duration) => later(now, duration),
            };
            let pool = node.pool(effect);
            let lease = match pool.ready(now) {
                Some(lease) => lease,
                None => timeout_at(deadline, pool.connection()).await.map_err(|_| no_connection())??,
            };
            let patience = later(now, self.patience(effect));
            match self.await_reply(pool, &lease, deadline.min(patience), effect, request).await {
                Err(error) if again && error.kind() == ErrorKind::Unavailable => again = false,
                result => return result,
            }
        }
    }

    /// How long a server may take to reply.
    fn patience(&self, effect: Effect) -> Duration {
        let wait = self.wait(effect).map_or(Duration::ZERO, Wait::timeout);
        self.server.read_timeout.saturating_add(wait)
    }

    async fn await_reply<R: Request>(
        &self,
        pool: &Pool,
        lease: &Lease,
        until: Instant,
        effect: Effect,
        request: &R,
    ) -> Result<R::Reply> {
        match timeout_at(until, request.send(lease.driver())).await {
            Ok(Ok(reply)) => {
                let now = Instant::now();
                if lease.replied(now) > STALL {
                    pool.note_stall(now);
                }
                // A demoted master stays one: the next connection may find the new one.
                if R::is_demoted(&reply) {
                    lease.abandon();
                }
                Ok(reply)
            }
            Ok(Err(error)) => {
                if error.is_unrecoverable_error() {
                    lease.abandon();
                }
                Err(failure::of_request(&error, effect))
            }
            Err(_) => {
                pool.note_stall(Instant::now());
                if lease.is_silent(self.patience(effect)) {
                    lease.abandon();
                }
                Err(Error::new(ErrorKind::Timeout, "no reply from the Redis server in time")
                    .with_outcome(effect.when_lost()))
            }
        }
    }
}

/// What may mean that another server has the data now.
fn doubt(cluster: &Arc<Cluster>, error: &Error) {
    if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) {
        cluster.suspect();
    }
}
