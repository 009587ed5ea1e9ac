//! A client of the driver behind a fair queue of calls.

use std::{sync::Arc, time::Duration};

use mongodb::{
    Client, Collection, Database,
    bson::RawDocumentBuf,
    error::Result as DriverResult,
    event::{EventHandler, command::CommandEvent},
    options::{Tls, WriteConcern},
};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    MongoDb, MongoDbOptions, error,
    roots::roots_of_this_machine,
    session::{Session, Transactions},
    topology::{NoPermit, Topology, Writable},
};
use crate::{
    Error, ErrorKind, PoolStats, Pooled, Result,
    backend::remote::{Effect, current::Retire, queue::Queue},
};

/// One client of the driver, and the queue of calls for it.
///
/// A call that times out in the driver's own queue can't know whether it was sent; in this one it knows that
/// it was not. A client can't be resized, so a new pool replaces this one, which ends with its last call.
pub(super) struct Pool {
    pub(super) client: Client,
    pub(super) database: Database,
    pub(super) credentials: Collection<RawDocumentBuf>,
    pub(super) configs: Collection<RawDocumentBuf>,
    pub(super) usage: Collection<RawDocumentBuf>,
    pub(super) leases: Collection<RawDocumentBuf>,
    pub(super) topology: Topology,
    /// Whether queries of many documents read a snapshot, if the server has snapshots.
    pub(super) wants_snapshots: bool,
    pub(super) write_concern: WriteConcern,
    pub(super) transactions: Transactions,
    /// The password that the driver logs in with.
    pub(super) password: Option<String>,
    server_selection_timeout: Duration,
    pub(super) max: u32,
    queue: Queue,
}

/// The right to have one command under way on this client.
pub(super) struct Permit {
    pub(super) pool: Arc<Pool>,
    /// The kind of server that accepted writes when the permit was given.
    pub(super) writable: Writable,
    _slot: Option<OwnedSemaphorePermit>,
}

impl std::ops::Deref for Permit {
    type Target = Pool;

    fn deref(&self) -> &Pool {
        &self.pool
    }
}

impl Permit {
    /// Begins a transaction, or a session without one on a standalone server, which has none.
    pub(super) async fn begin_session(&self) -> DriverResult<Session> {
        let write_concern = self.writable.has_transactions().then(|| self.write_concern.clone());
        Session::begin(&self.client, write_concern, &self.transactions).await
    }
}

impl Pool {
    pub(super) async fn new(options: &MongoDbOptions, max: u32, password: Option<String>) -> Result<Self> {
        Self::observed(options, max, password, None).await
    }

    /// A pool that tells of the commands that the driver sends.
    pub(super) async fn observed(
        options: &MongoDbOptions,
        max: u32,
        password: Option<String>,
        commands: Option<EventHandler<CommandEvent>>,
    ) -> Result<Self> {
        let queue = Queue::new(max)?;
        let topology = Topology::new();
        // It may ask the DNS for the servers' names.
        let resolved = options.driver_options(max, password.clone());
        let resolved = tokio::time::timeout(options.deadline, resolved).await;
        let mut driver = resolved.map_err(|_| {
            Error::new(ErrorKind::Timeout, "timed out resolving the names of the MongoDB servers")
        })??;
        driver.sdam_event_handler = Some(topology.server_events());
        driver.cmap_event_handler = Some(topology.pool_events());
        driver.command_event_handler = commands;
        // `Client::with_options` reads the file, once.
        let roots = match &mut driver.tls {
            Some(Tls::Enabled(tls)) if options.trusts_this_machine() => {
                let roots = roots_of_this_machine().await?;
                tls.ca_file_path = Some(roots.to_path_buf());
                Some(roots)
            }
            _ => None,
        };
        let client = Client::with_options(driver).map_err(|error| error::of_request(&error, Effect::Read))?;
        drop(roots);
        let database = client.database(&options.database);
        Ok(Self {
            credentials: database.collection("credentials"),
            configs: database.collection("configs"),
            usage: database.collection("usage"),
            leases: database.collection("leases"),
            database,
            client,
            topology,
            write_concern: options.write_concern()?,
            wants_snapshots: options.wants_snapshots(),
            transactions: Transactions::default(),
            password,
            server_selection_timeout: options.server_selection_timeout,
            max,
            queue,
        })
    }

    /// Waits for a free slot, first come, first served, and then for a server that accepts writes. A call
    /// that must stay on this pool uses it even if it was replaced: then it has no queue, and the call needs
    /// no slot.
    pub(super) async fn acquire(self: Arc<Self>, must_stay: bool) -> Result<Permit, NoPermit> {
        let slot = self.queue.permit().await;
        if slot.is_none() && !must_stay {
            return Err(NoPermit::Retired);
        }
        let writable = self.topology.until_writable(must_stay);
        let writable = tokio::time::timeout(self.server_selection_timeout, writable).await;
        let writable = writable.map_err(|_| NoPermit::Failed(self.topology.selection_error()))??;
        Ok(Permit { pool: self, writable, _slot: slot })
    }

    /// False on a standalone server, which has no snapshots, and if a snapshot could lack the latest writes.
    /// Queries without one may or may not see concurrent changes.
    pub(super) fn has_snapshots(&self, writable: Writable) -> bool {
        self.wants_snapshots && writable.has_transactions()
    }
}

impl Retire for Pool {
    fn retire(&self) {
        self.queue.close();
        self.topology.retire();
    }
}

impl Pooled for MongoDb {
    /// Counts connections to all members of a replica set, without those by which the driver monitors them.
    async fn pool_stats(&self) -> Result<PoolStats> {
        let pool = self.server.pool()?;
        let (open, idle) = pool.topology.connections();
        Ok(PoolStats { max: pool.max, open, idle, waiting: pool.queue.waiting() })
    }

    /// Calls under way finish on the old connections; waiting calls go on to wait for new ones.
    async fn resize_pool(&self, max: u32) -> Result<()> {
        // Closing the store waits for this call, so that it gets no new pool afterwards.
        let _call = self.call()?;
        self.server.resize(max).await
    }
}
