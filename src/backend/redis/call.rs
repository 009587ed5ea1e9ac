//! Calls of operations, and the commands that they send.

use std::sync::Arc;

use redis::{Cmd, Value};
use tokio::time::{Instant, timeout_at};

use super::{
    Redis,
    cluster::{Cluster, SlotGroup},
    connection::InFlight,
    error::SERVER,
    exchange::{Deadline, Exchange},
    node::Node,
    reply,
    routing::Router,
    server::{Server, Servers},
};
use crate::{
    Result,
    backend::remote::{Effect, connection_timeout, gate::Entry, later},
    layer::time_left,
};

/// A call of an operation. It has a deadline, and closing the store waits for it.
pub(super) struct Call<'s> {
    server: &'s Server,
    deadline: Deadline,
    _in_progress: Entry<'s>,
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

impl Call<'_> {
    /// Sends a command to the server that owns its key and waits for the reply: one round trip.
    pub(super) async fn send(&self, effect: Effect, command: &Cmd) -> Result<Value> {
        match &self.server.servers {
            Servers::One(node) => {
                reply::checked(Exchange::new(self.deadline, node, effect).send(command).await?)
            }
            Servers::Cluster(cluster) => self.router(cluster, effect).send(command).await,
        }
    }

    /// Sends a command to this server.
    pub(super) async fn send_to(&self, node: &Node, effect: Effect, command: &Cmd) -> Result<Value> {
        let reply = Exchange::new(self.deadline, node, effect).send(command).await.and_then(reply::checked);
        if let Servers::Cluster(cluster) = &self.server.servers {
            return reply.inspect_err(|error| cluster.refresh_after(error));
        }
        reply
    }

    /// Sends commands at once, as one pipeline per server that owns their keys. One result per command.
    pub(super) async fn send_all(&self, effect: Effect, commands: Vec<Cmd>) -> Vec<Result<Value>> {
        match &self.server.servers {
            Servers::One(node) => {
                let replies = Exchange::new(self.deadline, node, effect).send_all(commands).await;
                replies.into_iter().map(|reply| reply::checked(reply?)).collect()
            }
            Servers::Cluster(cluster) => self.router(cluster, effect).send_all(&commands).await,
        }
    }

    /// Sends a read on the connection of the previous one, and returns it. A lost connection is an error.
    pub(super) async fn send_next(
        &self,
        node: &Node,
        connection: Option<InFlight>,
        command: &Cmd,
    ) -> Result<(Value, InFlight)> {
        let exchange = Exchange { retry: false, ..Exchange::new(self.deadline, node, Effect::Read) };
        let (reply, connection) = exchange.exchange(connection, command).await?;
        Ok((reply::checked(reply)?, connection))
    }

    /// Whether the deadline of the call as a whole has passed.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.deadline, Deadline::At(end) if Instant::now() >= end)
    }

    /// See [`Cluster::refresh`].
    pub(super) async fn refresh(&self) -> Result<()> {
        let Servers::Cluster(cluster) = &self.server.servers else { return Ok(()) };
        let deadline = self.deadline.of_request(Instant::now());
        timeout_at(deadline, cluster.refresh()).await.map_err(|_| connection_timeout(SERVER))?
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

    fn router<'r>(&'r self, cluster: &'r Arc<Cluster>, effect: Effect) -> Router<'r> {
        Router { cluster, deadline: self.deadline, effect }
    }
}
