//! A client of the driver with a fair queue in front, counted and replaced by one of another size.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use mongodb::{
    Client, Collection, Database,
    bson::RawDocumentBuf,
    options::{Tls, WriteConcern},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    MongoDb, MongoDbOptions, error,
    roots::Roots,
    session::Transactions,
    topology::{News, Topology, Writable},
};
use crate::{
    Error, ErrorKind, PoolStats, Pooled, Result,
    backend::remote::{Effect, Waiting},
};

/// One client of the driver, and who may use it.
///
/// The driver's own queue can't be left in time with the knowledge that nothing was sent; in this one it can. A client can't
/// be resized, so another one takes its place, and this one ends with the last call on it.
pub(super) struct Lane {
    pub(super) client: Client,
    pub(super) database: Database,
    pub(super) credentials: Collection<RawDocumentBuf>,
    pub(super) configs: Collection<RawDocumentBuf>,
    pub(super) usage: Collection<RawDocumentBuf>,
    pub(super) topology: Topology,
    /// Whether queries of many documents see one moment.
    pub(super) wants_snapshots: bool,
    pub(super) write_concern: WriteConcern,
    pub(super) transactions: Transactions,
    /// What it logs in with: the driver takes it once.
    pub(super) password: Option<String>,
    patience: Duration,
    pub(super) max: u32,
    turns: Arc<Semaphore>,
    waiting: AtomicU32,
}

/// The right to have one command under way on this client.
pub(super) struct Lease {
    pub(super) lane: Arc<Lane>,
    /// The kind of server that takes it, as it was a moment ago.
    pub(super) writable: Writable,
    _turn: Option<OwnedSemaphorePermit>,
}

impl std::ops::Deref for Lease {
    type Target = Lane;

    fn deref(&self) -> &Lane {
        &self.lane
    }
}

/// Why there is no lease.
pub(super) enum NoLease {
    Retired,
    /// A server refused the login.
    Refused,
    Failed(Error),
}

impl Lane {
    pub(super) async fn new(config: &MongoDbOptions, max: u32, password: Option<String>) -> Result<Self> {
        if max == 0 {
            return Err(Error::new(ErrorKind::InvalidValue, "a pool has at least one connection"));
        }
        let topology = Topology::new();
        // The names of the servers may have to be looked up.
        let options =
            tokio::time::timeout(config.deadline, config.driver_options(max, password.clone())).await;
        let mut options = options.map_err(|_| {
            Error::new(ErrorKind::Timeout, "the names of the MongoDB servers were not resolved in time")
        })??;
        options.sdam_event_handler = Some(topology.servers());
        options.cmap_event_handler = Some(topology.pools());
        // The driver reads the file once, here.
        let roots = match &mut options.tls {
            Some(Tls::Enabled(tls)) if config.trusts_this_machine() => {
                let roots = Roots::of_this_machine().await?;
                tls.ca_file_path = Some(roots.path().to_owned());
                Some(roots)
            }
            _ => None,
        };
        let client =
            Client::with_options(options).map_err(|error| error::of_request(&error, Effect::Read))?;
        drop(roots);
        let database = client.database(&config.database);
        Ok(Self {
            credentials: database.collection("credentials"),
            configs: database.collection("configs"),
            usage: database.collection("usage"),
            database,
            client,
            topology,
            write_concern: config.write_concern()?,
            wants_snapshots: config.wants_snapshots(),
            transactions: Transactions::default(),
            password,
            patience: config.server_selection_timeout,
            max,
            turns: Arc::new(Semaphore::new(max as usize)),
            waiting: AtomicU32::new(0),
        })
    }

    /// A turn, in the order in which it was asked for, when there is a server that takes writes.
    pub(super) async fn lease(self: Arc<Self>) -> Result<Lease, NoLease> {
        // Never past those who wait: a permit that is given back is theirs before it is free.
        let turn = match self.turns.clone().try_acquire_owned() {
            Ok(turn) => turn,
            Err(_) => {
                let _waits = Waiting::begin(&self.waiting);
                self.turns.clone().acquire_owned().await.map_err(|_| NoLease::Retired)?
            }
        };
        self.leased(Some(turn)).await
    }

    /// The same for whoever must stay on this lane. When another one has taken its place there is no queue any more.
    pub(super) async fn lease_kept(self: Arc<Self>) -> Result<Lease, NoLease> {
        match self.clone().lease().await {
            Err(NoLease::Retired | NoLease::Refused) => self.leased(None).await,
            result => result,
        }
    }

    async fn leased(self: Arc<Self>, turn: Option<OwnedSemaphorePermit>) -> Result<Lease, NoLease> {
        let found = tokio::time::timeout(self.patience, self.topology.until_writable(turn.is_none())).await;
        match found.map_err(|_| NoLease::Failed(self.topology.why_none()))? {
            News::Writable(writable) => Ok(Lease { lane: self, writable, _turn: turn }),
            News::Refused => Err(NoLease::Refused),
            News::Retired => Err(NoLease::Retired),
        }
    }

    /// Not on a standalone server, which has none, and not if they could miss what was just written: there what changes meanwhile
    /// may be seen or not.
    pub(super) fn has_snapshots(&self, writable: Writable) -> bool {
        self.wants_snapshots && writable != Writable::Standalone
    }

    /// Sends those who wait away.
    pub(super) fn retire(&self) {
        self.turns.close();
        self.topology.retire();
    }

    fn stats(&self) -> PoolStats {
        let (open, idle) = self.topology.connections();
        PoolStats { max: self.max, open, idle, waiting: self.waiting.load(Ordering::Relaxed) }
    }
}

impl Pooled for MongoDb {
    /// Of a replica set, the connections to all members; the driver's own, which watch the servers, are not counted.
    async fn pool_stats(&self) -> Result<PoolStats> {
        Ok(self.server.lane()?.stats())
    }

    /// Calls under way finish on the old connections, and those that wait go on waiting for new ones.
    async fn resize_pool(&self, max: u32) -> Result<()> {
        // Held, so that a store which is being closed does not get a new pool afterwards.
        let _call = self.call()?;
        self.server.resize(max).await
    }
}
