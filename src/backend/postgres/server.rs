//! The server as one store sees it: calls with deadlines, on leased connections.

use std::{pin::pin, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use futures_util::TryStreamExt;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::RowStream;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    Postgres,
    connection::{After, Connection, begin, begin_plan},
    error,
    options::PostgresOptions,
    pool::{Lane, Lease, NoLease, no_connection},
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
    pub(super) config: PostgresOptions,
    tls: MakeRustlsConnect,
    /// What telemetry calls the database and schema.
    pub(super) namespace: Option<String>,
    pub(super) texts: Texts,
    /// How a transaction begins.
    pub(super) begin: String,
    /// How one begins that applies a plan.
    pub(super) begin_plan: String,
    /// None once the store is closed.
    lane: ArcSwapOption<Lane>,
    /// The calls under way, which closing waits for.
    calls: Gate,
}

impl Server {
    pub(super) async fn new(config: PostgresOptions) -> Result<Self> {
        let texts = Texts::new(&config.quoted_schema()?);
        let tls = tls::connector(&config).await?;
        let lane = Arc::new(Lane::new(&config, tls.clone(), config.pool_size)?);
        let (begin, begin_plan) = (begin(&config), begin_plan(&config)?);
        let database = config.dbname.as_ref().or(config.user.as_ref());
        let namespace = database.map(|database| format!("{database}|{}", config.schema));
        Ok(Self {
            config,
            tls,
            namespace,
            texts,
            begin,
            begin_plan,
            lane: ArcSwapOption::new(Some(lane)),
            calls: Gate::new(),
        })
    }

    pub(super) fn lane(&self) -> Result<Arc<Lane>> {
        self.lane.load_full().ok_or_else(Error::closed)
    }

    fn replace(&self, lane: Option<Arc<Lane>>) {
        if let Some(old) = self.lane.swap(lane) {
            old.retire();
        }
    }

    pub(super) fn resize(&self, max: u32) -> Result<()> {
        self.replace(Some(Arc::new(Lane::new(&self.config, self.tls.clone(), max)?)));
        Ok(())
    }

    /// Waits until the calls under way are done, then disconnects. After the deadline it does not wait for them.
    pub(super) async fn close(&self, deadline: Duration) -> Result<()> {
        let all = tokio::time::timeout(deadline, self.calls.close()).await;
        self.replace(None);
        match all {
            Ok(()) => Ok(()),
            Err(_) => Err(Error::new(ErrorKind::Timeout, "closed, while calls were still under way")),
        }
    }
}

/// One call of an operation: it has a deadline, and a store that is being closed waits for it.
pub(super) struct Call<'s> {
    server: &'s Server,
    deadline: Instant,
    _under_way: Entry<'s>,
}

impl Postgres {
    pub(super) fn call(&self) -> Result<Call<'_>> {
        let under_way = self.server.calls.enter()?;
        Ok(Call {
            server: &self.server,
            deadline: later(Instant::now(), time_left(self.deadline)),
            _under_way: under_way,
        })
    }
}

impl Call<'_> {
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Which life of the server this connection has, asked once. None behind a pooler, where it is nobody's own.
    ///
    /// After a crash numbers of transactions that were lost are given out again, and the statistics begin anew.
    pub(super) async fn life(&self, lease: &mut Lease) -> Result<()> {
        if lease.life.is_none() && !self.server.config.pgbouncer {
            let reply = self.run_on(lease, Effect::Read, Sql::Life, &[]).await?;
            lease.life = column(reply.row()?, 0)?;
        }
        Ok(())
    }

    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// One statement on any connection: one round trip.
    pub(super) async fn run(
        &self,
        effect: Effect,
        statement: Sql,
        parameters: &[Parameter<'_>],
    ) -> Result<Reply> {
        let mut lease = self.lease().await?;
        self.run_on(&mut lease, effect, statement, parameters).await
    }

    /// A connection, in time.
    pub(super) async fn lease(&self) -> Result<Lease> {
        if self.is_over() {
            return Err(over());
        }
        let wait = async {
            loop {
                match self.server.lane()?.lease().await {
                    Ok(lease) => return Ok(lease),
                    Err(NoLease::Retired) => {}
                    Err(NoLease::Failed(error)) => return Err(error),
                }
            }
        };
        timeout_at(self.deadline, wait).await.unwrap_or_else(|_| Err(no_connection()))
    }

    /// One statement on this connection. What cuts it off leaves the connection dirty.
    pub(super) async fn run_on(
        &self,
        lease: &mut Lease,
        effect: Effect,
        statement: Sql,
        parameters: &[Parameter<'_>],
    ) -> Result<Reply> {
        let text = self.server.texts.of(statement);
        if self.server.config.pgbouncer {
            let typed = parameters.iter().map(|parameter| (parameter, parameter.type_of()));
            lease.is_dirty = true;
            let client = lease.client();
            let asked =
                self.ask(effect, None, async { collect(client.query_typed_raw(text, typed).await?).await });
            let (result, after) = asked.await;
            lease.settle(after);
            return result;
        }
        loop {
            let was_prepared = lease.prepared(statement).is_some();
            if !was_prepared {
                (lease.is_dirty, lease.is_preparing) = (true, true);
                let (result, after) = self.ask(Effect::Read, None, lease.client().prepare(text)).await;
                lease.is_preparing = after == After::Cut;
                lease.settle(after);
                lease.keep(statement, result?);
            }
            lease.is_dirty = true;
            let (client, prepared) = (lease.client(), lease.prepared(statement).expect("it was prepared"));
            let stop = (effect == Effect::Write && lease.can_stop()).then_some(&**lease);
            let asked = self
                .ask(effect, stop, async { collect(client.query_raw(prepared, parameters).await?).await });
            let (result, after) = asked.await;
            lease.settle(after);
            // A migration changed what the statement returns. The server says so instead of running it.
            let is_outdated =
                was_prepared && result.as_ref().is_err_and(|error| error.code() == Some("0A000"));
            if !is_outdated || lease.in_transaction {
                return result;
            }
            lease.forget(statement);
        }
    }

    /// Statements without parameters or rows, in one round trip.
    pub(super) async fn execute_on(&self, lease: &mut Lease, effect: Effect, text: &str) -> Result<()> {
        lease.is_dirty = true;
        // A commit is not stopped: what it would say then is not what became of it.
        let (result, after) = self.ask(effect, None, lease.client().batch_execute(text)).await;
        lease.settle(after);
        result
    }

    /// The answer to a request, and what it means for the connection.
    ///
    /// A write that can be stopped is, a moment before the deadline: then it is the server who says that nothing happened.
    async fn ask<T>(
        &self,
        effect: Effect,
        stop: Option<&Connection>,
        request: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> (Result<T>, After) {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // Not sent, so nothing is owed.
            return (Err(over()), After::Ready);
        }
        let stop =
            stop.map(|connection| (connection, time_to_stop(left))).filter(|(_, time)| !time.is_zero());
        let mut request = pin!(request);
        let mut answer =
            timeout_at(self.deadline - stop.map_or(Duration::ZERO, |(_, time)| time), request.as_mut()).await;
        if let (Err(_), Some((connection, _))) = (&answer, stop) {
            // In a box: few calls come here.
            answer = Box::pin(timeout_at(self.deadline, async {
                tokio::select! {
                    biased;
                    answer = request.as_mut() => return answer,
                    () = connection.stop() => {}
                }
                request.await
            }))
            .await;
            if matches!(answer, Ok(Ok(_))) && connection.has_notice() {
                return (Err(late(effect)), After::Ready);
            }
        }
        match answer {
            Ok(Ok(reply)) => (Ok(reply), After::Ready),
            Ok(Err(error)) => (Err(error::of_request(&error, effect)), error::after(&error)),
            Err(_) => (Err(late(effect)), After::Cut),
        }
    }
}

/// How much of a call's time is kept for the server to hear that it must stop, and to say that it did. Where that would be too
/// little, none.
fn time_to_stop(left: Duration) -> Duration {
    let time = (left / 4).min(Duration::from_millis(500));
    if time < Duration::from_millis(10) { Duration::ZERO } else { time }
}

#[cold]
fn late(effect: Effect) -> Error {
    Error::new(ErrorKind::Timeout, "no reply from the PostgreSQL server in time")
        .with_outcome(effect.when_lost())
}

#[cold]
fn over() -> Error {
    Error::new(ErrorKind::Timeout, "the time was over before the request was sent")
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
