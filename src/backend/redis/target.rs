//! Opens connections: to a server, or to the master that sentinels name.

use std::sync::{Arc, atomic::AtomicBool};

use tokio::time::{Instant, timeout};

use super::{
    address::Address,
    connection::{Connection, Settings},
    sentinel::Sentinels,
};
use crate::Result;

/// The server to connect to.
pub(super) enum Target {
    Server(Address),
    /// The current master of the sentinels.
    Master(Sentinels),
}

impl Target {
    /// Opens a connection within the dial timeout.
    pub(super) async fn open(&self, settings: &Settings) -> Result<Connection> {
        let (begun, dead) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let opened = match self {
            Self::Server(addr) => {
                let server = addr.named("the Redis server");
                let opening = settings.open_server(addr, &server, &dead);
                let opened = timeout(settings.dial_timeout(), opening).await;
                opened.unwrap_or_else(|_| Err(settings.timed_out(&server)))?
            }
            // Divides the timeout among the sentinels.
            Self::Master(sentinels) => sentinels.open_master(settings, &dead).await?,
        };
        Ok(Connection::new(opened, dead, begun.elapsed()))
    }
}
