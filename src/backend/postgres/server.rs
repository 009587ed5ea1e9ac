//! Calls to the server: with deadlines, on pooled connections.

use std::{
    pin::pin,
    sync::{Arc, Weak, atomic::AtomicU32},
    time::Duration,
};

use futures_util::TryStreamExt;
use tokio_postgres::{Client, Error as DriverError, RowStream};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    LABEL, Postgres,
    bell::{Bell, Rope},
    connection::Connection,
    dial::Dialer,
    error::SERVER,
    options::PostgresOptions,
    settings::{begin, begin_plan, lock_of},
    statement::{Parameter, Reply, Sql, Texts, column},
    tls,
};
use crate::{
    PoolStats, Pooled, Result,
    backend::{
        feed::Feed,
        remote::{
            Effect, call, connection_timeout,
            current::Current,
            gate::Gate,
            pool::{Lease, Limits, Pool},
        },
    },
};

pub(super) struct Server {
    pub(super) options: PostgresOptions,
    pub(super) tls: MakeRustlsConnect,
    /// The name of the database and schema in telemetry.
    pub(super) namespace: Option<String>,
    pub(super) texts: Texts,
    /// The SQL that begins a transaction.
    pub(super) begin: String,
    /// The SQL that begins the transaction of a plan.
    pub(super) begin_plan: String,
    /// The number of leases that were claimed with success.
    pub(super) claims: AtomicU32,
    /// Tells the watchers of this process.
    pub(super) feed: Feed,
    /// Wakes the watchers of all processes.
    pub(super) bell: Bell,
    /// This one, for tasks that do not keep it open.
    pub(super) own: Weak<Self>,
    pool: Current<Pool<Dialer>>,
    /// The running calls, which closing waits for.
    calls: Gate,
}

impl Server {
    pub(super) async fn new(options: PostgresOptions, is_for_schema: bool) -> Result<Arc<Self>> {
        let texts = Texts::new(&options.quoted_schema()?);
        let tls = tls::connector(&options).await?;
        let dialer = Dialer::new(&options, tls.clone(), is_for_schema)?;
        let max = if is_for_schema { 1 } else { options.pool_size };
        let pool = Current::new(pool(dialer, &options, max)?);
        let (begin, begin_plan) = (begin(&options), begin_plan(&options)?);
        let database = options.dbname.as_ref().or(options.user.as_ref());
        let namespace = database.map(|database| format!("{database}|{}", options.schema));
        let (claims, calls) = (AtomicU32::new(0), Gate::new());
        let (feed, bell) = (Feed::new(LABEL), Bell::new());
        Ok(Arc::new_cyclic(|own| Self {
            options,
            tls,
            namespace,
            texts,
            begin,
            begin_plan,
            claims,
            feed,
            bell,
            own: own.clone(),
            pool,
            calls,
        }))
    }

    pub(super) fn pool(&self) -> Result<Arc<Pool<Dialer>>> {
        self.pool.get()
    }

    pub(super) fn call(&self, deadline: Duration) -> Result<Call<'_>> {
        Call::begin(self, &self.calls, deadline)
    }

    /// The channel of notifications after changes.
    pub(super) fn channel(&self) -> String {
        format!("gateway_storage_{:016x}", lock_of(&self.options.schema).cast_unsigned())
    }

    /// Wakes watchers, after a change.
    pub(super) fn ring(&self) {
        self.bell.ring(&self.own);
    }

    /// Waits for the running calls until the deadline, then disconnects.
    pub(super) async fn close(&self, deadline: Duration) -> Result<()> {
        let result = self.calls.close_within(deadline).await;
        self.pool.close();
        result
    }
}

fn pool(dialer: Dialer, options: &PostgresOptions, max: u32) -> Result<Pool<Dialer>> {
    let PostgresOptions { idle_timeout, max_lifetime, .. } = *options;
    Pool::new(dialer, &Limits { max, idle_timeout, max_lifetime })
}

impl Rope for Server {
    async fn is_watched(&self) -> Result<bool> {
        let call = self.call(self.options.deadline)?;
        column(call.run(Effect::Read, Sql::IsWatched, &[]).await?.row()?, 0)
    }

    async fn notify(&self) -> Result<bool> {
        let (call, channel) = (self.call(self.options.deadline)?, self.channel());
        column(call.run(Effect::Read, Sql::Ring, &[Parameter::Text(&channel)]).await?.row()?, 2)
    }
}

impl Pooled for Postgres {
    async fn pool_stats(&self) -> Result<PoolStats> {
        Ok(self.server.pool()?.stats())
    }

    /// Running calls finish on the old connections, and waiting calls wait for new ones.
    async fn resize_pool(&self, max: u32) -> Result<()> {
        // Held, so that a store that is being closed does not get a new pool.
        let _call = self.call()?;
        let (server, old) = (&self.server, self.server.pool()?);
        let dialer = Dialer::new(&server.options, server.tls.clone(), false)?;
        server.pool.replace(&old, pool(dialer, &server.options, max)?)
    }
}

/// A connection in use.
pub(super) type PooledConnection = Lease<Dialer>;

/// A call of an operation on the server.
pub(super) type Call<'s> = call::Call<'s, Server>;

impl Postgres {
    pub(super) fn call(&self) -> Result<Call<'_>> {
        self.server.call(self.deadline)
    }
}

impl Call<'_> {
    /// Waits for a connection until the deadline.
    pub(super) async fn connection(&self) -> Result<PooledConnection> {
        self.wait(self.server.pool.lease(), || connection_timeout(SERVER)).await
    }

    /// Runs one statement on any connection, in one round trip.
    pub(super) async fn run(
        &self,
        effect: Effect,
        statement: Sql,
        parameters: &[Parameter<'_>],
    ) -> Result<Reply> {
        let mut connection = self.connection().await?;
        let result = self.run_on(&mut connection, effect, statement, parameters).await;
        // Also after an error: the write may have been applied.
        if statement.is_watched() {
            self.server.ring();
        }
        result
    }

    /// Runs one statement on this connection.
    pub(super) async fn run_on(
        &self,
        connection: &mut Connection,
        effect: Effect,
        statement: Sql,
        parameters: &[Parameter<'_>],
    ) -> Result<Reply> {
        let text = self.server.texts.of(statement);
        if self.server.options.pgbouncer {
            let typed = parameters.iter().map(|parameter| (parameter, parameter.type_of()));
            let query = async |client: &Client| collect(client.query_typed_raw(text, typed).await?).await;
            return connection.exchange(effect, self.deadline, None, query).await;
        }
        loop {
            let was_prepared = connection.is_prepared(statement);
            let prepared = connection.prepare(statement, text, self.deadline).await?;
            let query = async |client: &Client| collect(client.query_raw(&prepared, parameters).await?).await;
            let cancel_at = connection.cancel_at(effect, self.deadline);
            let result = connection.exchange(effect, self.deadline, cancel_at, query).await;
            // A migration changed the statement's columns. The server reports that instead of running it.
            let is_outdated =
                was_prepared && result.as_ref().is_err_and(|error| error.code() == Some("0A000"));
            if !is_outdated || connection.in_transaction {
                return result;
            }
            connection.forget(statement);
        }
    }

    /// Runs statements without parameters or rows in one round trip.
    pub(super) async fn execute_on(
        &self,
        connection: &mut Connection,
        effect: Effect,
        text: &str,
    ) -> Result<()> {
        let execute = async |client: &Client| client.batch_execute(text).await;
        // A commit is not cancelled: its reply would not say whether it was applied.
        connection.exchange(effect, self.deadline, None, execute).await
    }

    /// Queries the server's incarnation once per connection; not behind a pooler, which shares connections.
    ///
    /// After a crash the server reuses the numbers of lost transactions and resets its statistics.
    pub(super) async fn learn_incarnation(&self, connection: &mut Connection) -> Result<()> {
        if connection.incarnation.is_none() && !self.server.options.pgbouncer {
            let reply = self.run_on(connection, Effect::Read, Sql::Incarnation, &[]).await?;
            connection.incarnation = column(reply.row()?, 0)?;
        }
        Ok(())
    }
}

async fn collect(stream: RowStream) -> Result<Reply, DriverError> {
    let mut stream = pin!(stream);
    let mut rows = Vec::new();
    while let Some(row) = stream.try_next().await? {
        rows.push(row);
    }
    let count = stream.rows_affected().unwrap_or_default();
    Ok(Reply { rows, count })
}
