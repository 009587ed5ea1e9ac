//! [`Postgres`]: one statement per operation, over a fair pool, with transactions.

mod bell;
mod changes;
mod conditional;
mod config;
mod connection;
mod credential;
mod dial;
mod error;
mod export;
mod lease;
mod legacy;
mod listing;
mod migrate;
mod options;
mod plan;
mod server;
mod session;
mod settings;
mod statement;
mod stats;
mod tls;
mod transaction;
mod usage;
mod watch;

use std::{sync::Arc, time::Duration};

pub use migrate::SchemaStatus;
pub use options::{ChannelBinding, Isolation, PostgresOptions, SslMode, SslNegotiation};
use server::Server;
use statement::{Sql, column};
pub use transaction::PostgresTransaction;

use crate::{
    Backend, Error, ErrorKind, Open, Result, StorageStats, backend::remote::Effect, layer::time_left,
};

const LABEL: &str = "postgres";

/// The number of chunks of a batch that run concurrently, each on a connection.
const CONCURRENT_CHUNKS: usize = 4;

/// A store in a PostgreSQL database: for many processes at once, with transactions and SQL access.
///
#[doc = include_str!("docs.md")]
#[derive(Clone)]
pub struct Postgres {
    server: Arc<Server>,
    deadline: Duration,
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl Backend for Postgres {
    fn label(&self) -> &'static str {
        LABEL
    }

    /// `database|schema`, if the options name the database or the user, whose name is its default.
    fn namespace(&self) -> Option<&str> {
        self.server.namespace.as_deref()
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    async fn health(&self) -> Result<()> {
        let call = self.call()?;
        let mut connection = call.connection().await?;
        let reply = call.run_on(&mut connection, Effect::Read, Sql::Health, &[]).await?;
        if column(reply.row()?, 0)? {
            connection.retire_read_only();
            return Err(error::of_code("25006"));
        }
        Ok(())
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.describe().await
    }

    async fn close(&self) -> Result<()> {
        self.server.feed.close();
        self.server.close(time_left(self.deadline)).await
    }
}

impl Postgres {
    /// Creates a handle without connecting. `is_for_schema`: it reads and writes no records.
    async fn new(options: PostgresOptions, is_for_schema: bool) -> Result<Self> {
        let (deadline, server) = (options.deadline, Server::new(options, is_for_schema).await?);
        Ok(Self { deadline, server })
    }

    /// Fails if the server is too old or the database is not UTF-8.
    async fn check_server(&self) -> Result<()> {
        let reply = self.call()?.run(Effect::Read, Sql::Server, &[]).await?;
        let row = reply.row()?;
        let (version, encoding): (i64, &str) = (column(row, 0)?, column(row, 1)?);
        if version < 130_000 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the PostgreSQL server is too old: version 13 or later is needed",
            ));
        }
        if encoding != "UTF8" {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the database's encoding is not UTF8: create one with `ENCODING 'UTF8'`",
            ));
        }
        Ok(())
    }
}

impl Open for Postgres {
    type Options = PostgresOptions;
    const SCHEMES: &'static [&'static str] = options::SCHEMES;

    async fn open(options: PostgresOptions) -> Result<Self> {
        let postgres = Self::new(options.clone(), false).await?;
        postgres.check_server().await?;
        if postgres.has_latest_schema().await? {
            return Ok(postgres);
        }
        // First, or the connection that migrates would be one more than the options allow.
        postgres.close().await?;
        Self::migrate(options.clone()).await?;
        Self::new(options, false).await
    }
}
