//! The state of the servers and of the driver's connections, from the driver's events.

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

/// The kind of server that accepts writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writable {
    /// None is known: none can be reached, or an election is under way.
    None,
    /// A server without replicas and transactions.
    Standalone,
    /// The primary of a replica set.
    Primary,
    /// A router to shards (mongos), or a load balancer in front of routers.
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
            Self::None => "no server accepts writes",
            Self::Standalone => "standalone",
            Self::Primary => "replica set",
            Self::Router => "sharded",
        }
    }
}

/// One client's view of the servers, kept up to date by the driver's events.
#[derive(Clone)]
pub(super) struct Topology {
    view: watch::Sender<View>,
    /// The open connections, and those in use. They can be below zero for a moment: events of two threads may
    /// arrive in either order.
    open: Arc<AtomicI32>,
    used: Arc<AtomicI32>,
}

struct View {
    writable: Writable,
    /// Why a server can't be reached, if one can't.
    failure: Option<Error>,
    /// A server refused the login, and no call has dealt with it yet.
    is_refused: bool,
    /// Another client has replaced this one.
    is_retired: bool,
}

impl View {
    fn update(&mut self, topology: &TopologyDescription) {
        let servers = topology.servers();
        let mut failures = servers.iter().filter_map(|(address, server)| Some((address, server.error()?)));
        self.writable = Writable::of(topology);
        self.is_refused |= failures.clone().any(|(_, error)| error::refuses_login(error));
        self.failure = failures.next().map(|(address, error)| {
            let error = error::of_request(error, Effect::Read);
            let message = error.to_string().replacen(SERVER, &format!("{SERVER} at {address}"), 1);
            error.with_message(message)
        });
    }

    /// None while a call has to wait. `must_stay` is for calls that can't move to another client.
    fn state(&self, must_stay: bool) -> Option<Result<Writable, NoPermit>> {
        match self.writable {
            _ if self.is_retired && !must_stay => Some(Err(NoPermit::Retired)),
            _ if self.is_refused && !must_stay => Some(Err(NoPermit::Refused)),
            Writable::None => None,
            writable => Some(Ok(writable)),
        }
    }
}

/// Why no permit was given.
pub(super) enum NoPermit {
    /// A new pool has replaced this one.
    Retired,
    /// A server refused the login.
    Refused,
    Failed(Error),
}

impl Topology {
    pub(super) fn new() -> Self {
        let view = View { writable: Writable::None, failure: None, is_refused: false, is_retired: false };
        Self { view: watch::Sender::new(view), open: Arc::default(), used: Arc::default() }
    }

    pub(super) fn server_events(&self) -> EventHandler<SdamEvent> {
        let view = self.view.clone();
        EventHandler::callback(move |event| {
            if let SdamEvent::TopologyDescriptionChanged(change) = event {
                view.send_modify(|view| view.update(&change.new_description));
            }
        })
    }

    pub(super) fn pool_events(&self) -> EventHandler<CmapEvent> {
        let (open, used) = (self.open.clone(), self.used.clone());
        EventHandler::callback(move |event| {
            let (counter, change) = match event {
                CmapEvent::ConnectionCreated(_) => (&open, 1),
                CmapEvent::ConnectionClosed(_) => (&open, -1),
                CmapEvent::ConnectionCheckedOut(_) => (&used, 1),
                CmapEvent::ConnectionCheckedIn(_) => (&used, -1),
                _ => return,
            };
            counter.fetch_add(change, Ordering::Relaxed);
        })
    }

    pub(super) fn writable(&self) -> Writable {
        self.view.borrow().writable
    }

    /// Waits for a server that accepts writes or, unless the call must stay, until another client is needed.
    pub(super) async fn until_writable(&self, must_stay: bool) -> Result<Writable, NoPermit> {
        if let Some(state) = self.view.borrow().state(must_stay) {
            return state;
        }
        let mut view = self.view.subscribe();
        let changed = view.wait_for(|view| view.state(must_stay).is_some()).await;
        // It never fails: `self` holds the sender.
        changed.ok().and_then(|view| view.state(must_stay)).unwrap_or(Err(NoPermit::Retired))
    }

    pub(super) fn is_refused(&self) -> bool {
        self.view.borrow().is_refused
    }

    /// Marks a refused login as dealt with.
    pub(super) fn clear_refusal(&self) {
        self.view.send_modify(|view| view.is_refused = false);
    }

    pub(super) fn retire(&self) {
        self.view.send_modify(|view| view.is_retired = true);
    }

    /// Why no server accepts writes, as far as that is known.
    pub(super) fn selection_error(&self) -> Error {
        self.view.borrow().failure.clone().unwrap_or_else(error::no_primary)
    }

    /// The number of open connections, and how many of them are idle.
    pub(super) fn connections(&self) -> (u32, u32) {
        let count = |counter: &AtomicI32| u32::try_from(counter.load(Ordering::Relaxed)).unwrap_or(0);
        let (open, used) = (count(&self.open), count(&self.used));
        (open, open.saturating_sub(used))
    }
}
