//! Connections that one call has for itself, so that its replies delay no other call.

use std::{sync::Arc, time::Duration};

use redis::cmd;
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    connection::{Opened, ROLE_INTERVAL, Settings, is_master},
    error,
    request::Request,
    target::Target,
};
use crate::{
    Result,
    backend::remote::{
        Effect,
        pool::{Dial, Lease, Reuse},
        reply_timeout,
    },
};

/// Opens exclusive connections to one server.
pub(super) struct Dialer {
    pub(super) settings: Arc<Settings>,
    pub(super) target: Arc<Target>,
}

pub(super) type ExclusiveLease = Lease<Dialer>;

impl Dial for Dialer {
    type Connection = Exclusive;
    const SERVER: &'static str = error::SERVER;

    async fn dial(&self) -> Result<Exclusive> {
        let (opened, now) = (self.target.open(&self.settings, false).await?, Instant::now());
        Ok(Exclusive { opened, used: now, checked: now, is_dirty: false, is_dead: false })
    }
}

/// An exclusive connection.
pub(super) struct Exclusive {
    opened: Opened,
    used: Instant,
    /// When the server was last known to be a master.
    checked: Instant,
    /// A request is running, or was dropped: its reply may still come.
    is_dirty: bool,
    is_dead: bool,
}

/// The time without a request after which a connection may have been lost unnoticed.
const MAX_IDLE: Duration = Duration::from_secs(1);

/// How long the reply to a dropped call may take before the connection is closed.
const CLEANUP_TIMEOUT: Duration = Duration::from_millis(250);

impl Exclusive {
    /// Whether the connection works and leads to a master. Asks the server only if it may have changed.
    pub(super) async fn is_usable(&mut self, deadline: Instant) -> bool {
        let now = Instant::now();
        if now.duration_since(self.used) < MAX_IDLE && now.duration_since(self.checked) < ROLE_INTERVAL {
            return true;
        }
        self.is_dirty = true;
        let role = timeout_at(deadline, is_master(&mut self.opened.driver)).await;
        self.is_dirty = role.is_err();
        // An error reply is ignored: the user may lack the permission.
        self.is_dead = match role {
            Ok(Ok(is_master)) => !is_master,
            Ok(Err(error)) => error.code().is_none(),
            Err(_) => true,
        };
        self.checked = now;
        !self.is_dead
    }

    /// Sends a request and waits for its reply until then.
    pub(super) async fn exchange<R: Request>(
        &mut self,
        effect: Effect,
        until: Instant,
        request: &R,
    ) -> Result<R::Reply> {
        self.is_dirty = true;
        let result = timeout_at(until, request.send(self.opened.driver.clone())).await;
        let Ok(result) = result else { return Err(reply_timeout(error::SERVER, effect)) };
        (self.is_dirty, self.used) = (false, Instant::now());
        // The server's refusals are replies, so an error is a lost connection.
        self.is_dead |= result.as_ref().map_or(true, R::is_demoted);
        result.map_err(|error| error::of_request(&error, effect))
    }
}

impl Reuse for Exclusive {
    fn is_dead(&self) -> bool {
        self.is_dead
    }

    fn needs_cleanup(&self) -> bool {
        !self.is_dead && self.is_dirty
    }

    /// Waits for the outstanding reply, which comes before the reply to this.
    async fn clean_up(&mut self) {
        let ping = cmd("PING");
        let done = timeout(CLEANUP_TIMEOUT, ping.exec_async(&mut self.opened.driver)).await;
        self.is_dirty = false;
        self.is_dead = !matches!(done, Ok(Ok(())));
    }
}
