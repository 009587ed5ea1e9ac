//! One server of the store.

use std::{sync::Arc, time::Duration};

use super::{
    RedisOptions,
    address::Address,
    connection::{Place, Settings},
    exclusive::{Dialer, ExclusiveLease},
    shared::Shared,
    target::Target,
    wait::Wait,
};
use crate::{
    PoolStats, Result,
    backend::remote::{
        Effect,
        current::Current,
        pool::{Limits, Pool},
    },
};

/// The connections to one server: a few that all calls share, and others that one call has for itself.
pub(super) struct Node {
    pub(super) shared: Shared,
    exclusive: Current<Pool<Dialer>>,
    /// For writes that wait for replicas.
    wait: Option<Wait>,
    /// How long a connection may owe a reply.
    pub(super) reply_timeout: Duration,
}

/// How long an unused exclusive connection stays open.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

impl Node {
    /// `max` is the maximum number of exclusive connections.
    pub(super) fn new(
        settings: &Arc<Settings>,
        target: Target,
        options: &RedisOptions,
        max: u32,
    ) -> Result<Self> {
        let target = Arc::new(target);
        Ok(Self {
            shared: Shared::new(settings, &target, options),
            exclusive: Current::new(pool(settings, &target, max)?),
            wait: Wait::new(options),
            reply_timeout: options.reply_timeout(),
        })
    }

    /// Where it is, unless sentinels say it.
    pub(super) fn addr(&self) -> Option<&Address> {
        match &*self.shared.target {
            Target::Server(addr) => Some(addr),
            Target::Master(_) => None,
        }
    }

    /// How a request with this effect waits for replicas.
    pub(super) fn wait(&self, effect: Effect) -> Option<Wait> {
        self.wait.filter(|_| effect == Effect::Write)
    }

    /// Waits for an exclusive connection, first come, first served.
    pub(super) async fn lease(&self) -> Result<ExclusiveLease> {
        self.exclusive.lease().await
    }

    pub(super) fn resize(&self, max: u32) -> Result<()> {
        self.exclusive.replace(&self.exclusive.get()?, pool(&self.shared.settings, &self.shared.target, max)?)
    }

    /// Gives up the connections that may lead elsewhere. Calls in progress finish on them.
    pub(super) fn leave_others(&self, place: &Place) -> Result<()> {
        self.shared.leave_others(place);
        self.resize(self.exclusive.get()?.stats().max)
    }

    pub(super) fn close(&self) {
        self.shared.close();
        self.exclusive.close();
    }

    pub(super) fn stats(&self) -> PoolStats {
        let exclusive = self.exclusive.get().map_or_else(|_| PoolStats::default(), |pool| pool.stats());
        sum(self.shared.stats(), exclusive)
    }
}

fn pool(settings: &Arc<Settings>, target: &Arc<Target>, max: u32) -> Result<Pool<Dialer>> {
    let dialer = Dialer { settings: settings.clone(), target: target.clone() };
    Pool::new(dialer, &Limits { max, idle_timeout: IDLE_TIMEOUT, max_lifetime: Duration::ZERO })
}

pub(super) fn sum(left: PoolStats, right: PoolStats) -> PoolStats {
    PoolStats {
        max: left.max.saturating_add(right.max),
        open: left.open.saturating_add(right.open),
        idle: left.idle.saturating_add(right.idle),
        waiting: left.waiting.saturating_add(right.waiting),
    }
}
