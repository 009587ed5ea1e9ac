//! Opens connections: to a server, or to the master that sentinels name.

use tokio::time::timeout;

use super::{
    address::Address,
    connection::{Opened, Settings},
    error::SERVER,
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
    /// Opens a connection within the dial timeout. See [`Settings::open_server`].
    pub(super) async fn open(&self, settings: &Settings, is_shared: bool) -> Result<Opened> {
        match self {
            Self::Server(addr) => {
                let server = addr.named(SERVER);
                let opening = settings.open_server(addr, &server, is_shared);
                let opened = timeout(settings.dial_timeout, opening).await;
                opened.unwrap_or_else(|_| Err(settings.timed_out(&server)))
            }
            // Divides the timeout among the sentinels.
            Self::Master(sentinels) => sentinels.open_master(settings, is_shared).await,
        }
    }
}
