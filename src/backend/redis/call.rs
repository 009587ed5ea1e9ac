//! Calls of operations, and the commands that they send.

use std::{sync::Arc, time::Duration};

use redis::{Cmd, Value};
use tokio::time::{Instant, timeout_at};

use super::{
    Redis,
    cluster::{Cluster, SlotGroup},
    error::SERVER,
    exchange::Exchange,
    exclusive::ExclusiveLease,
    node::Node,
    reply,
    routing::Router,
    server::{Call, Servers},
    wide,
};
use crate::{
    Result,
    backend::remote::{Effect, connection_timeout},
    layer::time_left,
};

impl Redis {
    pub(super) fn call(&self) -> Result<Call<'_>> {
        self.call_within(self.deadline)
    }

    /// A call with three quarters of the time, so that the caller can report what it did not reach.
    pub(super) fn shorter_call(&self) -> Result<Call<'_>> {
        self.call_within(time_left(self.deadline) / 4 * 3)
    }

    fn call_within(&self, deadline: Duration) -> Result<Call<'_>> {
        Call::begin(&self.server, &self.server.calls, deadline)
    }

    /// A call without a deadline as a whole; each of its requests has one.
    pub(super) fn long_call(&self) -> Result<Call<'_>> {
        Call::begin_long(&self.server, &self.server.calls, self.deadline)
    }
}

impl Call<'_> {
    /// Sends a command to the server that owns its key and waits for the reply: one round trip. A wide one
    /// gets an exclusive connection.
    pub(super) async fn send(&self, effect: Effect, command: &Cmd) -> Result<Value> {
        let had_wide_reply = effect == Effect::Read && self.server.wide_replies.contains(command);
        let result = self.send_over(effect, had_wide_reply || wide::is_wide(command), command).await;
        if let (Effect::Read, Ok(reply)) = (effect, &result) {
            self.server.wide_replies.note(command, reply, had_wide_reply);
        }
        result
    }

    /// As [`send`](Self::send), over an exclusive connection.
    pub(super) async fn send_wide(&self, effect: Effect, command: &Cmd) -> Result<Value> {
        self.send_over(effect, true, command).await
    }

    async fn send_over(&self, effect: Effect, exclusive: bool, command: &Cmd) -> Result<Value> {
        match &self.server.servers {
            Servers::One(node) => reply::checked(self.exchange(node, effect, exclusive).send(command).await?),
            Servers::Cluster(cluster) => self.router(cluster, effect, exclusive).send(command).await,
        }
    }

    /// Sends a command to this server.
    pub(super) async fn send_to(&self, node: &Node, effect: Effect, command: &Cmd) -> Result<Value> {
        let reply = self.exchange(node, effect, false).send(command).await.and_then(reply::checked);
        self.refreshing(reply)
    }

    /// Sends commands at once, as one pipeline per server that owns their keys. One result per command.
    pub(super) async fn send_all(&self, effect: Effect, commands: Vec<Cmd>) -> Vec<Result<Value>> {
        let exclusive = wide::are_wide(&commands);
        match &self.server.servers {
            Servers::One(node) => {
                let replies = self.exchange(node, effect, exclusive).send_all(commands).await;
                replies.into_iter().map(|reply| reply::checked(reply?)).collect()
            }
            Servers::Cluster(cluster) => self.router(cluster, effect, exclusive).send_all(&commands).await,
        }
    }

    /// Sends a read to this server over this connection, or over a new one, which it keeps there.
    pub(super) async fn send_on(
        &self,
        node: &Node,
        connection: &mut Option<ExclusiveLease>,
        command: &Cmd,
    ) -> Result<Value> {
        let reply = self.exchange(node, Effect::Read, true).exchange_on(connection, command).await;
        self.refreshing(reply.and_then(reply::checked))
    }

    pub(super) fn exchange<'e>(&'e self, node: &'e Node, effect: Effect, exclusive: bool) -> Exchange<'e> {
        let exchange = Exchange::new(self, node, effect);
        Exchange { exclusive: exclusive || exchange.exclusive, ..exchange }
    }

    /// Finds out in the background whether another server owns the slots now, if the result may be due to it.
    pub(super) fn refreshing<T>(&self, result: Result<T>) -> Result<T> {
        match &self.server.servers {
            Servers::One(_) => result,
            Servers::Cluster(cluster) => result.inspect_err(|error| cluster.refresh_after(error)),
        }
    }

    /// See [`Cluster::refresh`].
    pub(super) async fn refresh(&self) -> Result<()> {
        let Servers::Cluster(cluster) = &self.server.servers else { return Ok(()) };
        let refreshed = timeout_at(self.request_deadline(Instant::now()), cluster.refresh()).await;
        refreshed.unwrap_or_else(|_| Err(connection_timeout(SERVER)))
    }

    /// See [`Cluster::slot_groups`].
    pub(super) fn slot_groups(&self, names: impl Iterator<Item = String>) -> Option<Vec<SlotGroup>> {
        match &self.server.servers {
            Servers::One(_) => None,
            Servers::Cluster(cluster) => Some(cluster.slot_groups(names)),
        }
    }

    /// Whether one command may have keys of several slots.
    pub(super) fn takes_many_keys(&self) -> bool {
        !self.server.is_cluster()
    }

    fn router<'r>(&'r self, cluster: &'r Arc<Cluster>, effect: Effect, exclusive: bool) -> Router<'r> {
        Router { cluster, call: self, effect, exclusive }
    }
}
