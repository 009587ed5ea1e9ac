//! Opens connections: to a server, or to the master that sentinels name.

use std::sync::Arc;

use tokio::time::timeout;

use super::{
    address::Address,
    connection::{Connection, Opened, Settings, Sharing},
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
    /// Opens a connection that calls share.
    pub(super) async fn open_shared(&self, settings: &Settings) -> Result<Arc<Connection>> {
        let opened = self.open(settings, Some(Sharing)).await?;
        Ok(Arc::new(Connection::new(opened, settings.reply_timeout)))
    }

    /// Opens a connection within the dial timeout. See [`Settings::open_server`].
    pub(super) async fn open(&self, settings: &Settings, sharing: Option<Sharing>) -> Result<Opened> {
        match self {
            Self::Server(addr) => {
                let server = addr.named("the Redis server");
                let opening = settings.open_server(addr, &server, sharing);
                let opened = timeout(settings.dial_timeout, opening).await;
                opened.unwrap_or_else(|_| Err(settings.timed_out(&server)))
            }
            // Divides the timeout among the sentinels.
            Self::Master(sentinels) => sentinels.open_master(settings, sharing).await,
        }
    }
}
