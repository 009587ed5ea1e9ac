//! One connection, and how it is opened.

use std::{
    collections::VecDeque,
    future::poll_fn,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bb8::ManageConnection;
use tokio::{
    net::lookup_host,
    sync::Semaphore,
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};
use tokio_postgres::{
    AsyncMessage, Client, Config, Statement,
    config::{
        ChannelBinding as DriverBinding, SslMode as DriverMode, SslNegotiation as DriverNegotiation,
        TargetSessionAttrs,
    },
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    error,
    options::{ChannelBinding, Isolation, PostgresOptions, SslMode, SslNegotiation},
    statement::{STATEMENTS, Sql},
};
use crate::{
    Error, ErrorKind, Result, Secret,
    backend::remote::{later, unreachable},
};

/// A connection and the statements that are prepared on it. The pool stores it in a box, because it moves it.
pub(super) struct Connection {
    client: Option<Client>,
    prepared: [Option<Statement>; STATEMENTS],
    /// The incarnation of the server, once it was queried.
    pub(super) incarnation: Option<String>,
    /// A request is running, or was dropped: its reply may still come.
    pub(super) is_dirty: bool,
    /// A transaction may be open.
    pub(super) in_transaction: bool,
    /// The server may have prepared a statement that is not in `prepared`.
    pub(super) is_preparing: bool,
    /// It is not used again. That needs no cancel request.
    is_retired: AtomicBool,
    /// The server sent a notice since it was asked to cancel.
    has_notice: Arc<AtomicBool>,
    opened: Instant,
    driver: JoinHandle<()>,
    /// TLS for cancel requests. None behind a pooler: some cancel requests crash PgBouncer 1.18, and it
    /// closes the server's connection when a client is gone.
    cancel_tls: Option<MakeRustlsConnect>,
}

impl Connection {
    pub(super) fn client(&self) -> &Client {
        self.client.as_ref().expect("only a closed connection has no client")
    }

    pub(super) fn is_dead(&self) -> bool {
        self.is_dirty || self.is_retired() || self.is_closed()
    }

    fn is_closed(&self) -> bool {
        self.client.as_ref().is_none_or(Client::is_closed)
    }

    fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Relaxed)
    }

    fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
    }

    /// Retires a connection to a read-only server, since the next one may lead to a primary. The minimum age
    /// limits refused writes to one new connection per second for each slot of the pool.
    pub(super) fn retire_read_only(&self) {
        if self.opened.elapsed() >= READ_ONLY_MIN_AGE {
            self.retire();
        }
    }

    pub(super) fn settle(&mut self, state: State) {
        self.is_dirty = state == State::Dirty;
        match state {
            State::Ready | State::Dirty => {}
            State::Unusable => self.retire(),
            State::ReadOnly => self.retire_read_only(),
        }
    }

    pub(super) fn can_cancel(&self) -> bool {
        self.cancel_tls.is_some()
    }

    /// Asks the server to cancel the request, and retires the connection, since that may arrive late.
    pub(super) async fn cancel(&self) {
        self.retire();
        self.has_notice.store(false, Ordering::SeqCst);
        if let Some(tls) = self.cancel_tls.clone() {
            drop(self.client().cancel_token().cancel_query(tls).await);
        }
    }

    /// Whether the server sent a notice after the cancel request. A commit that was waiting for a replica
    /// then ends without it, although the reply is that of a success.
    pub(super) fn has_notice(&self) -> bool {
        self.has_notice.load(Ordering::SeqCst)
    }

    /// Whether it must be cleaned up before it can be used again.
    pub(super) fn needs_cleanup(&self) -> bool {
        !self.is_closed() && (self.is_dirty || self.in_transaction && !self.is_retired())
    }

    /// Waits for the outstanding reply and rolls back an open transaction. If that takes too long, cancels
    /// the request and closes the connection.
    pub(super) async fn clean_up(&mut self) {
        let text = match (self.in_transaction, self.is_preparing) {
            (false, false) => "",
            (true, false) => "ROLLBACK",
            (false, true) => "DEALLOCATE ALL",
            (true, true) => "ROLLBACK; DEALLOCATE ALL",
        };
        if self.is_preparing {
            self.prepared = [const { None }; STATEMENTS];
        }
        self.is_dirty = true;
        if !self.is_retired() {
            // The driver reads the reply to a dropped request before the reply to this one.
            let done = timeout(CLEANUP_TIMEOUT, self.client().batch_execute(text)).await;
            if matches!(done, Ok(Ok(()))) {
                (self.is_dirty, self.in_transaction, self.is_preparing) = (false, false, false);
                return;
            }
        }
        self.close().await;
    }

    /// Cancels the running request and closes the connection. A server that responds holds no locks then.
    async fn close(&mut self) {
        let (Some(client), Some(tls)) = (self.client.take(), self.cancel_tls.take()) else {
            return self.driver.abort();
        };
        let closed = async {
            // A statement that keeps running would hold its locks.
            drop(client.cancel_token().cancel_query(tls).await);
            // The driver then terminates the connection after the last reply.
            drop(client);
            drop((&mut self.driver).await);
        };
        if timeout(CLOSE_TIMEOUT, closed).await.is_err() {
            self.driver.abort();
        }
    }

    pub(super) fn prepared(&self, statement: Sql) -> Option<&Statement> {
        self.prepared[statement as usize].as_ref()
    }

    pub(super) fn forget(&mut self, statement: Sql) {
        self.prepared[statement as usize] = None;
    }

    pub(super) fn keep(&mut self, statement: Sql, prepared: Statement) {
        self.prepared[statement as usize] = Some(prepared);
    }
}

/// The state of a connection after a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    /// The server replied, and the connection can't be used any more.
    Unusable,
    /// The server takes no writes: see [`Connection::retire_read_only`].
    ReadOnly,
    /// The reply may still come.
    Dirty,
}

/// How long a connection to a read-only server is kept at least.
const READ_ONLY_MIN_AGE: Duration = Duration::from_secs(1);

/// How long the reply to a dropped call may take before the request is cancelled.
const CLEANUP_TIMEOUT: Duration = Duration::from_millis(250);

/// How long the cancellation may take before the connection is closed anyway.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

impl Drop for Connection {
    fn drop(&mut self) {
        // Otherwise the driver terminates the connection and ends by itself.
        if self.is_dirty {
            self.driver.abort();
        }
    }
}

/// A host and the ways to connect to it, in order: `allow` and `prefer` try with and without TLS.
struct Host {
    name: String,
    port: u16,
    /// Its name and port in errors.
    address: String,
    attempts: Vec<Config>,
}

/// How long the first attempt at one of several addresses may take. A second one follows after the others.
const FIRST_ATTEMPT_TIMEOUT: Duration = Duration::from_millis(250);

/// Opens connections for the pool.
pub(super) struct Dialer {
    hosts: Vec<Host>,
    password: Option<Secret>,
    tls: MakeRustlsConnect,
    behind_pooler: bool,
    connect_timeout: Duration,
    /// The queue of the pool. Closed once the pool is replaced; returned connections are closed then.
    permits: Arc<Semaphore>,
}

impl Dialer {
    pub(super) fn new(
        options: &PostgresOptions,
        tls: MakeRustlsConnect,
        permits: Arc<Semaphore>,
    ) -> Result<Self> {
        let hosts = options.hosts()?;
        if options.connect_timeout.is_zero() {
            return Err(Error::new(ErrorKind::InvalidValue, "`connect_timeout` must be greater than zero"));
        }
        let mut base = Config::new();
        if let Some(user) = &options.user {
            base.user(user);
        }
        if let Some(dbname) = &options.dbname {
            base.dbname(dbname);
        }
        if hosts.len() > 1 {
            base.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        if !options.pgbouncer {
            base.options(session_settings(options));
        }
        base.application_name(&options.application_name)
            .ssl_negotiation(match options.sslnegotiation {
                SslNegotiation::Request => DriverNegotiation::Postgres,
                SslNegotiation::Direct => DriverNegotiation::Direct,
            })
            .channel_binding(match options.channel_binding {
                ChannelBinding::Disable => DriverBinding::Disable,
                ChannelBinding::Prefer => DriverBinding::Prefer,
                ChannelBinding::Require => DriverBinding::Require,
            })
            .connect_timeout(options.connect_timeout)
            .tcp_user_timeout(options.tcp_user_timeout)
            .keepalives_idle(Duration::from_secs(15))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3);
        let hosts = hosts
            .into_iter()
            .map(|(name, port)| {
                let attempt = |mode: &DriverMode| {
                    let mut attempt = base.clone();
                    attempt.host(&name).ssl_mode(*mode);
                    attempt
                };
                let attempts = modes(options.sslmode, &name).iter().map(attempt).collect();
                let is_ipv6 = name.contains(':') && !name.starts_with('/');
                let address = if is_ipv6 { format!("[{name}]:{port}") } else { format!("{name}:{port}") };
                Host { name, port, address, attempts }
            })
            .collect();
        Ok(Self {
            hosts,
            password: options.password.clone(),
            tls,
            behind_pooler: options.pgbouncer,
            connect_timeout: options.connect_timeout,
            permits,
        })
    }

    /// Connects to the first host that accepts the login and, if there are several, takes writes.
    async fn dial(&self) -> Result<Box<Connection>> {
        let mut deadline = later(Instant::now(), self.connect_timeout);
        let password = match &self.password {
            Some(secret) => Some(
                timeout_at(deadline, secret.reveal()).await.unwrap_or_else(|_| Err(password_timeout()))?,
            ),
            None => None,
        };
        let mut failures = Vec::new();
        for host in &self.hosts {
            match self.dial_host(host, password.as_deref(), deadline).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failures.push(error),
            }
            deadline = later(Instant::now(), self.connect_timeout);
        }
        Err(error::of_all(failures))
    }

    async fn dial_host(
        &self,
        host: &Host,
        password: Option<&str>,
        mut deadline: Instant,
    ) -> Result<Box<Connection>> {
        let mut first: Option<Error> = None;
        for attempt in &host.attempts {
            let mut attempt = attempt.clone();
            if let Some(password) = password {
                attempt.password(password);
            }
            let dialed = timeout_at(deadline, self.dial_attempt(host, &attempt, deadline)).await;
            match dialed.unwrap_or_else(|_| Err(error::at(&host.address, error::connect_timeout()))) {
                Ok(connection) => {
                    if let Some(error) = first
                        && attempt.get_ssl_mode() == DriverMode::Disable
                    {
                        tracing::warn!(%error, "connected to PostgreSQL without TLS, which `sslmode=prefer` allows");
                    }
                    return Ok(connection);
                }
                // The other TLS mode can only help after a refusal, and not if the password is wrong.
                Err(error) if error.kind() == ErrorKind::Denied && error.code() != Some("28P01") => {
                    first = first.or(Some(error));
                }
                Err(error) => return Err(first.unwrap_or(error)),
            }
            deadline = later(Instant::now(), self.connect_timeout);
        }
        Err(first.expect("a host has an attempt"))
    }

    async fn dial_attempt(
        &self,
        Host { name, port, address, .. }: &Host,
        attempt: &Config,
        deadline: Instant,
    ) -> Result<Box<Connection>> {
        if name.starts_with('/') {
            let dialed = self.dial_one(attempt.clone().port(*port)).await;
            return dialed.map_err(|error| error::at(address, error));
        }
        let found = lookup_host((&**name, *port)).await;
        let found = found.map_err(|error| error::at(address, unreachable(error::SERVER, Some(&error))))?;
        let dialed = self.dial_addresses(attempt, found.collect(), deadline).await;
        dialed.map_err(|(tried, error)| match tried {
            Some(tried) if tried.to_string() != *address => {
                error::at(&format!("{address} ({})", tried.ip()), error)
            }
            _ => error::at(address, error),
        })
    }

    /// Connects to the first of a host's addresses that accepts the login. Each gets its share of the time.
    /// One that does not accept at once is tried again after the others.
    async fn dial_addresses(
        &self,
        attempt: &Config,
        addresses: Vec<SocketAddr>,
        deadline: Instant,
    ) -> Result<Box<Connection>, (Option<SocketAddr>, Error)> {
        let is_first = addresses.len() > 1;
        let mut left: VecDeque<_> = addresses.into_iter().map(|address| (address, is_first)).collect();
        let mut failed: Option<(SocketAddr, Error)> = None;
        while let Some((address, is_first)) = left.pop_front() {
            let share = deadline.saturating_duration_since(Instant::now()) / (left.len() as u32 + 1);
            let mut attempt = attempt.clone();
            // The certificate is still checked for the name of the host.
            attempt.hostaddr(address.ip()).port(address.port());
            attempt.connect_timeout(if is_first { FIRST_ATTEMPT_TIMEOUT.min(share) } else { share });
            let error = match timeout(share, self.dial_one(&attempt)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => error,
                Err(_) => error::connect_timeout(),
            };
            let is_denied = |error: &Error| error.kind() == ErrorKind::Denied;
            if is_first && error.kind() == ErrorKind::Timeout {
                left.push_back((address, false));
            } else if !failed.as_ref().is_some_and(|(_, failed)| is_denied(failed) || !is_denied(&error)) {
                // A refusal tells more than an address that does not respond.
                failed = Some((address, error));
            }
        }
        let (address, error) = failed.unzip();
        Err((address, error.unwrap_or_else(|| unreachable(error::SERVER, None))))
    }

    async fn dial_one(&self, attempt: &Config) -> Result<Box<Connection>> {
        let (client, mut connection) = attempt
            .connect(self.tls.clone())
            .await
            .map_err(|error| error::of_dial(&error, self.behind_pooler))?;
        // Not `connection.await`: that would log the server's notices, which can quote values.
        let has_notice = Arc::new(AtomicBool::new(false));
        let notice = has_notice.clone();
        let driver = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notice(_) = message {
                    notice.store(true, Ordering::SeqCst);
                }
            }
        });
        Ok(Box::new(Connection {
            client: Some(client),
            prepared: [const { None }; STATEMENTS],
            incarnation: None,
            is_dirty: false,
            in_transaction: false,
            is_preparing: false,
            is_retired: AtomicBool::new(false),
            has_notice,
            opened: Instant::now(),
            driver,
            cancel_tls: (!self.behind_pooler).then(|| self.tls.clone()),
        }))
    }
}

/// The TLS modes to try with a host. A Unix socket has no TLS.
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
fn password_timeout() -> Error {
    Error::new(ErrorKind::Timeout, "timed out waiting for the password of the PostgreSQL server")
}

#[cold]
fn retired() -> Error {
    Error::new(ErrorKind::Unavailable, "the pool was replaced while a connection was being opened")
}

/// Milliseconds for the server, rounded up, since zero means no limit to it.
fn millis(duration: Duration) -> u128 {
    duration.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128)
}

/// The settings of new sessions. Inside a value, a space is escaped.
fn session_settings(options: &PostgresOptions) -> String {
    format!(
        "-c statement_timeout={} -c lock_timeout={} -c idle_in_transaction_session_timeout={} \
         -c default_transaction_isolation=read\\ committed",
        millis(options.statement_timeout),
        millis(options.lock_timeout),
        millis(options.idle_in_transaction_session_timeout),
    )
}

/// The SQL that begins a transaction.
pub(super) fn begin(options: &PostgresOptions) -> String {
    let level = match options.isolation {
        Isolation::RepeatableRead => "REPEATABLE READ",
        Isolation::Serializable => "SERIALIZABLE",
    };
    let mut begin = format!("BEGIN ISOLATION LEVEL {level}");
    if options.isolation == Isolation::Serializable {
        // The server would scan a small table, and a scan conflicts with every write to the table.
        begin.push_str("; SET LOCAL enable_seqscan = off");
    }
    begin + &transaction_settings(options)
}

/// The SQL that begins the transaction of a plan, after all earlier ones of plans.
///
/// The lock takes no snapshot, so the transaction sees the changes of the previous one.
pub(super) fn begin_plan(options: &PostgresOptions) -> Result<String> {
    let (settings, schema) = (transaction_settings(options), options.quoted_schema()?);
    Ok(format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ{settings}; LOCK TABLE {schema}.plans IN SHARE ROW EXCLUSIVE MODE"
    ))
}

/// Behind a pooler, clients share sessions, so that only a transaction can have settings.
fn transaction_settings(options: &PostgresOptions) -> String {
    if !options.pgbouncer {
        return String::new();
    }
    format!(
        "; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}; \
         SET LOCAL idle_in_transaction_session_timeout = {}",
        millis(options.statement_timeout),
        millis(options.lock_timeout),
        millis(options.idle_in_transaction_session_timeout),
    )
}

impl ManageConnection for Dialer {
    type Connection = Box<Connection>;
    type Error = Error;

    async fn connect(&self) -> Result<Box<Connection>> {
        let started = Instant::now();
        let mut result = self.dial().await;
        // A pool that was retired meanwhile would keep it idle while one of its connections is in use.
        if result.is_ok() && self.permits.is_closed() {
            result = Err(retired());
        }
        match &result {
            Ok(_) => tracing::debug!(elapsed = ?started.elapsed(), "connected to PostgreSQL"),
            Err(error) => tracing::debug!(%error, code = error.code(), "could not connect to PostgreSQL"),
        }
        result
    }

    async fn is_valid(&self, _: &mut Box<Connection>) -> Result<()> {
        Ok(())
    }

    fn has_broken(&self, connection: &mut Box<Connection>) -> bool {
        connection.is_dead() || connection.in_transaction || self.permits.is_closed()
    }
}

#[cfg(test)]
#[path = "../../../tests/servers/mod.rs"]
mod servers;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::net::{TcpSocket, TcpStream};
    use tokio_postgres::SimpleQueryMessage;

    use super::{super::tls::connector, servers::postgres::Server, *};

    async fn dialer(options: &PostgresOptions) -> Result<Dialer> {
        Dialer::new(options, connector(options).await?, Arc::new(Semaphore::new(1)))
    }

    /// An address that neither accepts nor refuses connections until the second value is dropped.
    async fn unresponsive() -> (SocketAddr, impl Sized) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(accepted) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
            waiting.push(accepted.unwrap());
            assert!(waiting.len() < 64, "the backlog never fills");
        }
        (address, (listener, waiting))
    }

    #[tokio::test]
    async fn the_addresses_of_a_host_share_the_time() {
        let server = Server::start(&[]);
        let options = PostgresOptions::try_from(&*server.url()).unwrap();
        let dialer = dialer(&options).await.unwrap();
        let (live, (silent, _kept)) = (SocketAddr::from(([127, 0, 0, 1], server.port)), unresponsive().await);
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let dial = async |addresses: &[SocketAddr], time: Duration| {
            let deadline = Instant::now() + time;
            dialer.dial_addresses(&dialer.hosts[0].attempts[0], addresses.to_vec(), deadline).await
        };
        let (long, short) = (Duration::from_secs(30), Duration::from_secs(1));

        let started = Instant::now();
        for addresses in [vec![silent, live], vec![closed, silent, live], vec![live, silent], vec![live]] {
            let connection = dial(&addresses, long).await.unwrap();
            connection.client().batch_execute("").await.unwrap();
        }
        assert!(started.elapsed() < long / 2, "{:?}", started.elapsed());

        let error = async |addresses: &[SocketAddr]| dial(addresses, short).await.err().unwrap().1.kind();
        assert_eq!(error(&[silent, silent]).await, ErrorKind::Timeout);
        assert_eq!(error(&[silent]).await, ErrorKind::Timeout);
        assert_eq!(error(&[closed, closed]).await, ErrorKind::Unavailable);
        assert_eq!(error(&[]).await, ErrorKind::Unavailable);
        // The refusal of a server is reported, not the timeout of another address.
        let options = PostgresOptions { dbname: Some("nowhere".into()), ..options };
        let dialer = self::dialer(&options).await.unwrap();
        let attempt = &dialer.hosts[0].attempts[0];
        let refused = dialer.dial_addresses(attempt, vec![silent, live], Instant::now() + 3 * short).await;
        assert_eq!(refused.err().unwrap().1.code(), Some("3D000"));
    }

    /// The server has prepared a statement whose name did not reach the dropped call.
    #[tokio::test]
    async fn a_statement_whose_preparation_was_dropped_is_deallocated() {
        let server = Server::start(&[]);
        let options = PostgresOptions::try_from(&*server.url()).unwrap();
        let dialer = dialer(&options).await.unwrap();
        let mut connection = dialer.dial().await.unwrap();
        (connection.is_dirty, connection.is_preparing) = (true, true);
        assert!(connection.client().prepare("SELECT 1").now_or_never().is_none());
        assert!(connection.needs_cleanup());
        connection.clean_up().await;
        assert!(!connection.is_dead() && !connection.is_preparing);
        let kept = connection.client().simple_query("SELECT count(*) FROM pg_prepared_statements").await;
        let kept: Vec<_> = kept
            .unwrap()
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            })
            .collect();
        assert_eq!(kept, ["0"]);
    }

    #[tokio::test]
    async fn a_socket_needs_no_tls_and_other_hosts_do() {
        assert_eq!(modes(SslMode::VerifyFull, "/run/postgresql"), [DriverMode::Disable]);
        assert_eq!(modes(SslMode::VerifyFull, "db.internal"), [DriverMode::Require]);
        let options = PostgresOptions {
            sslmode: SslMode::Require,
            ..PostgresOptions::new("/run/postgresql,db.internal")
        };
        let hosts = dialer(&options).await.unwrap().hosts;
        let no_time = PostgresOptions { connect_timeout: Duration::ZERO, ..options };
        assert!(dialer(&no_time).await.is_err());
        let modes: Vec<_> = hosts.iter().map(|host| host.attempts[0].get_ssl_mode()).collect();
        assert_eq!(modes, [DriverMode::Disable, DriverMode::Require]);
    }

    #[test]
    fn only_zero_means_no_limit() {
        let duration = Duration::from_micros(1);
        assert_eq!(
            (millis(Duration::ZERO), millis(duration), millis(Duration::MAX)),
            (0, 1, i32::MAX as u128)
        );
    }
}
