//! Requests to one server and their replies.

use futures_util::FutureExt;
use redis::{Cmd, Pipeline, Value, cmd};
use tokio::time::{Instant, timeout_at};

use super::{
    connection::InFlight, error, exclusive::ExclusiveLease, node::Node, request::Request, server::Call,
};
use crate::{
    ErrorKind, Result,
    backend::remote::{Effect, connection_timeout, deadline_passed, later, reply_timeout},
};

/// Sends requests of one call to one server.
pub(super) struct Exchange<'e> {
    pub(super) call: &'e Call<'e>,
    pub(super) node: &'e Node,
    pub(super) effect: Effect,
    /// Whether a request gets an exclusive connection.
    pub(super) exclusive: bool,
    /// Whether the server accepts each command only after ASKING.
    pub(super) asking: bool,
}

impl<'e> Exchange<'e> {
    pub(super) fn new(call: &'e Call<'e>, node: &'e Node, effect: Effect) -> Self {
        // WAIT blocks the requests behind it on its connection.
        let exclusive = node.wait(effect).is_some();
        Self { call, node, effect, exclusive, asking: false }
    }

    /// Sends one command.
    pub(super) async fn send(&self, command: &Cmd) -> Result<Value> {
        if !self.asking && self.node.wait(self.effect).is_none() {
            return self.exchange(command).await;
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
        match self.exchange(&self.pipeline(commands)).await {
            Ok(replies) => self.replies(replies),
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
        if let Some(wait) = self.node.wait(self.effect) {
            pipeline.add_command(wait.command());
        }
        pipeline
    }

    /// The reply to each command. A refusal by the server is a value; an unconfirmed write is an error. A
    /// status other than OK is the reply of a script that wrote nothing, and nil that of SET NX.
    fn replies(&self, mut replies: Vec<Value>) -> Vec<Result<Value>> {
        let unconfirmed =
            self.node.wait(self.effect).and_then(|wait| wait.unconfirmed(replies.pop().as_ref()));
        let step = if self.asking { 2 } else { 1 };
        replies
            .into_iter()
            .skip(step - 1)
            .step_by(step)
            .map(|reply| match (&reply, &unconfirmed) {
                (Value::ServerError(_) | Value::SimpleString(_) | Value::Nil, _) | (_, None) => Ok(reply),
                (_, Some(error)) => Err(error.clone()),
            })
            .collect()
    }

    /// Sends a request and waits for its reply.
    async fn exchange<R: Request>(&self, request: &R) -> Result<R::Reply> {
        if self.exclusive {
            // Boxed, so that the calls on shared connections are small.
            return self.exchange_on(&mut None, request).boxed().await;
        }
        // A read whose connection is lost is sent again, once.
        let mut retry = self.effect == Effect::Read;
        loop {
            let mut connection = self.shared_connection().await?;
            match timeout_at(self.reply_deadline()?, request.send(connection.driver())).await {
                Ok(Ok(reply)) => {
                    connection.replied();
                    // A new connection may lead to the new master.
                    if R::is_demoted(&reply) {
                        connection.retire();
                    }
                    return Ok(reply);
                }
                // The server's refusals are replies, so this is a lost connection.
                Ok(Err(error)) => {
                    connection.retire();
                    let error = error::of_request(&error, self.effect);
                    if !std::mem::take(&mut retry) || error.kind() != ErrorKind::Unavailable {
                        return Err(error);
                    }
                }
                Err(_) => return Err(reply_timeout(error::SERVER, self.effect)),
            }
        }
    }

    /// Sends a request over this exclusive connection, and waits for its reply. Takes a new connection if
    /// there is none, and then sends a read again if the connection is lost.
    pub(super) async fn exchange_on<R: Request>(
        &self,
        connection: &mut Option<ExclusiveLease>,
        request: &R,
    ) -> Result<R::Reply> {
        let mut retry = self.effect == Effect::Read && connection.is_none();
        loop {
            let lease = match connection {
                Some(lease) => lease,
                None => connection.insert(self.lease().boxed().await?),
            };
            let result = lease.exchange(self.effect, self.reply_deadline()?, request).await;
            let is_lost = result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unavailable);
            if !is_lost || !std::mem::take(&mut retry) {
                return result;
            }
            *connection = None;
        }
    }

    fn reply_deadline(&self) -> Result<Instant> {
        let now = Instant::now();
        let deadline = self.call.request_deadline(now);
        if now >= deadline {
            Err(deadline_passed())
        } else {
            Ok(deadline.min(later(now, self.node.reply_timeout)))
        }
    }

    async fn shared_connection(&self) -> Result<InFlight> {
        match self.node.shared.ready(Instant::now()) {
            Some(connection) => Ok(connection),
            None => self.until_connected(self.node.shared.connection()).await,
        }
    }

    async fn lease(&self) -> Result<ExclusiveLease> {
        let until = self.call.request_deadline(Instant::now());
        self.until_connected(async {
            loop {
                let mut lease = self.node.lease().await?;
                if lease.is_usable(until).await {
                    return Ok(lease);
                }
            }
        })
        .await
    }

    async fn until_connected<T>(&self, connection: impl Future<Output = Result<T>>) -> Result<T> {
        let connected = timeout_at(self.call.request_deadline(Instant::now()), connection).await;
        connected.unwrap_or_else(|_| Err(connection_timeout(error::SERVER)))
    }
}
