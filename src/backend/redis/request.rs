//! What is sent to a server at once.

use redis::{
    Cmd, Pipeline, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};

use super::error;

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
