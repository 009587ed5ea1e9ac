//! Calls to the server: with deadlines, on pooled connections.

use std::{pin::pin, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use futures_util::TryStreamExt;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::RowStream;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    Postgres,
    connection::{Connection, State, begin, begin_plan},
    error,
    options::PostgresOptions,
    pool::{NoConnection, Pool, PooledConnection, pool_timeout},
    statement::{Parameter, Reply, Sql, Texts, column},
    tls,
};
use crate::{
    Error, ErrorKind, Result,
    backend::remote::{
        Effect,
        gate::{Entry, Gate},
        later,
    },
    layer::time_left,
};

pub(super) struct Server {
    pub(super) options: PostgresOptions,
    tls: MakeRustlsConnect,
    /// The name of the database and schema in telemetry.
    pub(super) namespace: Option<String>,
    pub(super) texts: Texts,
    /// The SQL that begins a transaction.
    pub(super) begin: String,
    /// The SQL that begins the transaction of a plan.
    pub(super) begin_plan: String,
    /// None once the store is closed.
    pool: ArcSwapOption<Pool>,
    /// The running calls, which closing waits for.
    calls: Gate,
}

impl Server {
    pub(super) async fn new(options: PostgresOptions) -> Result<Self> {
        let texts = Texts::new(&options.quoted_schema()?);
        let tls = tls::connector(&options).await?;
        let pool = Arc::new(Pool::new(&options, tls.clone(), options.pool_size)?);
        let (begin, begin_plan) = (begin(&options), begin_plan(&options)?);
        let database = options.dbname.as_ref().or(options.user.as_ref());
        let namespace = database.map(|database| format!("{database}|{}", options.schema));
        Ok(Self {
            options,
            tls,
            namespace,
            texts,
            begin,
            begin_plan,
            pool: ArcSwapOption::new(Some(pool)),
            calls: Gate::new(),
        })
    }

    pub(super) fn pool(&self) -> Result<Arc<Pool>> {
        self.pool.load_full().ok_or_else(Error::closed)
    }

    fn replace(&self, pool: Option<Arc<Pool>>) {
        if let Some(old) = self.pool.swap(pool) {
            old.retire();
        }
    }

    pub(super) fn resize(&self, max: u32) -> Result<()> {
        self.replace(Some(Arc::new(Pool::new(&self.options, self.tls.clone(), max)?)));
        Ok(())
    }

    /// Waits for the running calls until the deadline, then disconnects.
    pub(super) async fn close(&self, deadline: Duration) -> Result<()> {
        let all = tokio::time::timeout(deadline, self.calls.close()).await;
        self.replace(None);
        match all {
            Ok(()) => Ok(()),
            Err(_) => {
                Err(Error::new(ErrorKind::Timeout, "the store was closed while calls were still running"))
            }
        }
    }
}

/// A call of an operation. It has a deadline, and closing the store waits for it.
pub(super) struct Call<'s> {
    server: &'s Server,
    deadline: Instant,
    _entry: Entry<'s>,
}

impl Postgres {
    pub(super) fn call(&self) -> Result<Call<'_>> {
        let entry = self.server.calls.enter()?;
        Ok(Call {
            server: &self.server,
            deadline: later(Instant::now(), time_left(self.deadline)),
            _entry: entry,
        })
    }
}

impl Call<'_> {
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
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

    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Runs one statement on any connection, in one round trip.
    pub(super) async fn run(
        &self,
        effect: Effect,
        statement: Sql,
        parameters: &[Parameter<'_>],
    ) -> Result<Reply> {
        let mut connection = self.connection().await?;
        self.run_on(&mut connection, effect, statement, parameters).await
    }

    /// Waits for a connection until the deadline.
    pub(super) async fn connection(&self) -> Result<PooledConnection> {
        if self.is_over() {
            return Err(over());
        }
        let wait = async {
            loop {
                match self.server.pool()?.get().await {
                    Ok(connection) => return Ok(connection),
                    Err(NoConnection::Retired) => {}
                    Err(NoConnection::Failed(error)) => return Err(error),
                }
            }
        };
        timeout_at(self.deadline, wait).await.unwrap_or_else(|_| Err(pool_timeout()))
    }

    /// Runs one statement on this connection. If it is dropped, the connection stays dirty.
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
            connection.is_dirty = true;
            let client = connection.client();
            let asked =
                self.ask(effect, None, async { collect(client.query_typed_raw(text, typed).await?).await });
            let (result, after) = asked.await;
            connection.settle(after);
            return result;
        }
        loop {
            let was_prepared = connection.prepared(statement).is_some();
            if !was_prepared {
                (connection.is_dirty, connection.is_preparing) = (true, true);
                let (result, after) = self.ask(Effect::Read, None, connection.client().prepare(text)).await;
                connection.is_preparing = after == State::Dirty;
                connection.settle(after);
                connection.keep(statement, result?);
            }
            connection.is_dirty = true;
            let (client, prepared) =
                (connection.client(), connection.prepared(statement).expect("it was prepared"));
            let stop = (effect == Effect::Write && connection.can_cancel()).then_some(&*connection);
            let asked = self
                .ask(effect, stop, async { collect(client.query_raw(prepared, parameters).await?).await });
            let (result, after) = asked.await;
            connection.settle(after);
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
        connection.is_dirty = true;
        // A commit is not cancelled: its reply would not say whether it was applied.
        let (result, after) = self.ask(effect, None, connection.client().batch_execute(text)).await;
        connection.settle(after);
        result
    }

    /// The result of a request, and the state of the connection after it.
    ///
    /// A write that can be cancelled is cancelled shortly before the deadline, so that the server reports
    /// that it was not applied.
    async fn ask<T>(
        &self,
        effect: Effect,
        stop: Option<&Connection>,
        request: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> (Result<T>, State) {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // Not sent, so that no reply will come.
            return (Err(over()), State::Ready);
        }
        let stop =
            stop.map(|connection| (connection, time_to_cancel(left))).filter(|(_, time)| !time.is_zero());
        let mut request = pin!(request);
        let mut answer =
            timeout_at(self.deadline - stop.map_or(Duration::ZERO, |(_, time)| time), request.as_mut()).await;
        if let (Err(_), Some((connection, _))) = (&answer, stop) {
            // Boxed, because few calls get here.
            answer = Box::pin(timeout_at(self.deadline, async {
                tokio::select! {
                    biased;
                    answer = request.as_mut() => return answer,
                    () = connection.cancel() => {}
                }
                request.await
            }))
            .await;
            if matches!(answer, Ok(Ok(_))) && connection.has_notice() {
                return (Err(late(effect)), State::Ready);
            }
        }
        match answer {
            Ok(Ok(reply)) => (Ok(reply), State::Ready),
            Ok(Err(error)) => (Err(error::of_request(&error, effect)), error::state_after(&error)),
            Err(_) => (Err(late(effect)), State::Dirty),
        }
    }
}

/// The part of a call's time that is reserved for a cancel request; zero if it would be too short.
fn time_to_cancel(left: Duration) -> Duration {
    let time = (left / 4).min(Duration::from_millis(500));
    if time < Duration::from_millis(10) { Duration::ZERO } else { time }
}

#[cold]
fn late(effect: Effect) -> Error {
    Error::new(ErrorKind::Timeout, "timed out waiting for a reply from the PostgreSQL server")
        .with_outcome(effect.when_lost())
}

#[cold]
fn over() -> Error {
    Error::new(ErrorKind::Timeout, "the deadline passed before the request was sent")
}

async fn collect(stream: RowStream) -> Result<Reply, tokio_postgres::Error> {
    let mut stream = pin!(stream);
    let mut rows = Vec::new();
    while let Some(row) = stream.try_next().await? {
        rows.push(row);
    }
    let count = stream.rows_affected().unwrap_or_default();
    Ok(Reply { rows, count })
}
