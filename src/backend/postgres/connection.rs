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

/// A connection with the statements that were prepared on it. The pool has it in a box, since it moves it about.
pub(super) struct Connection {
    client: Option<Client>,
    prepared: [Option<Statement>; STATEMENTS],
    /// Which life of the server this is, once somebody asked.
    pub(super) life: Option<String>,
    /// A request is under way, or was cut off: its reply may still come.
    pub(super) is_dirty: bool,
    /// A transaction is open, or may be.
    pub(super) in_transaction: bool,
    /// A statement is being prepared, or was when that was cut off: the server may keep one that we do not know.
    pub(super) is_preparing: bool,
    /// It is not used again. Nothing has to be stopped for that.
    is_retired: AtomicBool,
    /// The server said something beside its replies since it was told to stop.
    has_notice: Arc<AtomicBool>,
    opened: Instant,
    driver: JoinHandle<()>,
    /// What a request to cancel is sent with. None behind a pooler: PgBouncer 1.18 crashes of some, and closes the server's
    /// connection of a client that is gone.
    cancel: Option<MakeRustlsConnect>,
}

impl Connection {
    pub(super) fn client(&self) -> &Client {
        self.client.as_ref().expect("only a dropped connection has none")
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

    /// Its server takes no writes: the next connection may find one that does. If it does not, writes that are refused cost a
    /// connection a second for each place in the pool, and not one each.
    pub(super) fn leave_reader(&self) {
        if self.opened.elapsed() >= READER_STAYS {
            self.retire();
        }
    }

    /// What the answer to a request means for the connection.
    pub(super) fn settle(&mut self, after: After) {
        self.is_dirty = after == After::Cut;
        match after {
            After::Ready | After::Cut => {}
            After::Useless => self.retire(),
            After::TakesNoWrites => self.leave_reader(),
        }
    }

    /// Whether the server can be told to stop.
    pub(super) fn can_stop(&self) -> bool {
        self.cancel.is_some()
    }

    /// Tells the server to stop what it does. It may hear of that late, so the connection is not used again.
    pub(super) async fn stop(&self) {
        self.retire();
        self.has_notice.store(false, Ordering::SeqCst);
        if let Some(tls) = self.cancel.clone() {
            drop(self.client().cancel_token().cancel_query(tls).await);
        }
    }

    /// Whether the server had something to say of being stopped. A commit that waits for a replica then ends without one, and
    /// the reply itself is that of a success.
    pub(super) fn has_notice(&self) -> bool {
        self.has_notice.load(Ordering::SeqCst)
    }

    /// Whether something is owed before it can be used again.
    pub(super) fn is_untidy(&self) -> bool {
        !self.is_closed() && (self.is_dirty || self.in_transaction && !self.is_retired())
    }

    /// Waits for the reply that is owed and rolls back what is open. Where that takes too long the server is told to stop, and
    /// the connection is closed.
    pub(super) async fn tidy(&mut self) {
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
            // The driver reads what a dropped request still gets before the reply to this one.
            let tidied = timeout(TIDY_TIMEOUT, self.client().batch_execute(text)).await;
            if matches!(tidied, Ok(Ok(()))) {
                (self.is_dirty, self.in_transaction, self.is_preparing) = (false, false, false);
                return;
            }
        }
        self.close().await;
    }

    /// Closes a connection on which something is under way. The server has let go of it then, if it answers at all.
    async fn close(&mut self) {
        let (Some(client), Some(tls)) = (self.client.take(), self.cancel.take()) else {
            return self.driver.abort();
        };
        let closed = async {
            // A statement that goes on would hold its locks until it is done.
            drop(client.cancel_token().cancel_query(tls).await);
            // Now the driver says goodbye, after the last reply.
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

/// What is known of a connection after a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    Ready,
    /// The server answered, and the connection is of no use any more.
    Useless,
    /// The same, perhaps: see [`Connection::leave_reader`].
    TakesNoWrites,
    /// There is no answer yet.
    Cut,
}

/// How long a connection to a server that takes no writes is kept at least.
const READER_STAYS: Duration = Duration::from_secs(1);

/// How long the reply to a call that was cut off may take before the server is told to stop.
const TIDY_TIMEOUT: Duration = Duration::from_millis(250);

/// How long the server may take to stop before the connection is closed in any case.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

impl Drop for Connection {
    fn drop(&mut self) {
        // Otherwise the driver says goodbye and ends by itself.
        if self.is_dirty {
            self.driver.abort();
        }
    }
}

/// A host, and what to try there, in order: `allow` and `prefer` are two ways to connect.
struct Place {
    host: String,
    port: u16,
    /// What errors call it.
    name: String,
    ways: Vec<Config>,
}

/// How long one of several addresses may take to accept before the next one is tried. It has another try after them.
const HASTE: Duration = Duration::from_millis(250);

/// Opens connections for the pool.
pub(super) struct Dialer {
    places: Vec<Place>,
    password: Option<Secret>,
    tls: MakeRustlsConnect,
    cancels: bool,
    behind_pooler: bool,
    connect_timeout: Duration,
    /// The queue in front. Closed once another pool is in place: connections are closed then when they are given back.
    turns: Arc<Semaphore>,
}

impl Dialer {
    pub(super) fn new(
        config: &PostgresOptions,
        tls: MakeRustlsConnect,
        turns: Arc<Semaphore>,
    ) -> Result<Self> {
        let hosts = config.hosts()?;
        if config.connect_timeout.is_zero() {
            return Err(Error::new(ErrorKind::InvalidValue, "`connect_timeout` is more than zero"));
        }
        let mut plain = Config::new();
        if let Some(user) = &config.user {
            plain.user(user);
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
            .ssl_negotiation(match config.sslnegotiation {
                SslNegotiation::Request => DriverNegotiation::Postgres,
                SslNegotiation::Direct => DriverNegotiation::Direct,
            })
            .channel_binding(match config.channel_binding {
                ChannelBinding::Disable => DriverBinding::Disable,
                ChannelBinding::Prefer => DriverBinding::Prefer,
                ChannelBinding::Require => DriverBinding::Require,
            })
            .connect_timeout(config.connect_timeout)
            .tcp_user_timeout(config.tcp_user_timeout)
            .keepalives_idle(Duration::from_secs(15))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3);
        let places = hosts
            .into_iter()
            .map(|(host, port)| {
                let way = |mode: &DriverMode| {
                    let mut way = plain.clone();
                    way.host(&host).ssl_mode(*mode);
                    way
                };
                let ways = modes(config.sslmode, &host).iter().map(way).collect();
                let name = if host.contains(':') && !host.starts_with('/') {
                    format!("[{host}]:{port}")
                } else {
                    format!("{host}:{port}")
                };
                Place { host, port, name, ways }
            })
            .collect();
        Ok(Self {
            places,
            password: config.password.clone(),
            tls,
            cancels: !config.pgbouncer,
            behind_pooler: config.pgbouncer,
            connect_timeout: config.connect_timeout,
            turns,
        })
    }

    /// The first host that lets us in and, where there are several, takes writes.
    async fn dial(&self) -> Result<Box<Connection>> {
        let mut end = later(Instant::now(), self.connect_timeout);
        let password = match &self.password {
            Some(secret) => {
                Some(timeout_at(end, secret.reveal()).await.unwrap_or_else(|_| Err(slow_secret()))?)
            }
            None => None,
        };
        let mut failures = Vec::new();
        for place in &self.places {
            match self.dial_host(place, password.as_deref(), end).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failures.push(error),
            }
            end = later(Instant::now(), self.connect_timeout);
        }
        Err(error::of_all(failures))
    }

    async fn dial_host(
        &self,
        place: &Place,
        password: Option<&str>,
        mut end: Instant,
    ) -> Result<Box<Connection>> {
        let mut first: Option<Error> = None;
        for way in &place.ways {
            let mut way = way.clone();
            if let Some(password) = password {
                way.password(password);
            }
            let dialed = timeout_at(end, self.dial_way(place, &way, end)).await;
            match dialed.unwrap_or_else(|_| Err(error::at(&place.name, error::slow()))) {
                Ok(connection) => {
                    if let Some(error) = first
                        && way.get_ssl_mode() == DriverMode::Disable
                    {
                        tracing::warn!(%error, "connected to PostgreSQL without TLS, as `sslmode=prefer` has it");
                    }
                    return Ok(connection);
                }
                // Only a refusal can be answered by another way, and not that of a password.
                Err(error) if error.kind() == ErrorKind::Denied && error.code() != Some("28P01") => {
                    first = first.or(Some(error));
                }
                Err(error) => return Err(first.unwrap_or(error)),
            }
            end = later(Instant::now(), self.connect_timeout);
        }
        Err(first.expect("there is a way"))
    }

    async fn dial_way(&self, place: &Place, way: &Config, end: Instant) -> Result<Box<Connection>> {
        let name = &place.name;
        if place.host.starts_with('/') {
            let dialed = self.dial_one(way.clone().port(place.port)).await;
            return dialed.map_err(|error| error::at(name, error));
        }
        let found = lookup_host((&*place.host, place.port)).await;
        let found = found.map_err(|error| error::at(name, unreachable(error::SERVER, Some(&error))))?;
        self.dial_addresses(way, found.collect(), end).await.map_err(|(address, error)| match address {
            Some(address) if address.to_string() != *name => {
                error::at(&format!("{name} ({})", address.ip()), error)
            }
            _ => error::at(name, error),
        })
    }

    /// The first of a host's addresses that lets us in. Each has its share of the time, and one that does not accept at once
    /// waits for its second try until the others had their first.
    async fn dial_addresses(
        &self,
        way: &Config,
        addresses: Vec<SocketAddr>,
        end: Instant,
    ) -> Result<Box<Connection>, (Option<SocketAddr>, Error)> {
        let are_several = addresses.len() > 1;
        let mut left: VecDeque<_> = addresses.into_iter().map(|address| (address, are_several)).collect();
        let mut failed: Option<(SocketAddr, Error)> = None;
        while let Some((address, in_haste)) = left.pop_front() {
            let share = end.saturating_duration_since(Instant::now()) / (left.len() as u32 + 1);
            let mut way = way.clone();
            // The certificate is still that of the host.
            way.hostaddr(address.ip()).port(address.port());
            way.connect_timeout(if in_haste { HASTE.min(share) } else { share });
            let error = match timeout(share, self.dial_one(&way)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => error,
                Err(_) => error::slow(),
            };
            let is_denied = |error: &Error| error.kind() == ErrorKind::Denied;
            if in_haste && error.kind() == ErrorKind::Timeout {
                left.push_back((address, false));
            } else if !failed.as_ref().is_some_and(|(_, failed)| is_denied(failed) || !is_denied(&error)) {
                // What a server says tells more than that another one is not there.
                failed = Some((address, error));
            }
        }
        let (address, error) = failed.unzip();
        Err((address, error.unwrap_or_else(|| unreachable(error::SERVER, None))))
    }

    async fn dial_one(&self, way: &Config) -> Result<Box<Connection>> {
        let (client, mut connection) = way
            .connect(self.tls.clone())
            .await
            .map_err(|error| error::of_dial(&error, self.behind_pooler))?;
        // Driven by hand: the driver's own way would log the server's notices, which can quote values.
        let has_notice = Arc::new(AtomicBool::new(false));
        let heard = has_notice.clone();
        let driver = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notice(_) = message {
                    heard.store(true, Ordering::SeqCst);
                }
            }
        });
        Ok(Box::new(Connection {
            client: Some(client),
            prepared: [const { None }; STATEMENTS],
            life: None,
            is_dirty: false,
            in_transaction: false,
            is_preparing: false,
            is_retired: AtomicBool::new(false),
            has_notice,
            opened: Instant::now(),
            driver,
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
fn slow_secret() -> Error {
    Error::new(ErrorKind::Timeout, "the password was not there in time to connect to the PostgreSQL server")
}

#[cold]
fn retired() -> Error {
    Error::new(ErrorKind::Unavailable, "the pool was replaced while a connection was opened")
}

/// Milliseconds as the server takes them: zero is for ever, and only zero is.
fn millis(duration: Duration) -> u128 {
    duration.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128)
}

/// What a session is started with. Inside of the value a space is escaped.
fn session_settings(config: &PostgresOptions) -> String {
    format!(
        "-c statement_timeout={} -c lock_timeout={} -c idle_in_transaction_session_timeout={} \
         -c default_transaction_isolation=read\\ committed",
        millis(config.statement_timeout),
        millis(config.lock_timeout),
        millis(config.idle_in_transaction_session_timeout),
    )
}

/// How a transaction begins.
pub(super) fn begin(config: &PostgresOptions) -> String {
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
pub(super) fn begin_plan(config: &PostgresOptions) -> Result<String> {
    let (settings, schema) = (transaction_settings(config), config.quoted_schema()?);
    Ok(format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ{settings}; LOCK TABLE {schema}.plans IN SHARE ROW EXCLUSIVE MODE"
    ))
}

/// Behind a pooler a session is nobody's own, so only a transaction can have settings.
fn transaction_settings(config: &PostgresOptions) -> String {
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
        connection.is_dead() || connection.in_transaction || self.turns.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use testkit::servers::postgres::Server;
    use tokio::net::{TcpSocket, TcpStream};
    use tokio_postgres::SimpleQueryMessage;

    use super::{super::tls::connector, *};

    async fn dialer(config: &PostgresOptions) -> Result<Dialer> {
        Dialer::new(config, connector(config).await?, Arc::new(Semaphore::new(1)))
    }

    /// An address that accepts nothing and refuses nothing, as long as the rest is kept.
    async fn silence() -> (SocketAddr, impl Sized) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(accepted) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
            waiting.push(accepted.unwrap());
            assert!(waiting.len() < 64, "its queue has no end");
        }
        (address, (listener, waiting))
    }

    #[tokio::test]
    async fn the_addresses_of_a_host_share_the_time() {
        let server = Server::start(&[]);
        let config = PostgresOptions::try_from(&*server.url()).unwrap();
        let dials = dialer(&config).await.unwrap();
        let (live, (silent, _kept)) = (SocketAddr::from(([127, 0, 0, 1], server.port)), silence().await);
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let dial = async |addresses: &[SocketAddr], time: Duration| {
            let end = Instant::now() + time;
            dials.dial_addresses(&dials.places[0].ways[0], addresses.to_vec(), end).await
        };
        let (long, short) = (Duration::from_secs(30), Duration::from_secs(1));

        let begun = Instant::now();
        for addresses in [vec![silent, live], vec![closed, silent, live], vec![live, silent], vec![live]] {
            let connection = dial(&addresses, long).await.unwrap();
            connection.client().batch_execute("").await.unwrap();
        }
        assert!(begun.elapsed() < long / 2, "{:?}", begun.elapsed());

        let error = async |addresses: &[SocketAddr]| dial(addresses, short).await.err().unwrap().1.kind();
        assert_eq!(error(&[silent, silent]).await, ErrorKind::Timeout);
        assert_eq!(error(&[silent]).await, ErrorKind::Timeout);
        assert_eq!(error(&[closed, closed]).await, ErrorKind::Unavailable);
        assert_eq!(error(&[]).await, ErrorKind::Unavailable);
        // A server that says no is heard.
        let lost = PostgresOptions { dbname: Some("nowhere".into()), ..config };
        let dials = dialer(&lost).await.unwrap();
        let way = &dials.places[0].ways[0];
        let answered = dials.dial_addresses(way, vec![silent, live], Instant::now() + 3 * short).await;
        assert_eq!(answered.err().unwrap().1.code(), Some("3D000"));
    }

    /// The server keeps a statement under a name that was on its way to a caller who is gone.
    #[tokio::test]
    async fn a_statement_whose_name_is_lost_is_given_up() {
        let server = Server::start(&[]);
        let config = PostgresOptions::try_from(&*server.url()).unwrap();
        let dials = dialer(&config).await.unwrap();
        let mut connection = dials.dial().await.unwrap();
        (connection.is_dirty, connection.is_preparing) = (true, true);
        assert!(connection.client().prepare("SELECT 1").now_or_never().is_none());
        assert!(connection.is_untidy());
        connection.tidy().await;
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
    async fn a_socket_does_not_speak_for_other_hosts() {
        assert_eq!(modes(SslMode::VerifyFull, "/run/postgresql"), [DriverMode::Disable]);
        assert_eq!(modes(SslMode::VerifyFull, "db.internal"), [DriverMode::Require]);
        let config = PostgresOptions {
            sslmode: SslMode::Require,
            ..PostgresOptions::new("/run/postgresql,db.internal")
        };
        let dials = dialer(&config).await.unwrap();
        let hurried = PostgresOptions { connect_timeout: Duration::ZERO, ..config };
        assert!(dialer(&hurried).await.is_err());
        let modes: Vec<_> = dials.places.iter().map(|place| place.ways[0].get_ssl_mode()).collect();
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
