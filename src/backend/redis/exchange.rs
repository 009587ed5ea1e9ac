//! Requests to one server and their replies.

use std::time::Duration;

use redis::{
    Cmd, Pipeline, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cmd,
};
use tokio::time::{Instant, timeout_at};

use super::{connection::InFlight, error, node::Node, pool::Pool, wait::Wait};
use crate::{
    ErrorKind, Result,
    backend::remote::{Effect, connection_timeout, deadline_passed, later, reply_timeout},
};

/// When the requests of a call end.
#[derive(Clone, Copy)]
pub(super) enum Deadline {
    /// At one time for all of them.
    At(Instant),
    /// Each after this time.
    Each(Duration),
}

impl Deadline {
    pub(super) fn of_request(self, now: Instant) -> Instant {
        match self {
            Self::At(deadline) => deadline,
            Self::Each(duration) => later(now, duration),
        }
    }
}

/// A command or a pipeline.
pub(super) trait Request: Sync {
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

/// Sends requests of one call to one server.
pub(super) struct Exchange<'e> {
    pub(super) deadline: Deadline,
    pub(super) pool: &'e Pool,
    pub(super) effect: Effect,
    pub(super) wait: Option<Wait>,
    /// Whether the server accepts each command only after ASKING.
    pub(super) asking: bool,
    /// Whether a request whose connection is lost is sent again, once.
    pub(super) retry: bool,
}

impl<'e> Exchange<'e> {
    pub(super) fn new(deadline: Deadline, node: &'e Node, effect: Effect) -> Self {
        let (pool, wait) = node.pool(effect);
        Self { deadline, pool, effect, wait, asking: false, retry: effect == Effect::Read }
    }

    /// Sends one command.
    pub(super) async fn send(&self, command: &Cmd) -> Result<Value> {
        if !self.asking && self.wait.is_none() {
            return self.exchange(None, command).await.map(|(reply, _)| reply);
        }
        let reply = self.send_all(vec![command.clone()]).await.pop();
        reply.unwrap_or_else(|| Err(error::unexpected_reply(self.effect)))
    }

    /// Sends commands as one pipeline. One result per command.
    pub(super) async fn send_all(&self, commands: Vec<Cmd>) -> Vec<Result<Value>> {
        let number = commands.len();
        if number == 0 {
            return Vec::new();
        }
        match self.exchange(None, &self.pipeline(commands)).await {
            Ok((replies, _)) => self.replies(replies),
            Err(error) => vec![Err(error); number],
        }
    }

    /// The commands, with ASKING before each and WAIT after the last if these are needed.
    fn pipeline(&self, commands: Vec<Cmd>) -> Pipeline {
        let mut pipeline = Pipeline::with_capacity(2 * commands.len() + 1);
        for command in commands {
            if self.asking {
                pipeline.add_command(cmd("ASKING"));
            }
            pipeline.add_command(command);
        }
        if let Some(wait) = self.wait {
            pipeline.add_command(wait.command());
        }
        pipeline
    }

    /// The reply to each command. A refusal by the server is a value; an unconfirmed write is an error.
    fn replies(&self, mut replies: Vec<Value>) -> Vec<Result<Value>> {
        let unconfirmed = self.wait.and_then(|wait| wait.unconfirmed(replies.pop().as_ref()));
        let step = if self.asking { 2 } else { 1 };
        replies
            .into_iter()
            .skip(step - 1)
            .step_by(step)
            .map(|reply| match (&reply, &unconfirmed) {
                (Value::ServerError(_), _) | (_, None) => Ok(reply),
                (_, Some(error)) => Err(error.clone()),
            })
            .collect()
    }

    /// Sends a request over the given connection or any, waits for its reply, and returns the connection.
    pub(super) async fn exchange<R: Request>(
        &self,
        mut over: Option<InFlight>,
        request: &R,
    ) -> Result<(R::Reply, InFlight)> {
        let mut retry = self.retry;
        loop {
            let mut connection = match over.take() {
                Some(connection) => connection,
                None => self.connection().await?,
            };
            let sent = Instant::now();
            let deadline = self.deadline.of_request(sent);
            if sent >= deadline {
                return Err(deadline_passed());
            }
            let until = deadline.min(later(sent, self.pool.reply_timeout));
            match timeout_at(until, request.send(connection.driver())).await {
                Ok(Ok(reply)) => {
                    let now = Instant::now();
                    if connection.replied(sent, now) {
                        self.pool.note_stall(now);
                    }
                    // A new connection may lead to the new master.
                    if R::is_demoted(&reply) {
                        connection.retire();
                    }
                    return Ok((reply, connection));
                }
                // The server's refusals are replies, so this is a lost connection.
                Ok(Err(error)) => {
                    connection.retire();
                    let error = error::of_request(&error, self.effect);
                    if !retry || error.kind() != ErrorKind::Unavailable {
                        return Err(error);
                    }
                    retry = false;
                }
                Err(_) => {
                    self.pool.note_stall(Instant::now());
                    return Err(reply_timeout(error::SERVER, self.effect));
                }
            }
        }
    }

    async fn connection(&self) -> Result<InFlight> {
        let now = Instant::now();
        if let Some(connection) = self.pool.ready(now) {
            return Ok(connection);
        }
        let deadline = self.deadline.of_request(now);
        timeout_at(deadline, self.pool.connection()).await.map_err(|_| connection_timeout(error::SERVER))?
    }
}
