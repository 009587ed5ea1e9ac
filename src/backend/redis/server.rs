//! The servers of a store, and requests to them.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use redis::{
    Cmd, Pipeline, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tokio::time::{Instant, timeout_at};

use super::{
    Redis, RedisOptions, RedisTopology,
    cluster::{self, Cluster, MAX_REDIRECTS, Redirect, Reply, SlotGroup},
    connection::{Address, InFlight, Settings, Target},
    error,
    node::{self, Framed, Node, Wait},
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
    /// Whether the store is one server, on this machine.
    is_local: bool,
    /// How long a connection waits for a reply.
    reply_timeout: Duration,
    wait: Option<Wait>,
    /// The calls in progress, which closing waits for.
    calls: Gate,
}

enum Servers {
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
        let one = |target: &dyn Fn() -> Target| {
            Node::new(&settings, target, options, options.pool_size).map(|node| Servers::One(Arc::new(node)))
        };
        let mut is_local = false;
        let servers = match &options.topology {
            RedisTopology::Single => {
                let addr = Address::parse(&options.addr, DEFAULT_PORT)?;
                is_local = addr.is_local();
                one(&|| Target::Server(addr.clone()))?
            }
            RedisTopology::Sentinel(sentinel) => {
                let addrs = Address::parse_list(&options.addr, DEFAULT_SENTINEL_PORT)?;
                one(&|| Target::Master(Sentinels::new(addrs.clone(), sentinel)))?
            }
            RedisTopology::Cluster => {
                let seeds = Address::parse_list(&options.addr, DEFAULT_PORT)?;
                Servers::Cluster(Arc::new(Cluster::new(settings.clone(), seeds, options)))
            }
        };
        Ok(Self {
            servers,
            settings,
            is_local,
            reply_timeout: options.patience(),
            wait: Wait::new(options),
            calls: Gate::new(),
        })
    }

    /// Finds the servers of a cluster, and starts to open the minimum number of connections to each server.
    pub(super) async fn connect(&self, timeout: Duration) -> Result<()> {
        match &self.servers {
            Servers::One(node) => node.warm(),
            Servers::Cluster(cluster) => {
                tokio::time::timeout(timeout, cluster.refresh()).await.map_err(|_| no_connection())??;
                cluster.warm();
            }
        }
        Ok(())
    }

    /// Every server that owns data, in a cluster with its address.
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

    /// How connections are secured, for the statistics. The master of sentinels can be on any machine.
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

    /// Sets the maximum number of connections to each server. Calls in progress finish on their connections.
    pub(super) fn resize(&self, max: u32) -> Result<()> {
        match &self.servers {
            Servers::One(node) => node.resize(max),
            Servers::Cluster(cluster) => cluster.resize(max),
        }
    }

    /// Waits for the calls in progress, but not longer than the timeout, and disconnects.
    pub(super) async fn close(&self, timeout: Duration) -> Result<()> {
        // Also disconnects if this future is dropped.
        let _disconnect = Disconnect(&self.servers);
        let closed = tokio::time::timeout(timeout, self.calls.close()).await;
        closed.map_err(|_| Error::new(ErrorKind::Timeout, "closed while calls were still in progress"))
    }
}

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

#[cold]
fn no_connection() -> Error {
    Error::new(ErrorKind::Timeout, "timed out waiting for a connection to the Redis server")
}

/// A call of an operation. It has a deadline, and closing the store waits for it.
pub(super) struct Call<'s> {
    server: &'s Server,
    deadline: Deadline,
    _in_progress: Entry<'s>,
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

    /// A call with three quarters of the time, so that the caller can report what it did not reach.
    pub(super) fn shorter_call(&self) -> Result<Call<'_>> {
        self.call_until(Deadline::At(later(Instant::now(), time_left(self.deadline) / 4 * 3)))
    }

    /// A call without a deadline as a whole; each of its requests has one.
    pub(super) fn long_call(&self) -> Result<Call<'_>> {
        self.call_until(Deadline::Each(self.deadline))
    }

    fn call_until(&self, deadline: Deadline) -> Result<Call<'_>> {
        let in_progress = self.server.calls.enter()?;
        Ok(Call { server: &self.server, deadline, _in_progress: in_progress })
    }
}

/// A command or a pipeline.
trait Request: Sync {
    type Reply: Send;
    fn send(&self, driver: MultiplexedConnection) -> impl Future<Output = RedisResult<Self::Reply>> + Send;

    /// Whether the server replied that it is a replica.
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
    /// One reply per command. A server's error is a value.
    type Reply = Vec<Value>;

    async fn send(&self, mut driver: MultiplexedConnection) -> RedisResult<Vec<Value>> {
        driver.req_packed_commands(self, 0, self.len()).await
    }

    fn is_demoted(replies: &Vec<Value>) -> bool {
        replies.iter().any(Cmd::is_demoted)
    }
}

impl Call<'_> {
    /// Sends a command to the server that owns its key and waits for the reply: one round trip.
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
            return reply.inspect_err(|error| cluster.refresh_after(error));
        }
        reply
    }

    /// Sends many commands at once, as one pipeline per server that owns some of their keys. One result per
    /// command.
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

    /// Whether the deadline of the call as a whole has passed.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.deadline, Deadline::At(end) if Instant::now() >= end)
    }

    /// See [`Cluster::refresh`].
    pub(super) async fn refresh(&self) -> Result<()> {
        let Servers::Cluster(cluster) = &self.server.servers else { return Ok(()) };
        timeout_at(self.deadline(Instant::now()), cluster.refresh()).await.map_err(|_| no_connection())?
    }

    /// See [`Cluster::slot_groups`].
    pub(super) fn slot_groups(&self, names: impl Iterator<Item = String>) -> Option<Vec<SlotGroup>> {
        match &self.server.servers {
            Servers::One(_) => None,
            Servers::Cluster(cluster) => Some(cluster.slot_groups(names)),
        }
    }

    /// The effect of a write that changes nothing. It counts as a read, unless it must wait for replicas as
    /// writes do.
    pub(super) fn probe_effect(&self) -> Effect {
        if self.server.wait.is_some() { Effect::Write } else { Effect::Read }
    }

    /// Whether one command may have keys of several slots.
    pub(super) fn takes_many_keys(&self) -> bool {
        !self.server.is_cluster()
    }

    async fn route(&self, cluster: &Arc<Cluster>, effect: Effect, command: &Cmd) -> Result<Value> {
        let result = self.follow(cluster, effect, command).await;
        result.inspect_err(|error| cluster.refresh_after(error))
    }

    async fn follow(&self, cluster: &Arc<Cluster>, effect: Effect, command: &Cmd) -> Result<Value> {
        let mut to = Redirect { node: cluster.owner(cluster::slot(command)?)?, asking: false };
        for _ in 0..MAX_REDIRECTS {
            let reply = self.one(&to.node, effect, command, to.asking).await?;
            match cluster.redirect(reply, &to.node)? {
                Reply::Final(reply) => return reply::checked(reply),
                Reply::Redirected(redirect) => to = redirect,
            }
        }
        Err(cluster::too_many_redirects())
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
        for _ in 0..MAX_REDIRECTS {
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
                        Ok(Reply::Redirected(redirect)) => pending.push((index, redirect)),
                        Ok(Reply::Final(reply)) => results[index] = Some(reply::checked(reply)),
                        Err(error) => results[index] = Some(Err(error)),
                    }
                }
            }
            if pending.is_empty() {
                break;
            }
            // Keeps the order of the commands: of two for the same key the later one must win.
            pending.sort_unstable_by_key(|(index, _)| *index);
        }
        let results: Vec<_> = results
            .into_iter()
            .map(|result| result.unwrap_or_else(|| Err(cluster::too_many_redirects())))
            .collect();
        results
            .iter()
            .filter_map(|result| result.as_ref().err())
            .for_each(|error| cluster.refresh_after(error));
        results
    }

    async fn one(&self, node: &Node, effect: Effect, command: &Cmd, asking: bool) -> Result<Value> {
        let wait = self.wait(effect);
        if !asking && wait.is_none() {
            return self.exchange(node, effect, command).await;
        }
        let framed = Framed::new(vec![command.clone()], asking, wait);
        let replies = self.exchange(node, effect, &framed.pipeline).await?;
        framed.replies(replies).pop().unwrap_or_else(|| Err(error::unexpected_reply(effect)))
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
        let framed = Framed::new(commands, asking, self.wait(effect));
        match self.exchange(node, effect, &framed.pipeline).await {
            Ok(replies) => framed.replies(replies),
            Err(error) => vec![Err(error); number],
        }
    }

    fn wait(&self, effect: Effect) -> Option<Wait> {
        self.server.wait.filter(|_| effect == Effect::Write)
    }

    /// Sends a request and waits for its reply. A read whose connection is lost is sent again, once.
    async fn exchange<R: Request>(&self, node: &Node, effect: Effect, request: &R) -> Result<R::Reply> {
        let mut retry = effect == Effect::Read;
        loop {
            let connection = self.connection(node, effect).await?;
            match self.send_over(node, connection, effect, request).await {
                Err(error) if retry && error.kind() == ErrorKind::Unavailable => retry = false,
                result => return result.map(|(reply, _)| reply),
            }
        }
    }

    /// Sends a read on the connection of the previous one, and returns the connection. A lost connection is
    /// an error.
    pub(super) async fn send_next(
        &self,
        node: &Node,
        connection: Option<InFlight>,
        command: &Cmd,
    ) -> Result<(Value, InFlight)> {
        let connection = match connection {
            Some(connection) => connection,
            None => self.connection(node, Effect::Read).await?,
        };
        let (reply, connection) = self.send_over(node, connection, Effect::Read, command).await?;
        Ok((reply::checked(reply)?, connection))
    }

    fn deadline(&self, now: Instant) -> Instant {
        match self.deadline {
            Deadline::At(deadline) => deadline,
            Deadline::Each(duration) => later(now, duration),
        }
    }

    async fn connection(&self, node: &Node, effect: Effect) -> Result<InFlight> {
        let (pool, now) = (node.pool(effect), Instant::now());
        match pool.ready(now) {
            Some(connection) => Ok(connection),
            None => timeout_at(self.deadline(now), pool.connection()).await.map_err(|_| no_connection())?,
        }
    }

    async fn send_over<R: Request>(
        &self,
        node: &Node,
        mut connection: InFlight,
        effect: Effect,
        request: &R,
    ) -> Result<(R::Reply, InFlight)> {
        let sent = Instant::now();
        let deadline = self.deadline(sent);
        if sent >= deadline {
            return Err(Error::new(ErrorKind::Timeout, "the deadline passed before the request was sent"));
        }
        let until = deadline.min(later(sent, self.server.reply_timeout));
        match timeout_at(until, request.send(connection.driver())).await {
            Ok(Ok(reply)) => {
                let now = Instant::now();
                if connection.replied(sent, now) {
                    node.pool(effect).note_stall(now);
                }
                // A new connection may lead to the new master.
                if R::is_demoted(&reply) {
                    connection.retire();
                }
                Ok((reply, connection))
            }
            // The server's refusals are replies, so this is a lost connection.
            Ok(Err(error)) => {
                connection.retire();
                Err(error::of_request(&error, effect))
            }
            Err(_) => {
                node.pool(effect).note_stall(Instant::now());
                Err(Error::new(ErrorKind::Timeout, "timed out waiting for a reply from the Redis server")
                    .with_outcome(effect.when_lost()))
            }
        }
    }
}

/// The commands for each server, in their order.
fn shares(pending: Vec<(usize, Redirect)>) -> Vec<(Redirect, Vec<usize>)> {
    let mut shares: Vec<(Redirect, Vec<usize>)> = Vec::new();
    for (index, to) in pending {
        match shares.iter_mut().find(|(other, _)| other.is_same(&to)) {
            Some((_, share)) => share.push(index),
            None => shares.push((to, vec![index])),
        }
    }
    shares
}
