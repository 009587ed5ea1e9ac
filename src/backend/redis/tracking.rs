//! Connections on which the masters tell what changes: client tracking, by the prefixes of keys.
//!
//! See [CLIENT TRACKING](https://redis.io/docs/latest/commands/client-tracking/). The changes come on the
//! connection that asked for them, in one order with its replies. A reply therefore shows that every change
//! before it has come.

use std::time::Duration;

use redis::cmd;
use tokio::time::timeout;

use super::{
    connection::{Opened, Settings, is_master},
    error::{self, SERVER},
    layout::Layout,
    node::Node,
};
use crate::{
    Error, ErrorKind, Result,
    backend::remote::{Effect, reply_timeout},
};

/// A connection to a master that tells what changes.
pub(super) struct Tracked {
    pub(super) opened: Opened,
    server: String,
    reply_timeout: Duration,
}

impl Tracked {
    /// Connects to the master of a node. `settings` say where the changes go.
    pub(super) async fn open(node: &Node, settings: &Settings, layout: &Layout) -> Result<Self> {
        let mut opened = node.shared.target.open(settings, true).await?;
        let server = opened.place.addr.named(SERVER);
        let mut track = cmd("CLIENT");
        track.arg("TRACKING").arg("ON").arg("BCAST");
        for prefix in [layout.credentials(), layout.config()] {
            track.arg("PREFIX").arg(prefix);
        }
        let tracking = timeout(settings.reply_timeout, track.exec_async(&mut opened.driver)).await;
        tracking
            .map_err(|_| reply_timeout(&server, Effect::Read))?
            .map_err(|error| error::of_tracking(&error, &server))?;
        let tracked = Self { opened, server, reply_timeout: settings.reply_timeout };
        tracked.check().await?;
        Ok(tracked)
    }

    /// Fails unless the server replies in time and is a master.
    pub(super) async fn check(&self) -> Result<()> {
        let mut driver = self.opened.driver.clone();
        match timeout(self.reply_timeout, is_master(&mut driver)).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => {
                let message = format!("{} is a replica now: a failover is in progress", self.server);
                Err(Error::new(ErrorKind::Unavailable, message))
            }
            // The user may lack the permission. It is a reply all the same.
            Ok(Err(error)) if error.code().is_some() => Ok(()),
            Ok(Err(error)) => Err(error::of_dial(&error, &self.server)),
            Err(_) => Err(reply_timeout(&self.server, Effect::Read)),
        }
    }
}
