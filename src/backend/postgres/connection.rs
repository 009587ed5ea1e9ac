//! One connection, and how it is opened.

use std::{
    future::poll_fn,
    sync::Arc,
    time::{Duration, Instant},
};

use bb8::ManageConnection;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
    task::AbortHandle,
    time::timeout,
};
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
    /// What to try, in order: `allow` and `prefer` are two ways to connect.
    ways: Vec<Config>,
    tls: MakeRustlsConnect,
    cancels: bool,
    connect_timeout: Duration,
    /// Tells the calls that wait for a connection why there is none: bb8 lets them wait.
    failures: watch::Sender<Option<Error>>,
    /// The queue in front. Closed once another pool is in place: connections are closed then when they are given back.
    turns: Arc<Semaphore>,
}

impl Dialer {
    pub(super) fn new(
        config: &PostgresConfig,
        failures: watch::Sender<Option<Error>>,
        turns: Arc<Semaphore>,
    ) -> Result<Self> {
        let hosts = config.hosts()?;
        let mut plain = Config::new();
        for (host, port) in &hosts {
            plain.host(host).port(*port);
        }
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
        let with = |mode| {
            let mut way = plain.clone();
            way.ssl_mode(mode);
            way
        };
        let ways = match config.sslmode {
            _ if hosts.iter().any(|(host, _)| host.starts_with('/')) => vec![with(DriverMode::Disable)],
            SslMode::Disable => vec![with(DriverMode::Disable)],
            SslMode::Allow => vec![with(DriverMode::Disable), with(DriverMode::Require)],
            SslMode::Prefer => vec![with(DriverMode::Prefer), with(DriverMode::Disable)],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => vec![with(DriverMode::Require)],
        };
        Ok(Self {
            ways,
            tls: tls::connector(config)?,
            cancels: !config.pgbouncer,
            connect_timeout: config.connect_timeout,
            failures,
            turns,
        })
    }

    async fn dial(&self) -> Result<Box<Connection>> {
        let mut first = None;
        for way in &self.ways {
            match self.dial_one(way).await {
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
        let (client, mut connection) =
            way.connect(self.tls.clone()).await.map_err(|error| failure::of_dial(&error))?;
        // Driven by hand: the driver's own way would log the server's notices, which can quote values.
        let driver = tokio::spawn(async move {
            while let Some(Ok(_)) = poll_fn(|context| connection.poll_message(context)).await {}
        });
        Ok(Box::new(Connection {
            client: Some(client),
            prepared: [const { None }; STATEMENTS],
            is_dirty: false,
            driver: driver.abort_handle(),
            cancel: self.cancels.then(|| self.tls.clone()),
        }))
    }
}

/// What a session is started with. Inside of the value a space is escaped.
fn session_settings(config: &PostgresConfig) -> String {
    format!(
        "-c statement_timeout={} -c lock_timeout={} -c idle_in_transaction_session_timeout={} \
         -c default_transaction_isolation=read\\ committed",
        config.statement_timeout.as_millis(),
        config.lock_timeout.as_millis(),
        config.idle_in_transaction_session_timeout.as_millis(),
    )
}

/// How a transaction begins.
pub(super) fn begin(config: &PostgresConfig) -> String {
    let level = match config.isolation {
        Isolation::RepeatableRead => "REPEATABLE READ",
        Isolation::Serializable => "SERIALIZABLE",
    };
    let begin = format!("BEGIN ISOLATION LEVEL {level}");
    if !config.pgbouncer {
        return begin;
    }
    // Behind a pooler a session is nobody's own, so only a transaction can have settings.
    format!(
        "{begin}; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}; \
         SET LOCAL idle_in_transaction_session_timeout = {}",
        config.statement_timeout.as_millis(),
        config.lock_timeout.as_millis(),
        config.idle_in_transaction_session_timeout.as_millis(),
    )
}

impl ManageConnection for Dialer {
    type Connection = Box<Connection>;
    type Error = Error;

    async fn connect(&self) -> Result<Box<Connection>> {
        let begun = Instant::now();
        let dialed = timeout(self.connect_timeout, self.dial()).await;
        let result = dialed.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Timeout, "the PostgreSQL server did not open a connection in time"))
        });
        match &result {
            Ok(_) => tracing::debug!(elapsed = ?begun.elapsed(), "connected to PostgreSQL"),
            Err(error) => {
                tracing::debug!(%error, code = error.code(), "no connection to PostgreSQL");
                self.failures.send_replace(Some(error.clone()));
            }
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
