//! [`Postgres`]: one statement per operation, over a fair pool, with transactions.

mod config;
mod connection;
mod credential;
mod dial;
mod error;
mod export;
mod legacy;
mod migrate;
mod options;
mod plan;
mod pool;
mod server;
mod session;
mod settings;
mod statement;
mod stats;
mod tls;
mod transaction;
mod usage;

use std::{sync::Arc, time::Duration};

pub use migrate::SchemaStatus;
pub use options::{ChannelBinding, Isolation, PostgresOptions, SslMode, SslNegotiation};
use server::Server;
use statement::{Sql, column};
pub use transaction::PostgresTransaction;

use crate::{
    Backend, Error, ErrorKind, Open, Result, StorageStats, backend::remote::Effect, layer::time_left,
};

/// The number of chunks of a batch that run concurrently, each on a connection.
const CONCURRENT_CHUNKS: usize = 4;

/// A store in a PostgreSQL database, version 13 or later: for many processes at once, with transactions, and
/// SQL beside it.
///
/// Open it with `postgres://user:password@host:port/database?sslmode=verify-full`, or a [`PostgresOptions`].
/// It can do everything but cache.
///
/// # How it works
///
/// An operation is one statement, a batch one statement for each thousand items, a transaction its statements
/// and one round trip each for begin and commit. Statements are prepared once a connection; with the option
/// `pgbouncer` they are not, so that a pooler may hand out another connection for each. Connections are
/// pooled by bb8, behind a queue in which whoever came first goes first. A connection on which something was
/// cut off (a deadline, a dropped future) is used again once its reply has come; if that takes longer than a
/// moment the server is told to stop, and the connection is closed.
///
/// # Where things are
///
/// In a schema of its own, `gateway_storage` unless the configuration says otherwise:
///
/// | table | columns |
/// |---|---|
/// | `credentials` | `id text`, `value json` |
/// | `configs` | `key text`, `value json` |
/// | `usage` | `key text`, `field text`, `count bigint` |
/// | `plans` | `key text`, `payload text`, `mutations bigint`, `stage text`, `applied timestamptz`, `expires timestamptz`, `rolled_back timestamptz`, `keys text[]`, `changes json` |
/// | `plan_audit` | `number bigint`, `key`, `action`, `status`, `stage`, `source text`, `finished timestamptz`, `micros bigint`, `mutations bigint`, `payload`, `error text` |
/// | `schema_migrations` | `version`, `checksum`, `applied` |
///
/// The type is `json` and not `jsonb`, which changes numbers and refuses U+0000; so what comes back is equal
/// to what was stored. It can be queried all the same:
///
/// ```sql
/// SELECT id, value->>'project_id' AS project FROM gateway_storage.credentials WHERE value->>'disabled' = 'true';
/// SELECT key, sum(count) FROM gateway_storage.usage WHERE field = 'tokens' GROUP BY key ORDER BY 2 DESC LIMIT 10;
/// ```
///
/// (The server can't take apart a document with U+0000 somewhere: filter such ones out by their `id`.) Keys
/// are compared by their bytes (`COLLATE "C"`).
///
/// The schema is made and migrated by whoever opens the store first, under an advisory lock. A database that
/// a later version of this crate has migrated is refused. The role needs `CREATE` on the database, or a
/// schema that it owns.
///
/// # What it promises and refuses
///
/// - `Ok` means committed. [`stats`](Backend::stats) warns of settings with which that can be lost.
/// - A batch is applied chunk by chunk, of up to a thousand items; a chunk is all or nothing, but for
///   counters that overflow. Rows are taken in the order of their keys, so that batches can't wait for each
///   other in a circle.
/// - An export is a snapshot: the store as it was when the stream was first asked for a record.
/// - A call that gets no connection, or that the server refuses, is
///   [`NotApplied`](crate::Outcome::NotApplied); a write that was sent and has no answer is
///   [`Unknown`](crate::Outcome::Unknown). A moment before its deadline a write is stopped, so that the
///   server says that nothing happened (not with `pgbouncer`). For a commit the server is asked what became
///   of it.
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
        "postgres"
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
        self.server.close(time_left(self.deadline)).await
    }
}

impl Postgres {
    /// Creates a handle without connecting.
    async fn new(options: PostgresOptions) -> Result<Self> {
        Ok(Self { deadline: options.deadline, server: Arc::new(Server::new(options).await?) })
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

    async fn open(options: PostgresOptions) -> Result<Self> {
        let create = options.create;
        let postgres = Self::new(options).await?;
        postgres.check_server().await?;
        postgres.ensure_schema(create).await?;
        Ok(postgres)
    }
}
