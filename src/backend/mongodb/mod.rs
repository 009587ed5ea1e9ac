//! [`MongoDb`]: documents that read well in a shell, and transactions on replica sets.

mod command;
mod commit;
mod config;
mod credential;
mod document;
mod error;
mod export;
mod legacy;
mod options;
mod plan;
mod plan_session;
mod pool;
mod roots;
mod scan;
mod schema;
mod server;
mod session;
mod stats;
mod topology;
mod transaction;
mod usage;

use std::{sync::Arc, time::Duration};

use mongodb::bson::doc;
pub use options::{MongoDbOptions, ReadLevel, WriteLevel};
use pool::Permit;
use server::Server;
pub use transaction::MongoDbTransaction;

use crate::{
    Backend, Open, Result, StorageStats,
    layer::{Operation, OperationKind, time_left, within},
};

/// How many chunks of a batch are sent at once, each on its own connection.
const CONCURRENT_CHUNKS: usize = 4;

/// A store in a MongoDB database, version 5.0 or later: for many processes at once, with failover, and transactions on replica
/// sets and sharded clusters.
///
/// Open it with `mongodb://user:password@host1,host2/database?replicaSet=rs0`, `mongodb+srv://..`, or a [`MongoDbOptions`]. It
/// can do everything but cache.
///
/// # How it works
///
/// An operation is one command, a batch one command for each thousand items (deletes: a transaction), over the official driver. Writes
/// are acknowledged by the majority and their journals, and reads see what the majority has, unless the configuration says
/// otherwise. Calls wait for their turn in a queue in which whoever came first goes first. While no server takes writes (an
/// election takes some seconds) calls wait for one. On a replica set the driver sends a single write once more if its
/// connection is lost; the server knows it by its number and carries it out once. A batch is not sent again.
///
/// # Where things are
///
/// In a database of its own, `gateway_storage` unless the configuration says otherwise:
///
/// | collection | documents |
/// |---|---|
/// | `credentials` | `{ _id: <id>, value: { .. } }` |
/// | `configs` | `{ _id: <key>, value: <any> }` |
/// | `usage` | `{ _id: <key>, counts: { <field>: <count>, .. } }` |
/// | `plans` | `{ _id: <key>, payload, mutations, stage, applied, expires, rolled_back, changes: <JSON text> }` |
/// | `plan_audit` | `{ _id: <number>, key, action, status, stage, source, finished, micros, mutations, payload, error }` |
/// | `meta` | `{ _id: "schema", version: 1 }`; `{ _id: "plans", number, now, lease }` |
///
/// In `mongosh` a credential looks as it did when it was stored:
///
/// ```text
/// gateway_storage> db.credentials.findOne({ _id: "alice" })
/// { _id: 'alice', value: { access_token: 'ya29.xxx', expires_at: Long('1767225600000'), project_id: 'p-1' } }
/// gateway_storage> db.credentials.find({ "value.project_id": "p-1" }, { _id: 1 })
/// [ { _id: 'alice' } ]
/// gateway_storage> db.usage.findOne({ _id: "alice" })
/// { _id: 'alice', counts: { requests: Long('42'), 'tokens%2Ein': Long('1234') } }
/// ```
///
/// What BSON can't hold (a number above `i64::MAX`, a name with U+0000), or the server would give a meaning to (a name that
/// begins with `$`), makes the whole value JSON text: `{ _id: <key>, json: "{\"$a\":1}" }`. So every value comes back equal.
/// In the names of counters `.`, `$` and `%` are percent-encoded. A document that another program changed to what JSON does not
/// have (a date, an object id) is [`Corrupt`](crate::ErrorKind::Corrupt).
///
/// Two indexes on `plans` spare each plan the reading of all records of others. They are made when a store is opened, also one of
/// an earlier version, unless `create=false`. A user without the right to make them (`createIndex`, which `readWrite` has) can
/// do everything, but a plan takes longer the more others were applied in their time to live (14 days unless told otherwise).
///
/// The database is made ready by whoever opens the store first; the user needs the role `readWrite` on it. One that holds
/// collections of these names from another program, or was made by a later version of this crate, is refused.
///
/// # What it promises and refuses
///
/// - `Ok` means that the majority has it in its journals: no failover loses it. [`stats`](Backend::stats) warns of settings
///   with which one can.
/// - A batch is applied document by document.
/// - A plan is one transaction. On a standalone server, which has none, it is two stages under a lease: its record, then its
///   values, but for those that somebody changes meanwhile: those come after the plan. Readers may see a part of it until it is
///   done. If the process dies, the next plan on the store finishes it, when the lease of ten seconds is over; until then
///   others are [`Busy`](crate::ErrorKind::Busy), and the values are those that were written.
/// - The record of a plan is one document: what it replaces and leaves is at most 15 MiB of JSON together.
/// - A usage record is one document, so its counters (20,000 to 60,000 of the longest names) fit in 16 MiB; more are
///   [`TooLarge`](crate::ErrorKind::TooLarge).
/// - A list, or a chunk of a batch of reads, is what was there at one moment; an export what was there when the stream was first
///   asked for a record. Not on a standalone server, which has no snapshots, and not if reads or writes are of less than the
///   majority.
/// - A call that gets no turn, finds no server that takes writes, or that the server refuses, is
///   [`NotApplied`](crate::Outcome::NotApplied); a write that was sent and has no reply, or whose acknowledgement by the
///   majority failed, is [`Unknown`](crate::Outcome::Unknown). So is one that the driver could not send, but for a refused
///   connection: it does not say. A commit is sent until it is answered.
/// - Of a batch behind a router to shards (mongos), items that the router calls failed are Unknown, unless something is wrong
///   with the item itself: the router says so of all items of a shard that answered too late, or not. **No router was
///   tried**: the tests have a relay before a replica set that answers as one does by its source.
/// - Nothing is logged by this crate or by the driver as it is built here. If another crate of the application turns the driver's
///   feature `tracing-unstable` on, the driver logs commands at DEBUG, credentials and all: filter its target `mongodb` out.
/// - The server's own log has each command that took longer than its `slowms` (100 ms unless it is told otherwise), credentials and
///   all, unless the server runs with `redactClientLogData` (Enterprise, Atlas) or a high `slowms`; `system.profile` has it while the
///   database is profiled. The statistics warn of both, unless `slowms` is 10 s or more.
/// - The server gives a write up a little before our deadline. One whose future is dropped goes on until then. A write that a
///   server does not reply at all keeps its turn for five seconds more, and not longer.
#[derive(Clone)]
pub struct MongoDb {
    server: Arc<Server>,
    deadline: Duration,
}

impl std::fmt::Debug for MongoDb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MongoDb").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl Backend for MongoDb {
    fn label(&self) -> &'static str {
        "mongodb"
    }

    fn namespace(&self) -> Option<&str> {
        Some(&self.server.options.database)
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Asks the server that accepts writes.
    async fn health(&self) -> Result<()> {
        let call = self.call()?;
        let hello = |permit: Permit| async move { permit.database.run_command(doc! { "hello": 1 }).await };
        let hello = call.read(hello).await?;
        match hello.get_bool("isWritablePrimary") {
            Ok(true) => Ok(()),
            _ => Err(error::no_primary()),
        }
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.describe().await
    }

    async fn close(&self) -> Result<()> {
        self.server.close(time_left(self.deadline)).await
    }
}

impl Open for MongoDb {
    type Options = MongoDbOptions;

    async fn open(options: MongoDbOptions) -> Result<Self> {
        let (create, deadline) = (options.create, options.deadline);
        let opened = async {
            let mongodb = Self::connect(options).await?;
            mongodb.ready_schema(create).await?;
            Ok(mongodb)
        };
        within(deadline, OPEN, opened).await
    }
}

impl MongoDb {
    /// Connects to the servers, and refuses those that can't hold the data.
    async fn connect(options: MongoDbOptions) -> Result<Self> {
        let deadline = options.deadline;
        let mongodb = Self { server: Arc::new(Server::new(options).await?), deadline };
        mongodb.check_server().await?;
        Ok(mongodb)
    }
}

/// Opening is several calls under one deadline. They time out first, so that the error names the server that can't be reached.
const OPEN: Operation = Operation::new("open", OperationKind::Read);
