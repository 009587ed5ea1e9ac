//! Finds the master that sentinels monitor.
//!
//! Follows the [client guidelines](https://redis.io/docs/latest/develop/reference/sentinel-clients/): ask the
//! sentinels one after another, connect to the master that the first of them names, and check that it is one.

use redis::cmd;

use super::{
    RedisSentinel,
    address::Address,
    connection::{Login, Opened, Settings, is_master},
    error,
};
use crate::{Error, ErrorKind, Result};

/// The sentinels of one master.
pub(super) struct Sentinels {
    addrs: Vec<Address>,
    master: String,
    login: Login,
}

/// How errors name the server that sentinels name as the master. Its address may belong to another network.
const MASTER: &str = "the Redis master named by its sentinels";

impl Sentinels {
    pub(super) fn new(addrs: Vec<Address>, options: &RedisSentinel) -> Self {
        let login = Login::new(options.username.as_deref(), options.password.as_ref(), 0);
        Self { addrs, master: options.master.clone(), login }
    }

    /// Connects to the master. Each sentinel has an equal share of the dial timeout. One that does not answer
    /// within it is skipped, and so is one that names a server that is not a master: it may be cut off from
    /// the others.
    pub(super) async fn open_master(&self, settings: &Settings, is_shared: bool) -> Result<Opened> {
        let timeout = settings.dial_timeout / self.addrs.len() as u32;
        let (mut failure, mut tried) = (None, Vec::new());
        for sentinel in &self.addrs {
            let tried_before = tried.len();
            let attempt = async {
                let addr = self.master_addr(settings, sentinel).await?.ok_or_else(unknown_master)?;
                if tried.contains(&addr) {
                    return Ok(None);
                }
                tried.push(addr.clone());
                let server = addr.named(MASTER);
                let mut opened = settings.open_server(&addr, &server, is_shared).await?;
                let role = is_master(&mut opened.driver).await;
                if role.map_err(|error| error::of_dial(&error, &server))? {
                    return Ok(Some(opened));
                }
                // The sentinel named a server that has become a replica.
                let message = format!("{server} is not a master: a failover is in progress");
                Err(Error::new(ErrorKind::Unavailable, message))
            };
            let error = match tokio::time::timeout(timeout, attempt).await {
                Ok(Ok(Some(opened))) => return Ok(opened),
                Ok(Ok(None)) => continue,
                Ok(Err(error)) => error,
                Err(_) => match tried.get(tried_before) {
                    Some(addr) => settings.timed_out(&addr.named(MASTER)),
                    None => settings.timed_out(&sentinel.named(SENTINEL)),
                },
            };
            // An error about the master is more useful than one about a sentinel.
            failure = Some(failure.filter(|_| tried.len() == tried_before).unwrap_or(error));
        }
        Err(failure.unwrap_or_else(unknown_master))
    }

    /// Whether another server is the master now. Sentinels that can't be asked do not count.
    pub(super) async fn have_moved_from(&self, settings: &Settings, addr: &Address) -> bool {
        let timeout = settings.dial_timeout / self.addrs.len() as u32;
        for sentinel in &self.addrs {
            match tokio::time::timeout(timeout, self.master_addr(settings, sentinel)).await {
                Ok(Ok(Some(named))) if named == *addr => return false,
                // This one may be cut off from the others: a new connection asks more.
                Ok(Ok(Some(_))) => {
                    let opened = self.open_master(settings, true).await;
                    return opened.is_ok_and(|opened| opened.place.addr != *addr);
                }
                _ => {}
            }
        }
        false
    }

    async fn master_addr(&self, settings: &Settings, addr: &Address) -> Result<Option<Address>> {
        let name = addr.named(SENTINEL);
        let mut sentinel = settings.connect(addr, &name, &self.login).await?;
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

#[cold]
fn unknown_master() -> Error {
    Error::new(ErrorKind::InvalidValue, "the Redis sentinels monitor no master of this name")
}
