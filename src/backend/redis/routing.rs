//! Sends commands to the servers of a cluster that own their keys.

use std::sync::Arc;

use futures_util::future::join_all;
use redis::{Cmd, Value};

use super::{
    cluster::{self, Cluster, MAX_REDIRECTS, Redirect, Reply},
    exchange::Exchange,
    reply,
    server::Call,
    slot,
};
use crate::{Result, backend::remote::Effect};

/// Routes the commands of one call.
pub(super) struct Router<'r> {
    pub(super) cluster: &'r Arc<Cluster>,
    pub(super) call: &'r Call<'r>,
    pub(super) effect: Effect,
    pub(super) exclusive: bool,
}

impl Router<'_> {
    /// Sends a command, and follows redirections.
    pub(super) async fn send(&self, command: &Cmd) -> Result<Value> {
        let result = self.follow(command).await;
        result.inspect_err(|error| self.cluster.refresh_after(error))
    }

    async fn follow(&self, command: &Cmd) -> Result<Value> {
        let mut to = self.owner(command)?;
        for _ in 0..MAX_REDIRECTS {
            let reply = self.exchange(&to).send(command).await?;
            match self.cluster.redirect(reply, &to.node)? {
                Reply::Final(reply) => return reply::checked(reply),
                Reply::Redirected(redirect) => to = redirect,
            }
        }
        Err(cluster::too_many_redirects())
    }

    /// Sends commands as one pipeline per server, and follows redirections. One result per command.
    pub(super) async fn send_all(&self, commands: &[Cmd]) -> Vec<Result<Value>> {
        let mut results: Vec<Option<Result<Value>>> = commands.iter().map(|_| None).collect();
        let mut pending = Vec::new();
        for (index, command) in commands.iter().enumerate() {
            match self.owner(command) {
                Ok(to) => pending.push((index, to)),
                Err(error) => results[index] = Some(Err(error)),
            }
        }
        for _ in 0..MAX_REDIRECTS {
            let shares = shares(pending);
            let replies = join_all(shares.iter().map(|(to, share)| async move {
                let share = share.iter().map(|index| commands[*index].clone()).collect();
                self.exchange(to).send_all(share).await
            }))
            .await;
            pending = Vec::new();
            for ((to, share), replies) in shares.iter().zip(replies) {
                for (index, reply) in share.iter().copied().zip(replies) {
                    match reply.and_then(|reply| self.cluster.redirect(reply, &to.node)) {
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
        let results = results.into_iter().map(|result| {
            let result = result.unwrap_or_else(|| Err(cluster::too_many_redirects()));
            result.inspect_err(|error| self.cluster.refresh_after(error))
        });
        results.collect()
    }

    fn owner(&self, command: &Cmd) -> Result<Redirect> {
        Ok(Redirect { node: self.cluster.owner(slot::of_command(command)?)?, asking: false })
    }

    fn exchange<'e>(&'e self, to: &'e Redirect) -> Exchange<'e> {
        Exchange { asking: to.asking, ..self.call.exchange(&to.node, self.effect, self.exclusive) }
    }
}

/// The commands for each server, in their order.
fn shares(pending: Vec<(usize, Redirect)>) -> Vec<(Redirect, Vec<usize>)> {
    let mut shares: Vec<(Redirect, Vec<usize>)> = Vec::new();
    for (index, to) in pending {
        let is_same = |other: &Redirect| Arc::ptr_eq(&other.node, &to.node) && other.asking == to.asking;
        match shares.iter_mut().find(|(other, _)| is_same(other)) {
            Some((_, share)) => share.push(index),
            None => shares.push((to, vec![index])),
        }
    }
    shares
}
