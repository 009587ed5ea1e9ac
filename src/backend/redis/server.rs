//! The server, or the servers, behind all handles of a store, and requests to them.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use redis::{
    Cmd, Pipeline, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tokio::time::{Instant, timeout_at};

use super::{
    Redis, RedisOptions, RedisTopology,
    cluster::{self, Cluster, Place, REDIRECTS, Redirect, Reply},
    connection::{Address, Lease, Settings, Target},
    error,
    node::{self, Envelope, Node, Wait},
    reply,
    sentinel::Sentinels,
};
use crate::{
    Error, ErrorKind, PoolStats, Result,
    backend::remote::{
        Effect, ON_THIS_MACHINE,
        gate::{Entry, Gate},
        later,
    },
    layer::time_left,
};

pub(super) struct Server {
    servers: Servers,
    settings: Arc<Settings>,
    /// Whether that is one server, on this machine.
    is_local: bool,
    patience: Duration,
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

impl Server {
    pub(super) async fn new(config: &RedisOptions) -> Result<Self> {
        config.check()?;
        let settings = Arc::new(Settings::new(config).await?);
        let one = |target: &dyn Fn() -> Target| {
            Node::new(&settings, target, config, config.pool_size).map(|node| Servers::One(Arc::new(node)))
        };
        let mut is_local = false;
        let servers = match &config.topology {
            RedisTopology::Single => {
                let addr = Address::parse(&config.addr, DEFAULT_PORT)?;
                is_local = addr.is_local();
                one(&|| Target::Server(addr.clone()))?
            }
            RedisTopology::Sentinel(sentinel) => {
                let addrs = Address::parse_list(&config.addr, DEFAULT_SENTINEL_PORT)?;
                one(&|| Target::Master(Sentinels::new(addrs.clone(), sentinel)))?
            }
            RedisTopology::Cluster => {
                let seeds = Address::parse_list(&config.addr, DEFAULT_PORT)?;
                Servers::Cluster(Arc::new(Cluster::new(settings.clone(), seeds, config)))
            }
        };
        Ok(Self {
            servers,
            settings,
            is_local,
            patience: config.patience(),
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

    /// What is to be said of TLS. Where sentinels send us can be any machine.
    pub(super) fn tls(&self) -> &'static str {
        let is_local = match &self.servers {
            Servers::One(_) => self.is_local,
            Servers::Cluster(cluster) => cluster.masters().iter().all(|(addr, _)| addr.is_local()),
        };
        match (self.settings.uses_tls(), is_local) {
            (true, _) => "verified",
            (false, true) => ON_THIS_MACHINE,
            (false, false) => "none",
        }
    }

    pub(super) fn pool_stats(&self) -> Result<PoolStats> {
        let _call = self.calls.enter()?;
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
        // Also if this future is dropped.
        let _disconnect = Disconnect(&self.servers);
        let all = tokio::time::timeout(deadline, self.calls.close()).await;
        match all {
            Ok(()) => Ok(()),
            Err(_) => Err(Error::new(ErrorKind::Timeout, "closed, while calls were still under way")),
        }
    }
}

/// Gives all connections up when it is dropped.
struct Disconnect<'s>(&'s Servers);

impl Drop for Disconnect<'_> {
    fn drop(&mut self) {
        match self.0 {
            Servers::One(node) => node.close(),
            Servers::Cluster(cluster) => cluster.close(),
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
        self.call_until(Deadline::At(later(Instant::now(), time_left(self.deadline))))
    }

    /// A call that has most of the time, so that what it does not come to can still be said.
    pub(super) fn shorter_call(&self) -> Result<Call<'_>> {
        self.call_until(Deadline::At(later(Instant::now(), time_left(self.deadline) / 4 * 3)))
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
        matches!(reply, Value::ServerError(error)
            if error::code_of(error.code(), error.details().unwrap_or_default()) == "READONLY")
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
            return reply.inspect_err(|error| cluster.doubt(error));
        }
        reply
    }

    /// Sends many commands at once: one pipeline for each server that has some of their keys. A result for each.
    pub(super) async fn send_all(&self, effect: Effect, commands: Vec<Cmd>) -> Vec<Result<Value>> {
        match &self.server.servers {
            Servers::One(node) => self
                .many(node, effect, commands, false)
                .await
                .into_iter()
                .map(|reply| reply::checked(reply?))
                .collect(),
            Servers::Cluster(cluster) => self.spread(cluster, effect, commands).await,
        }
    }

    /// Whether its time as a whole is over.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.deadline, Deadline::At(end) if Instant::now() >= end)
    }

    /// Learns who has what in a cluster.
    pub(super) async fn learn(&self) -> Result<()> {
        let Servers::Cluster(cluster) = &self.server.servers else { return Ok(()) };
        timeout_at(self.deadline(Instant::now()), cluster.learn()).await.map_err(|_| no_connection())?
    }

    /// The slots of a cluster by who has them, with a name for each.
    pub(super) fn places(&self, names: impl Iterator<Item = String>) -> Option<Vec<Place>> {
        match &self.server.servers {
            Servers::One(_) => None,
            Servers::Cluster(cluster) => Some(cluster.places(names)),
        }
    }

    /// The effect of a write that changes nothing: only one that waits for replicas must go the way of the others.
    pub(super) fn write(&self) -> Effect {
        if self.server.wait.is_some() { Effect::Write } else { Effect::Read }
    }

    /// Whether one command may name any keys. Otherwise they must be of one slot.
    pub(super) fn takes_many_keys(&self) -> bool {
        !self.server.is_cluster()
    }

    async fn route(&self, cluster: &Arc<Cluster>, effect: Effect, command: &Cmd) -> Result<Value> {
        let result = self.follow(cluster, effect, command).await;
        result.inspect_err(|error| cluster.doubt(error))
    }

    async fn follow(&self, cluster: &Arc<Cluster>, effect: Effect, command: &Cmd) -> Result<Value> {
        let mut to = Redirect { node: cluster.owner(cluster::slot(command)?)?, asking: false };
        for _ in 0..REDIRECTS {
            let reply = self.one(&to.node, effect, command, to.asking).await?;
            match cluster.redirect(reply, &to.node)? {
                Reply::Final(reply) => return reply::checked(reply),
                Reply::Elsewhere(redirect) => to = redirect,
            }
        }
        Err(cluster::rearranged())
    }

    async fn spread(&self, cluster: &Arc<Cluster>, effect: Effect, commands: Vec<Cmd>) -> Vec<Result<Value>> {
        let mut results: Vec<Option<Result<Value>>> = commands.iter().map(|_| None).collect();
        let mut pending = Vec::new();
        for (index, command) in commands.iter().enumerate() {
            match cluster::slot(command).and_then(|slot| cluster.owner(slot)) {
                Ok(node) => pending.push((index, Redirect { node, asking: false })),
                Err(error) => results[index] = Some(Err(error)),
            }
        }
        // What is sent elsewhere was not done, so it can go there.
        for _ in 0..REDIRECTS {
            let shares = shares(pending);
            let replies = join_all(shares.iter().map(|(to, share)| {
                let share = share.iter().map(|index| commands[*index].clone()).collect();
                self.many(&to.node, effect, share, to.asking)
            }))
            .await;
            pending = Vec::new();
            for ((to, share), replies) in shares.iter().zip(replies) {
                for (index, reply) in share.iter().copied().zip(replies) {
                    match reply.and_then(|reply| cluster.redirect(reply, &to.node)) {
                        Ok(Reply::Elsewhere(redirect)) => pending.push((index, redirect)),
                        Ok(Reply::Final(reply)) => results[index] = Some(reply::checked(reply)),
                        Err(error) => results[index] = Some(Err(error)),
                    }
                }
            }
            if pending.is_empty() {
                break;
            }
            // In their order, so that of two with one key the later one stays.
            pending.sort_unstable_by_key(|(index, _)| *index);
        }
        let results: Vec<_> =
            results.into_iter().map(|result| result.unwrap_or_else(|| Err(cluster::rearranged()))).collect();
        results.iter().filter_map(|result| result.as_ref().err()).for_each(|error| cluster.doubt(error));
        results
    }

    async fn one(&self, node: &Node, effect: Effect, command: &Cmd, asking: bool) -> Result<Value> {
        let wait = self.wait(effect);
        if !asking && wait.is_none() {
            return self.exchange(node, effect, command).await;
        }
        let envelope = Envelope::new(vec![command.clone()], asking, wait);
        let replies = self.exchange(node, effect, &envelope.pipeline).await?;
        envelope.open(replies).pop().unwrap_or_else(|| Err(error::unexpected_reply(effect)))
    }

    async fn many(
        &self,
        node: &Node,
        effect: Effect,
        commands: Vec<Cmd>,
        asking: bool,
    ) -> Vec<Result<Value>> {
        let number = commands.len();
        if number == 0 {
            return Vec::new();
        }
        let envelope = Envelope::new(commands, asking, self.wait(effect));
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
            let lease = self.lease(node, effect).await?;
            match self.send_over(node, lease, effect, request).await {
                Err(error) if again && error.kind() == ErrorKind::Unavailable => again = false,
                result => return result.map(|(reply, _)| reply),
            }
        }
    }

    /// A read on the connection of the one before it, which is given back. A lost connection is an error.
    pub(super) async fn send_next(
        &self,
        node: &Node,
        lease: Option<Lease>,
        command: &Cmd,
    ) -> Result<(Value, Lease)> {
        let lease = match lease {
            Some(lease) => lease,
            None => self.lease(node, Effect::Read).await?,
        };
        let (reply, lease) = self.send_over(node, lease, Effect::Read, command).await?;
        Ok((reply::checked(reply)?, lease))
    }

    fn deadline(&self, now: Instant) -> Instant {
        match self.deadline {
            Deadline::At(deadline) => deadline,
            Deadline::Each(duration) => later(now, duration),
        }
    }

    async fn lease(&self, node: &Node, effect: Effect) -> Result<Lease> {
        let (pool, now) = (node.pool(effect), Instant::now());
        match pool.ready(now) {
            Some(lease) => Ok(lease),
            None => timeout_at(self.deadline(now), pool.connection()).await.map_err(|_| no_connection())?,
        }
    }

    async fn send_over<R: Request>(
        &self,
        node: &Node,
        mut lease: Lease,
        effect: Effect,
        request: &R,
    ) -> Result<(R::Reply, Lease)> {
        let sent = Instant::now();
        let deadline = self.deadline(sent);
        if sent >= deadline {
            return Err(Error::new(ErrorKind::Timeout, "the time was over before the request was sent"));
        }
        let until = deadline.min(later(sent, self.server.patience));
        match timeout_at(until, request.send(lease.driver())).await {
            Ok(Ok(reply)) => {
                let now = Instant::now();
                if lease.replied(sent, now) {
                    node.pool(effect).note_stall(now);
                }
                // A demoted master stays one: the next connection may find the new one.
                if R::is_demoted(&reply) {
                    lease.abandon();
                }
                Ok((reply, lease))
            }
            // A refusal would be a reply: the connection is broken.
            Ok(Err(error)) => {
                lease.abandon();
                Err(error::of_request(&error, effect))
            }
            Err(_) => {
                node.pool(effect).note_stall(Instant::now());
                Err(Error::new(ErrorKind::Timeout, "no reply from the Redis server in time")
                    .with_outcome(effect.when_lost()))
            }
        }
    }
}

/// What goes to which server, each share in its order.
fn shares(pending: Vec<(usize, Redirect)>) -> Vec<(Redirect, Vec<usize>)> {
    let mut shares: Vec<(Redirect, Vec<usize>)> = Vec::new();
    for (index, to) in pending {
        match shares.iter_mut().find(|(other, _)| other.is(&to)) {
            Some((_, share)) => share.push(index),
            None => shares.push((to, vec![index])),
        }
    }
    shares
}
