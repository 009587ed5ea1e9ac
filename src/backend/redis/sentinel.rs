//! Finding the master that sentinels watch.
//!
//! As the [client guidelines](https://redis.io/docs/latest/develop/reference/sentinel-clients/) say: ask the sentinels
//! in turn, connect to the master that the first of them names, and see that it is one.

use std::sync::{Arc, atomic::AtomicBool};

use redis::{RedisConnectionInfo, aio::MultiplexedConnection, cmd};

use super::{
    RedisSentinel,
    connection::{Address, Settings, is_master, login},
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

    /// Connects to the master. A sentinel that does not answer in its part of the dial timeout is passed over, and so is
    /// one that names a server which is no master: it may be cut off from the others.
    pub(super) async fn greet_master(
        &self,
        settings: &Settings,
        dead: &Arc<AtomicBool>,
    ) -> Result<MultiplexedConnection> {
        let parts = u32::try_from(self.addrs.len()).unwrap_or(u32::MAX).max(1);
        let patience = settings.dial_timeout() / parts;
        let (mut why, mut tried) = (None, Vec::new());
        for sentinel in &self.addrs {
            let attempt = async {
                let addr = self.ask(settings, sentinel).await?.ok_or_else(unknown_master)?;
                if tried.contains(&addr) {
                    return Ok(None);
                }
                tried.push(addr.clone());
                let mut driver =
                    settings.greet(&addr, dead).await.map_err(|error| failure::of_dial(&error))?;
                check_role(&mut driver).await?;
                Ok(Some(driver))
            };
            match tokio::time::timeout(patience, attempt).await {
                Ok(Ok(Some(driver))) => return Ok(driver),
                Ok(Ok(None)) | Err(_) => {}
                // What is said of the master counts more than that a sentinel is not there.
                Ok(Err(error)) if tried.is_empty() => why = Some(why.unwrap_or(error)),
                Ok(Err(error)) => why = Some(error),
            }
        }
        Err(why.unwrap_or_else(|| {
            Error::new(ErrorKind::Timeout, "neither the Redis sentinels nor the master answered in time")
        }))
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
async fn check_role(driver: &mut MultiplexedConnection) -> Result<()> {
    if is_master(driver).await.map_err(|error| failure::of_dial(&error))? {
        return Ok(());
    }
    let message = "the server that the sentinels name is no master: a failover is under way";
    Err(Error::new(ErrorKind::Unavailable, message))
}

#[cold]
fn unknown_master() -> Error {
    Error::new(ErrorKind::InvalidValue, "the Redis sentinels know no master of this name")
}
