//! Finding the master that sentinels watch.
//!
//! As the [client guidelines](https://redis.io/docs/latest/develop/reference/sentinel-clients/) say: ask the sentinels
//! in turn, connect to the master that the first of them names, and see that it is one.

use redis::{RedisConnectionInfo, Value, aio::MultiplexedConnection, cmd};

use super::{
    RedisSentinel,
    connection::{Address, Settings, login},
    failure,
};
use crate::{Error, ErrorKind, Result};

/// The sentinels of one master.
pub(super) struct Sentinels {
    addrs: Vec<Address>,
    master: String,
    login: RedisConnectionInfo,
}

impl Sentinels {
    pub(super) fn new(addrs: Vec<Address>, config: &RedisSentinel) -> Self {
        let login = login(config.username.as_deref(), config.password.as_deref());
        Self { addrs, master: config.master.clone(), login }
    }

    /// Where the master is now. A sentinel that does not answer in its part of the dial timeout is passed over.
    pub(super) async fn master(&self, settings: &Settings) -> Result<Address> {
        let parts = u32::try_from(self.addrs.len() + 1).unwrap_or(u32::MAX);
        let patience = settings.dial_timeout() / parts;
        let mut why = None;
        for addr in &self.addrs {
            match tokio::time::timeout(patience, self.ask(settings, addr)).await {
                Ok(Ok(Some(master))) => return Ok(master),
                Ok(Ok(None)) => why = Some(unknown_master()),
                Ok(Err(error)) => why = Some(why.unwrap_or(error)),
                Err(_) => {}
            }
        }
        Err(why.unwrap_or_else(|| Error::new(ErrorKind::Timeout, "no Redis sentinel answered in time")))
    }

    async fn ask(&self, settings: &Settings, addr: &Address) -> Result<Option<Address>> {
        let mut sentinel = settings
            .connect(addr, Some(&self.login), None)
            .await
            .map_err(|error| failure::of_dial(&error))?;
        let reply: Option<(String, u16)> = cmd("SENTINEL")
            .arg("GET-MASTER-ADDR-BY-NAME")
            .arg(&self.master)
            .query_async(&mut sentinel)
            .await
            .map_err(|error| failure::of_dial(&error))?;
        Ok(reply.map(|(host, port)| Address::Host(host, port)))
    }
}

/// What a sentinel calls the master may have become a replica.
pub(super) async fn check_role(driver: &mut MultiplexedConnection) -> Result<()> {
    let role: Value = cmd("ROLE").query_async(driver).await.map_err(|error| failure::of_dial(&error))?;
    match role {
        Value::Array(parts) if matches!(parts.first(), Some(Value::BulkString(role)) if role == b"master") => {
            Ok(())
        }
        _ => Err(Error::new(
            ErrorKind::Unavailable,
            "the server that the sentinels name is no master: a failover is under way",
        )),
    }
}

#[cold]
fn unknown_master() -> Error {
    Error::new(ErrorKind::InvalidValue, "the Redis sentinels know no master of this name")
}
