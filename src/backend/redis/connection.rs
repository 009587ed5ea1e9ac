//! One connection that many calls share.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bb8::ManageConnection;
use bb8_redis::RedisConnectionManager;
use redis::{
    AsyncConnectionConfig, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    RedisResult, Value,
    aio::{AsyncPushSender, MultiplexedConnection},
    cmd,
    io::tcp::TcpSettings,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    runtime::Handle,
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{RedisOptions, address::Address, dial, error, tls::Tls};
use crate::{Error, ErrorKind, Result, Secret};

/// A connection. It closes when its pool has replaced it and its last call has ended. Times are in
/// milliseconds since it was opened.
pub(super) struct Connection {
    opened: Opened,
    since: Instant,
    is_retired: AtomicBool,
    /// How long it may receive nothing while a reply is missing.
    reply_timeout: Duration,
    /// The calls that wait for a reply.
    in_flight: AtomicUsize,
    /// When the last reply arrived, or the first request in flight was sent.
    progress: AtomicU64,
    /// When the server was last asked for its role, or [`ASKING`].
    checked: AtomicU64,
}

const ASKING: u64 = u64::MAX;

/// How often the server of a connection in use is asked for its role.
pub(super) const ROLE_INTERVAL: Duration = Duration::from_secs(5);

/// A connection on which a reply is missing for this long is avoided while another one has no such stall.
pub(super) const STALL: Duration = Duration::from_millis(10);

impl Connection {
    pub(super) fn new(opened: Opened, reply_timeout: Duration) -> Self {
        Self {
            opened,
            since: Instant::now(),
            is_retired: AtomicBool::new(false),
            reply_timeout,
            in_flight: AtomicUsize::new(0),
            progress: AtomicU64::new(0),
            checked: AtomicU64::new(0),
        }
    }

    pub(super) fn is_dead(&self) -> bool {
        self.is_retired.load(Ordering::Relaxed)
            || self.opened.task.as_ref().is_some_and(JoinHandle::is_finished)
    }

    pub(super) fn leads_to(&self, place: &Place) -> bool {
        self.opened.place == *place
    }

    /// Keeps later calls from using this connection. Calls in flight continue to wait.
    pub(super) fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) == 0
    }

    fn age(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.since).as_millis() as u64
    }

    /// How long no reply has arrived, if one is missing.
    pub(super) fn silence(&self, now: Instant) -> Duration {
        let since = if self.is_idle() { u64::MAX } else { self.progress.load(Ordering::Relaxed) };
        Duration::from_millis(self.age(now).saturating_sub(since))
    }

    fn note_progress(&self, now: Instant) {
        self.progress.store(self.age(now), Ordering::Relaxed);
    }

    /// Begins a call.
    pub(super) fn begin(self: Arc<Self>, now: Instant) -> InFlight {
        let checked = self.checked.load(Ordering::Relaxed);
        if self.age(now).saturating_sub(checked) > ROLE_INTERVAL.as_millis() as u64 {
            self.check();
        }
        InFlight::begin(self, now)
    }

    /// Asks for the server's role in the background: a server that has become a replica refuses only writes.
    /// This also shows whether the connection still receives replies.
    #[cold]
    fn check(self: &Arc<Self>) {
        // There is no runtime if a call is dropped after its end.
        let Ok(runtime) = Handle::try_current() else { return };
        if self.checked.swap(ASKING, Ordering::Relaxed) == ASKING {
            return;
        }
        let mut call = InFlight::begin(self.clone(), Instant::now());
        runtime.spawn(async move {
            let role = timeout(call.connection.reply_timeout, is_master(&mut call.driver())).await;
            call.connection.checked.store(call.connection.age(Instant::now()), Ordering::Relaxed);
            // An error is ignored: the user may lack the permission.
            if let Ok(role) = role {
                call.replied();
                if matches!(role, Ok(false)) {
                    call.retire();
                }
            }
        });
    }
}

pub(super) async fn is_master(driver: &mut MultiplexedConnection) -> RedisResult<bool> {
    let role: Value = cmd("ROLE").query_async(driver).await?;
    let Value::Array(parts) = role else { return Ok(false) };
    Ok(matches!(parts.first(), Some(Value::BulkString(role)) if role == b"master"))
}

/// A call in flight on a connection, until it is dropped.
pub(super) struct InFlight {
    connection: Arc<Connection>,
    replied: bool,
}

impl InFlight {
    fn begin(connection: Arc<Connection>, now: Instant) -> Self {
        if connection.in_flight.fetch_add(1, Ordering::Relaxed) == 0 {
            connection.note_progress(now);
        }
        Self { connection, replied: false }
    }

    /// The driver's handle, to send the next request.
    pub(super) fn driver(&mut self) -> MultiplexedConnection {
        self.replied = false;
        self.connection.opened.driver.clone()
    }

    /// See [`Connection::retire`].
    pub(super) fn retire(&self) {
        self.connection.retire();
    }

    /// The reply to the last request arrived.
    pub(super) fn replied(&mut self) {
        self.replied = true;
        self.connection.note_progress(Instant::now());
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.replied && !self.connection.is_dead() {
            if self.connection.silence(Instant::now()) >= self.connection.reply_timeout {
                self.retire();
            } else {
                // The request of a dropped call may never have been sent, so that no reply comes.
                self.connection.check();
            }
        }
        self.connection.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where a connection leads.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) addr: Address,
    /// What the host's name stood for. `None`: it is not known, or there is no name.
    peer: Option<SocketAddr>,
}

/// An open connection. Dropping it closes the connection, even with requests in flight.
pub(super) struct Opened {
    pub(super) driver: MultiplexedConnection,
    pub(super) place: Place,
    /// Writes requests and reads replies until the connection is lost. None if the driver ends its own task.
    task: Option<JoinHandle<()>>,
}

impl Opened {
    /// Logs in over a stream. `server` is how errors name the server.
    async fn handshake(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        info: &RedisConnectionInfo,
        config: AsyncConnectionConfig,
        server: &str,
        place: Place,
    ) -> Result<Self> {
        let opened = MultiplexedConnection::new_with_config(info, stream, config).await;
        let (driver, task) = opened.map_err(|error| error::of_handshake(&error, server))?;
        Ok(Self { driver, place, task: Some(tokio::spawn(task)) })
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// The credentials for a server, and the database.
#[derive(Clone)]
pub(super) struct Login {
    info: RedisConnectionInfo,
    password: Option<Secret>,
}

impl Login {
    pub(super) fn new(username: Option<&str>, password: Option<&Secret>, db: u32) -> Self {
        // With RESP3 maps differ from lists.
        let info = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_db(db.into());
        let info = username.into_iter().fold(info, RedisConnectionInfo::set_username);
        Self { info, password: password.cloned() }
    }

    /// Reads the current password.
    async fn connection_info(&self) -> Result<RedisConnectionInfo> {
        let info = self.info.clone();
        Ok(match &self.password {
            Some(password) => info.set_password(password.reveal().await?),
            None => info,
        })
    }
}

/// The settings that all connections of a store share.
#[derive(Clone)]
pub(super) struct Settings {
    login: Login,
    tcp: TcpSettings,
    pub(super) tls: Option<Tls>,
    driver: AsyncConnectionConfig,
    client_name: String,
    pub(super) dial_timeout: Duration,
    pub(super) reply_timeout: Duration,
}

impl Settings {
    /// Reads the certificates.
    pub(super) async fn new(options: &RedisOptions) -> Result<Self> {
        let tls = match &options.tls {
            Some(tls) => Some(Tls::new(tls).await?),
            None => None,
        };
        Ok(Self {
            login: Login::new(options.username.as_deref(), options.password.as_ref(), options.db),
            tcp: dial::tcp_settings(options),
            tls,
            driver: AsyncConnectionConfig::new()
                // The driver's default of 500 ms is too short: the outcome of a write would be unknown.
                .set_response_timeout(None)
                .set_pipeline_buffer_size(MAX_QUEUED),
            client_name: options.client_name.clone(),
            dial_timeout: options.dial_timeout,
            reply_timeout: options.reply_timeout(),
        })
    }

    /// The same for connections whose servers push something.
    pub(super) fn with_pushes(&self, pushed: impl AsyncPushSender) -> Self {
        Self { driver: self.driver.clone().set_push_sender(pushed), ..self.clone() }
    }

    /// Connects and logs in. `server` is how errors name the server.
    pub(super) async fn connect(&self, addr: &Address, server: &str, login: &Login) -> Result<Opened> {
        let (info, config) = (login.connection_info().await?, self.driver.clone());
        let mut place = Place { addr: addr.clone(), peer: None };
        let (host, port) = match addr {
            Address::Host(host, port) => (host, *port),
            Address::Socket(path) => {
                let stream = dial::socket(path, server).await?;
                return Opened::handshake(stream, &info, config, server, place).await;
            }
        };
        let stream = dial::open(&self.tcp, host, port, server).await?;
        place.peer = stream.peer_addr().ok();
        match &self.tls {
            None => Opened::handshake(stream, &info, config, server, place).await,
            Some(tls) => {
                let stream = tls.secure(stream, host, server).await?;
                Opened::handshake(stream, &info, config, server, place).await
            }
        }
    }

    /// Connects by the manager of bb8-redis, which takes at most a second.
    async fn connect_exclusive(&self, addr: &Address, server: &str) -> Result<Opened> {
        let place = Place { addr: addr.clone(), peer: None };
        let addr = match addr {
            Address::Host(host, port) => ConnectionAddr::Tcp(host.clone(), *port),
            Address::Socket(path) => ConnectionAddr::Unix(path.into()),
        };
        let login = self.login.connection_info().await?;
        let info = addr.into_connection_info().map_err(|error| error::of_dial(&error, server))?;
        let info = info.set_redis_settings(login).set_tcp_settings(self.tcp.clone());
        let manager = RedisConnectionManager::new(info).map_err(|error| error::of_dial(&error, server))?;
        let mut driver = manager.connect().await.map_err(|error| match error.is_timeout() {
            true => self.timed_out(server),
            false => error::of_handshake(&error, server),
        })?;
        driver.set_response_timeout(NO_TIMEOUT);
        Ok(Opened { driver, place, task: None })
    }

    /// Connects to a server of the store, for many calls or for one at a time, and sets the client's name
    /// there.
    pub(super) async fn open_server(&self, addr: &Address, server: &str, is_shared: bool) -> Result<Opened> {
        // The driver's TLS reads this machine's certificates for each connection and fails if one is damaged.
        let mut opened = if is_shared || self.tls.is_some() {
            self.connect(addr, server, &self.login).await?
        } else {
            self.connect_exclusive(addr, server).await?
        };
        if !self.client_name.is_empty() {
            let named =
                cmd("CLIENT").arg("SETNAME").arg(&self.client_name).exec_async(&mut opened.driver).await;
            // A refusal is ignored: the user may lack the permission.
            if let Err(error) = named
                && error.code().is_none()
            {
                return Err(error::of_dial(&error, server));
            }
        }
        Ok(opened)
    }

    /// The error for a server that did not accept a connection within the timeout. A server that expects
    /// plain text does not reply to TLS.
    #[cold]
    pub(super) fn timed_out(&self, server: &str) -> Error {
        let hint = if self.tls.is_some() { ": check that this is its TLS port" } else { "" };
        Error::new(ErrorKind::Timeout, format!("timed out connecting to {server}{hint}"))
    }
}

/// The driver has no other way to turn its timeout of 500 ms off, which would make writes Unknown.
const NO_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How many requests can wait to be written to one connection before calls have to wait.
const MAX_QUEUED: usize = 256;
