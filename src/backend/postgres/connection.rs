//! One connection, and how it is opened.

use std::{
    future::poll_fn,
    sync::Arc,
    time::{Duration, Instant},
};

use bb8::ManageConnection;
use tokio::{runtime::Handle, sync::Semaphore, task::AbortHandle, time::timeout};
use tokio_postgres::{
    Client, Config, Statement,
    config::{SslMode as DriverMode, TargetSessionAttrs},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    failure,
    options::{Isolation, PostgresConfig, SslMode},
    statement::{STATEMENTS, Sql},
    tls,
};
use crate::{Error, ErrorKind, Result};

/// A connection with the statements that were prepared on it. The pool has it in a box, since it moves it about.
pub(super) struct Connection {
    client: Option<Client>,
    prepared: [Option<Statement>; STATEMENTS],
    /// Which life of the server this is, once somebody asked.
    pub(super) life: Option<String>,
    /// A request is under way, or was cut off: its reply may still come, a transaction may be open.
    pub(super) is_dirty: bool,
    driver: AbortHandle,
    /// What a request to cancel is sent with. None behind a pooler: PgBouncer 1.18 crashes of some, and closes the server's
    /// connection of a client that is gone.
    cancel: Option<MakeRustlsConnect>,
}

impl Connection {
    pub(super) fn client(&self) -> &Client {
        self.client.as_ref().expect("only a dropped connection has none")
    }

    pub(super) fn is_dead(&self) -> bool {
        self.is_dirty || self.client().is_closed()
    }

    pub(super) fn prepared(&self, statement: Sql) -> Option<&Statement> {
        self.prepared[statement as usize].as_ref()
    }

    pub(super) fn keep(&mut self, statement: Sql, prepared: Statement) {
        self.prepared[statement as usize] = Some(prepared);
    }
}

/// How long the server may take to hear that nobody waits any more.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(client) = self.client.take() else { return };
        // Otherwise the driver says goodbye and ends by itself.
        if !self.is_dirty || client.is_closed() {
            return;
        }
        let driver = self.driver.clone();
        let (Some(tls), Ok(runtime)) = (self.cancel.take(), Handle::try_current()) else {
            return driver.abort();
        };
        // A statement that goes on would hold its locks until it is done.
        runtime.spawn(async move {
            drop(timeout(CANCEL_TIMEOUT, client.cancel_token().cancel_query(tls)).await);
            driver.abort();
        });
    }
}

/// Opens connections for the pool.
pub(super) struct Dialer {
    /// What to try, in order, for each host: `allow` and `prefer` are two ways to connect.
    ways: Vec<Vec<Config>>,
    tls: MakeRustlsConnect,
    cancels: bool,
    behind_pooler: bool,
    connect_timeout: Duration,
    /// The queue in front. Closed once another pool is in place: connections are closed then when they are given back.
    turns: Arc<Semaphore>,
}

impl Dialer {
    pub(super) fn new(config: &PostgresConfig, turns: Arc<Semaphore>) -> Result<Self> {
        let hosts = config.hosts()?;
        if config.connect_timeout.is_zero() {
            return Err(Error::new(ErrorKind::InvalidValue, "`connect_timeout` is more than zero"));
        }
        let mut plain = Config::new();
        if let Some(user) = &config.user {
            plain.user(user);
        }
        if let Some(password) = &config.password {
            plain.password(password);
        }
        if let Some(dbname) = &config.dbname {
            plain.dbname(dbname);
        }
        if hosts.len() > 1 {
            plain.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        if !config.pgbouncer {
            plain.options(session_settings(config));
        }
        plain
            .application_name(&config.application_name)
            .connect_timeout(config.connect_timeout)
            .tcp_user_timeout(config.tcp_user_timeout)
            .keepalives_idle(Duration::from_secs(15))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3);
        let ways = hosts
            .iter()
            .map(|(host, port)| {
                modes(config.sslmode, host)
                    .iter()
                    .map(|mode| {
                        let mut way = plain.clone();
                        way.host(host).port(*port).ssl_mode(*mode);
                        way
                    })
                    .collect()
            })
            .collect();
        Ok(Self {
            ways,
            tls: tls::connector(config)?,
            cancels: !config.pgbouncer,
            behind_pooler: config.pgbouncer,
            connect_timeout: config.connect_timeout,
            turns,
        })
    }

    /// The first host that can be reached and, where there are several, takes writes.
    async fn dial(&self) -> Result<Box<Connection>> {
        let mut first = None;
        for ways in &self.ways {
            match self.dial_host(ways).await {
                Ok(connection) => return Ok(connection),
                // Who is not let in here would not be let in elsewhere, and should know.
                Err(error) if error.kind() == ErrorKind::Denied => return Err(error),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.expect("there is a host"))
    }

    async fn dial_host(&self, ways: &[Config]) -> Result<Box<Connection>> {
        let mut first = None;
        for way in ways {
            let dialed = timeout(self.connect_timeout, self.dial_one(way)).await;
            match dialed.unwrap_or_else(|_| Err(slow())) {
                Ok(connection) => return Ok(connection),
                // Only a refusal can be answered by another way, and not that of a password.
                Err(error) if error.kind() == ErrorKind::Denied && error.code() != Some("28P01") => {
                    first = first.or(Some(error));
                }
                Err(error) => return Err(first.unwrap_or(error)),
            }
        }
        Err(first.expect("there is a way"))
    }

    async fn dial_one(&self, way: &Config) -> Result<Box<Connection>> {
        let (client, mut connection) = way
            .connect(self.tls.clone())
            .await
            .map_err(|error| failure::of_dial(&error, self.behind_pooler))?;
        // Driven by hand: the driver's own way would log the server's notices, which can quote values.
        let driver = tokio::spawn(async move {
            while let Some(Ok(_)) = poll_fn(|context| connection.poll_message(context)).await {}
        });
        Ok(Box::new(Connection {
            client: Some(client),
            prepared: [const { None }; STATEMENTS],
            life: None,
            is_dirty: false,
            driver: driver.abort_handle(),
            cancel: self.cancels.then(|| self.tls.clone()),
        }))
    }
}

/// How a host may be spoken to. Over a Unix socket there is no TLS.
fn modes(sslmode: SslMode, host: &str) -> &'static [DriverMode] {
    match sslmode {
        _ if host.starts_with('/') => &[DriverMode::Disable],
        SslMode::Disable => &[DriverMode::Disable],
        SslMode::Allow => &[DriverMode::Disable, DriverMode::Require],
        SslMode::Prefer => &[DriverMode::Prefer, DriverMode::Disable],
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[DriverMode::Require],
    }
}

#[cold]
fn retired() -> Error {
    Error::new(ErrorKind::Unavailable, "the pool was replaced while a connection was opened")
}

#[cold]
fn slow() -> Error {
    Error::new(ErrorKind::Timeout, "the PostgreSQL server did not open a connection in time")
}

/// Milliseconds as the server takes them: zero is for ever, and only zero is.
fn millis(duration: Duration) -> u128 {
    duration.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128)
}

/// What a session is started with. Inside of the value a space is escaped.
fn session_settings(config: &PostgresConfig) -> String {
    format!(
        "-c statement_timeout={} -c lock_timeout={} -c idle_in_transaction_session_timeout={} \
         -c default_transaction_isolation=read\\ committed",
        millis(config.statement_timeout),
        millis(config.lock_timeout),
        millis(config.idle_in_transaction_session_timeout),
    )
}

/// How a transaction begins.
pub(super) fn begin(config: &PostgresConfig) -> String {
    let level = match config.isolation {
        Isolation::RepeatableRead => "REPEATABLE READ",
        Isolation::Serializable => "SERIALIZABLE",
    };
    let mut begin = format!("BEGIN ISOLATION LEVEL {level}");
    if config.isolation == Isolation::Serializable {
        // A small table would be scanned, and a scan conflicts with every write to the table.
        begin.push_str("; SET LOCAL enable_seqscan = off");
    }
    begin + &transaction_settings(config)
}

/// How a transaction begins that applies a plan: after all others that do.
///
/// The lock takes no snapshot; so what the transaction sees is what the one before it left.
pub(super) fn begin_plan(config: &PostgresConfig) -> Result<String> {
    let (settings, schema) = (transaction_settings(config), config.quoted_schema()?);
    Ok(format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ{settings}; LOCK TABLE {schema}.plans IN SHARE ROW EXCLUSIVE MODE"
    ))
}

/// Behind a pooler a session is nobody's own, so only a transaction can have settings.
fn transaction_settings(config: &PostgresConfig) -> String {
    if !config.pgbouncer {
        return String::new();
    }
    format!(
        "; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}; \
         SET LOCAL idle_in_transaction_session_timeout = {}",
        millis(config.statement_timeout),
        millis(config.lock_timeout),
        millis(config.idle_in_transaction_session_timeout),
    )
}

impl ManageConnection for Dialer {
    type Connection = Box<Connection>;
    type Error = Error;

    async fn connect(&self) -> Result<Box<Connection>> {
        let begun = Instant::now();
        let mut result = self.dial().await;
        // A pool that was retired meanwhile would keep it, idle, as long as one of its leases lives.
        if result.is_ok() && self.turns.is_closed() {
            result = Err(retired());
        }
        match &result {
            Ok(_) => tracing::debug!(elapsed = ?begun.elapsed(), "connected to PostgreSQL"),
            Err(error) => tracing::debug!(%error, code = error.code(), "no connection to PostgreSQL"),
        }
        result
    }

    async fn is_valid(&self, _: &mut Box<Connection>) -> Result<()> {
        Ok(())
    }

    fn has_broken(&self, connection: &mut Box<Connection>) -> bool {
        connection.is_dead() || self.turns.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_does_not_speak_for_other_hosts() {
        assert_eq!(modes(SslMode::VerifyFull, "/run/postgresql"), [DriverMode::Disable]);
        assert_eq!(modes(SslMode::VerifyFull, "db.internal"), [DriverMode::Require]);
        let config = PostgresConfig {
            sslmode: SslMode::Require,
            ..PostgresConfig::new("/run/postgresql,db.internal")
        };
        let dialer = Dialer::new(&config, Arc::new(Semaphore::new(1))).unwrap();
        let hurried = PostgresConfig { connect_timeout: Duration::ZERO, ..config };
        assert!(Dialer::new(&hurried, Arc::new(Semaphore::new(1))).is_err());
        let modes: Vec<_> = dialer.ways.iter().map(|ways| ways[0].get_ssl_mode()).collect();
        assert_eq!(modes, [DriverMode::Disable, DriverMode::Require]);
    }

    #[test]
    fn only_zero_is_for_ever() {
        let duration = Duration::from_micros(1);
        assert_eq!(
            (millis(Duration::ZERO), millis(duration), millis(Duration::MAX)),
            (0, 1, i32::MAX as u128)
        );
    }
}
