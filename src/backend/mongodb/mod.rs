//! [`MongoDb`]: documents that are readable in a shell, and transactions on replica sets.

mod command;
mod commit;
mod conditional;
mod config;
mod counters;
mod credential;
mod document;
mod error;
mod export;
mod increments;
mod lease;
mod legacy;
mod options;
mod parts;
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
mod watch;

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

const LABEL: &str = "mongodb";

/// How many chunks of a batch are sent at once, each on its own connection.
const CONCURRENT_CHUNKS: usize = 4;

/// A store in a MongoDB database, version 5.0 or later, for many processes at once, with failover, and with
/// transactions on replica sets and sharded clusters.
///
#[doc = include_str!("docs.md")]
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
        LABEL
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
    const SCHEMES: &'static [&'static str] = options::SCHEMES;

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

/// Opening is several calls under one deadline. They time out first, so that the error names the server that
/// can't be reached.
const OPEN: Operation = Operation::new("open", OperationKind::Read);
