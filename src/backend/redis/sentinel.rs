//! Finding the master that sentinels watch.
//!
//! As the [client guidelines](https://redis.io/docs/latest/develop/reference/sentinel-clients/) say: ask the sentinels
//! in turn, connect to the master that the first of them names, and see that it is one.

use std::sync::{Arc, atomic::AtomicBool};

use redis::{aio::MultiplexedConnection, cmd};

use super::{
    RedisSentinel,
    connection::{Address, Login, Opened, Settings, is_master},
    error,
};
use crate::{Error, ErrorKind, Result};

/// The sentinels of one master.
pub(super) struct Sentinels {
    addrs: Vec<Address>,
    master: String,
    login: Login,
}

/// What errors call the server that sentinels name. It may be the address of another network.
const MASTER: &str = "the Redis master that its sentinels name";

impl Sentinels {
    pub(super) fn new(addrs: Vec<Address>, config: &RedisSentinel) -> Self {
        let login = Login::new(config.username.as_deref(), config.password.as_ref(), 0);
        Self { addrs, master: config.master.clone(), login }
    }

    /// Connects to the master. A sentinel that does not answer in its part of the dial timeout is passed over, and so is
    /// one that names a server which is no master: it may be cut off from the others.
    pub(super) async fn greet_master(&self, settings: &Settings, dead: &Arc<AtomicBool>) -> Result<Opened> {
        let parts = u32::try_from(self.addrs.len()).unwrap_or(u32::MAX).max(1);
        let patience = settings.dial_timeout() / parts;
        let (mut why, mut tried) = (None, Vec::new());
        for sentinel in &self.addrs {
            let known = tried.len();
            let attempt = async {
                let addr = self.ask(settings, sentinel).await?.ok_or_else(unknown_master)?;
                if tried.contains(&addr) {
                    return Ok(None);
                }
                tried.push(addr.clone());
                let server = addr.named(MASTER);
                let mut opened = settings.greet(&addr, &server, dead).await?;
                check_role(&mut opened.driver, &server).await?;
                Ok(Some(opened))
            };
            let error = match tokio::time::timeout(patience, attempt).await {
                Ok(Ok(Some(opened))) => return Ok(opened),
                Ok(Ok(None)) => continue,
                Ok(Err(error)) => error,
                Err(_) => match tried.get(known) {
                    Some(addr) => settings.slow(&addr.named(MASTER)),
                    None => settings.slow(&sentinel.named(SENTINEL)),
                },
            };
            // What is said of the master counts more than that a sentinel is not there.
            why = Some(why.filter(|_| tried.len() == known).unwrap_or(error));
        }
        Err(why.unwrap_or_else(unknown_master))
    }

    async fn ask(&self, settings: &Settings, addr: &Address) -> Result<Option<Address>> {
        let name = addr.named(SENTINEL);
        let mut sentinel = settings.connect(addr, &name, Some(&self.login), None).await?;
        let reply: Option<(String, u16)> = cmd("SENTINEL")
            .arg("GET-MASTER-ADDR-BY-NAME")
            .arg(&self.master)
            .query_async(&mut sentinel.driver)
            .await
            .map_err(|error| error::of_dial(&error, &name))?;
        Ok(reply.map(|(host, port)| Address::Host(host, port)))
    }
}

const SENTINEL: &str = "the Redis sentinel";

/// What a sentinel calls the master may have become a replica.
async fn check_role(driver: &mut MultiplexedConnection, server: &str) -> Result<()> {
    if is_master(driver).await.map_err(|error| error::of_dial(&error, server))? {
        return Ok(());
    }
    let message = format!("{server} is no master: a failover is under way");
    Err(Error::new(ErrorKind::Unavailable, message))
}

#[cold]
fn unknown_master() -> Error {
    Error::new(ErrorKind::InvalidValue, "the Redis sentinels know no master of this name")
}
