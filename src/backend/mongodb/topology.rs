//! What the driver tells of the servers and of its connections, while it finds them out.

use std::sync::{
    Arc,
    atomic::{AtomicI32, Ordering},
};

use mongodb::{
    ServerType,
    event::{
        EventHandler,
        cmap::CmapEvent,
        sdam::{SdamEvent, TopologyDescription},
    },
};
use tokio::sync::watch;

use super::error::{self, SERVER};
use crate::{Error, backend::remote::Effect};

/// The server that takes writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writable {
    /// None is known now: none can be reached, or an election is under way.
    None,
    /// A server without replicas, and without transactions.
    Standalone,
    /// The primary of a replica set.
    Primary,
    /// A router to shards, or a load balancer before routers.
    Router,
}

impl Writable {
    fn of(topology: &TopologyDescription) -> Self {
        let servers = topology.servers();
        let is = |wanted: ServerType| servers.values().any(|server| server.server_type() == wanted);
        if is(ServerType::RsPrimary) {
            Self::Primary
        } else if is(ServerType::Mongos) || is(ServerType::LoadBalancer) {
            Self::Router
        } else if is(ServerType::Standalone) {
            Self::Standalone
        } else {
            Self::None
        }
    }

    pub(super) const fn has_transactions(self) -> bool {
        matches!(self, Self::Primary | Self::Router)
    }

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::None => "no server takes writes",
            Self::Standalone => "standalone",
            Self::Primary => "replica set",
            Self::Router => "sharded",
        }
    }
}

/// One client's view: kept up to date by the driver's events.
#[derive(Clone)]
pub(super) struct Topology {
    known: watch::Sender<Known>,
    connections: Arc<Connections>,
}

struct Known {
    writable: Writable,
    /// Why a server can't be reached, if one can't.
    failure: Option<Error>,
    /// A server refused the login, and what to do about it was not asked yet.
    is_refused: bool,
    /// Another client took the place of this one.
    is_retired: bool,
}

impl Known {
    fn learn(&mut self, topology: &TopologyDescription) {
        let servers = topology.servers();
        let mut failures = servers.iter().filter_map(|(at, server)| Some((at, server.error()?)));
        self.writable = Writable::of(topology);
        self.is_refused |= failures.clone().any(|(_, error)| error::refuses_login(error));
        self.failure = failures.next().map(|(at, error)| {
            let error = error::of_request(error, Effect::Read);
            let message = error.to_string().replacen(SERVER, &format!("{SERVER} at {at}"), 1);
            error.with_message(message)
        });
    }

    fn news(&self, must_stay: bool) -> Option<News> {
        match self.writable {
            _ if self.is_retired && !must_stay => Some(News::Retired),
            _ if self.is_refused && !must_stay => Some(News::Refused),
            Writable::None => None,
            known => Some(News::Writable(known)),
        }
    }
}

/// What a call waits for.
pub(super) enum News {
    Writable(Writable),
    /// A server refused the login.
    Refused,
    /// Another client took the place of this one.
    Retired,
}

/// Can go below zero for a moment: events of two threads may arrive in either order.
#[derive(Default)]
struct Connections {
    open: AtomicI32,
    used: AtomicI32,
}

impl Topology {
    pub(super) fn new() -> Self {
        let known = Known { writable: Writable::None, failure: None, is_refused: false, is_retired: false };
        Self { known: watch::Sender::new(known), connections: Arc::default() }
    }

    pub(super) fn servers(&self) -> EventHandler<SdamEvent> {
        let known = self.known.clone();
        EventHandler::callback(move |event| {
            if let SdamEvent::TopologyDescriptionChanged(change) = event {
                known.send_modify(|known| known.learn(&change.new_description));
            }
        })
    }

    pub(super) fn pools(&self) -> EventHandler<CmapEvent> {
        let connections = self.connections.clone();
        EventHandler::callback(move |event| {
            let (counter, change) = match event {
                CmapEvent::ConnectionCreated(_) => (&connections.open, 1),
                CmapEvent::ConnectionClosed(_) => (&connections.open, -1),
                CmapEvent::ConnectionCheckedOut(_) => (&connections.used, 1),
                CmapEvent::ConnectionCheckedIn(_) => (&connections.used, -1),
                _ => return,
            };
            counter.fetch_add(change, Ordering::Relaxed);
        })
    }

    pub(super) fn writable(&self) -> Writable {
        self.known.borrow().writable
    }

    /// Waits until a server takes writes, and says of which kind it is; or, unless the caller must stay on this client, that
    /// another one is needed.
    pub(super) async fn until_writable(&self, must_stay: bool) -> News {
        if let Some(news) = self.known.borrow().news(must_stay) {
            return news;
        }
        let mut known = self.known.subscribe();
        let found = known.wait_for(|known| known.news(must_stay).is_some()).await;
        // The sender is ours, so it is there.
        found.ok().and_then(|known| known.news(must_stay)).unwrap_or(News::Retired)
    }

    pub(super) fn is_refused(&self) -> bool {
        self.known.borrow().is_refused
    }

    /// A refused login has been dealt with.
    pub(super) fn settle_refusal(&self) {
        self.known.send_modify(|known| known.is_refused = false);
    }

    pub(super) fn retire(&self) {
        self.known.send_modify(|known| known.is_retired = true);
    }

    /// Why no server takes writes, as far as that is known.
    pub(super) fn why_none(&self) -> Error {
        self.known.borrow().failure.clone().unwrap_or_else(error::no_primary)
    }

    /// How many connections are open, and how many of them are not used now.
    pub(super) fn connections(&self) -> (u32, u32) {
        let count = |counter: &AtomicI32| u32::try_from(counter.load(Ordering::Relaxed)).unwrap_or(0);
        let (open, used) = (count(&self.connections.open), count(&self.connections.used));
        (open, open.saturating_sub(used))
    }
}
