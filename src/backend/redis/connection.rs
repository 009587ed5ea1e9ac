//! One connection that many calls share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bb8::ManageConnection;
use bb8_redis::RedisConnectionManager;
use redis::{
    AsyncConnectionConfig, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind,
    RedisConnectionInfo, RedisResult, Value, aio::MultiplexedConnection, cmd,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinHandle,
    time::Instant,
};

use super::{
    RedisOptions,
    address::Address,
    dial::{self, Tcp},
    error,
    stall::StallDetector,
    tls::Tls,
};
use crate::{Error, ErrorKind, Result, Secret};

/// A connection. It closes when its pool has replaced it and its last call has ended.
pub(super) struct Connection {
    opened: Opened,
    dead: Arc<AtomicBool>,
    stalls: StallDetector,
    /// When the server was last asked for its role, in milliseconds since the connection was opened.
    role_checked: AtomicU64,
}

/// How often the server of a connection in use is asked for its role.
pub(super) const ROLE_INTERVAL: Duration = Duration::from_secs(5);

impl Connection {
    pub(super) fn new(opened: Opened, dead: Arc<AtomicBool>) -> Self {
        let stalls = StallDetector::new(Instant::now());
        Self { opened, dead, stalls, role_checked: AtomicU64::new(0) }
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// Keeps later calls from using this connection. Calls in flight continue to wait.
    pub(super) fn retire(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    pub(super) fn stalls(&self) -> &StallDetector {
        &self.stalls
    }

    /// Begins a call.
    pub(super) fn begin(self: Arc<Self>, now: Instant) -> InFlight {
        let age = self.stalls.age(now).as_millis() as u64;
        if age.saturating_sub(self.role_checked.load(Ordering::Relaxed)) > ROLE_INTERVAL.as_millis() as u64 {
            self.check_role(age);
        }
        self.stalls.begin(now);
        InFlight { connection: self, replied: false }
    }

    /// Asks for the server's role in the background: a server that has become a replica refuses only writes.
    #[cold]
    fn check_role(&self, age: u64) {
        self.role_checked.store(age, Ordering::Relaxed);
        let (mut driver, dead) = (self.opened.driver.clone(), self.dead.clone());
        tokio::spawn(async move {
            // An error is ignored: the user may lack the permission.
            if let Ok(Ok(false)) = tokio::time::timeout(ROLE_INTERVAL, is_master(&mut driver)).await {
                dead.store(true, Ordering::Relaxed);
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
        self.connection.stalls.replied(Instant::now());
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.replied {
            self.connection.stalls.abandon(Instant::now());
        }
        self.connection.stalls.end();
    }
}

/// An open connection. Dropping it closes the connection, even with requests in flight.
pub(super) struct Opened {
    pub(super) driver: MultiplexedConnection,
    /// Writes requests and reads replies. None if the driver ends its own task.
    task: Option<JoinHandle<()>>,
}

impl Opened {
    /// Logs in over a stream. `server` is how errors name the server.
    async fn handshake(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        info: &RedisConnectionInfo,
        config: AsyncConnectionConfig,
        server: &str,
    ) -> Result<Self> {
        let opened = MultiplexedConnection::new_with_config(info, stream, config).await;
        let (driver, task) = opened.map_err(|error| error::of_handshake(&error, server))?;
        Ok(Self { driver, task: Some(tokio::spawn(task)) })
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
pub(super) struct Login {
    username: Option<String>,
    password: Option<Secret>,
    db: u32,
}

impl Login {
    pub(super) fn new(username: Option<&str>, password: Option<&Secret>, db: u32) -> Self {
        Self { username: username.map(str::to_owned), password: password.cloned(), db }
    }

    /// Reads the current password.
    async fn connection_info(&self) -> Result<RedisConnectionInfo> {
        // With RESP3 the driver reports a closed connection, and maps differ from lists.
        let mut info =
            RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_db(self.db.into());
        if let Some(username) = &self.username {
            info = info.set_username(username);
        }
        if let Some(password) = &self.password {
            info = info.set_password(password.reveal().await?);
        }
        Ok(info)
    }
}

/// The settings that all connections of a store share.
pub(super) struct Settings {
    login: Login,
    tcp: Tcp,
    tls: Option<Tls>,
    driver: AsyncConnectionConfig,
    client_name: String,
    dial_timeout: Duration,
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
            tcp: Tcp::new(options),
            tls,
            driver: AsyncConnectionConfig::new()
                // The driver's default of 500 ms is too short: the outcome of a write would be unknown.
                .set_response_timeout(None)
                .set_pipeline_buffer_size(MAX_QUEUED),
            client_name: options.client_name.clone(),
            dial_timeout: options.dial_timeout,
        })
    }

    /// Connects and logs in, by default with the store's login. `server` is how errors name the server;
    /// `dead` is set when the connection is lost.
    pub(super) async fn connect(
        &self,
        addr: &Address,
        server: &str,
        login: Option<&Login>,
        dead: Option<Arc<AtomicBool>>,
    ) -> Result<Opened> {
        let info = login.unwrap_or(&self.login).connection_info().await?;
        let mut config = self.driver.clone();
        if let Some(dead) = dead {
            config = config.set_push_sender(move |push: PushInfo| {
                if push.kind == PushKind::Disconnection {
                    dead.store(true, Ordering::Relaxed);
                }
                Ok::<(), ()>(())
            });
        }
        let (host, port) = match addr {
            Address::Host(host, port) => (host, *port),
            Address::Socket(path) => {
                return Opened::handshake(dial::socket(path, server).await?, &info, config, server).await;
            }
        };
        let stream = self.tcp.open(host, port, server).await?;
        match &self.tls {
            None => Opened::handshake(stream, &info, config, server).await,
            Some(tls) => {
                Opened::handshake(tls.secure(stream, host, server).await?, &info, config, server).await
            }
        }
    }

    /// Connects for calls that have the connection for themselves. Without TLS the manager of bb8-redis does
    /// it, which takes at most a second.
    async fn connect_exclusive(&self, addr: &Address, server: &str) -> Result<Opened> {
        // The driver's TLS reads this machine's certificates for each connection and fails if one is damaged.
        if self.tls.is_some() {
            return self.connect(addr, server, None, None).await;
        }
        let addr = match addr {
            Address::Host(host, port) => ConnectionAddr::Tcp(host.clone(), *port),
            Address::Socket(path) => ConnectionAddr::Unix(path.into()),
        };
        let login = self.login.connection_info().await?;
        let info = addr.into_connection_info().map_err(|error| error::of_dial(&error, server))?;
        let info = info.set_redis_settings(login).set_tcp_settings(self.tcp.of_driver());
        let manager = RedisConnectionManager::new(info).map_err(|error| error::of_dial(&error, server))?;
        let mut driver = manager.connect().await.map_err(|error| match error.is_timeout() {
            true => self.timed_out(server),
            false => error::of_handshake(&error, server),
        })?;
        driver.set_response_timeout(NO_TIMEOUT);
        Ok(Opened { driver, task: None })
    }

    /// Connects to a server of the store, and sets the client's name there. `dead` of a shared connection is
    /// set when it is lost; an exclusive connection has none.
    pub(super) async fn open_server(
        &self,
        addr: &Address,
        server: &str,
        dead: Option<&Arc<AtomicBool>>,
    ) -> Result<Opened> {
        let mut opened = match dead {
            Some(dead) => self.connect(addr, server, None, Some(dead.clone())).await?,
            None => self.connect_exclusive(addr, server).await?,
        };
        if !self.client_name.is_empty() {
            let named =
                cmd("CLIENT").arg("SETNAME").arg(&self.client_name).exec_async(&mut opened.driver).await;
            // A refusal is ignored: the user may lack the permission.
            named
                .or_else(|error| if error.code().is_some() { Ok(()) } else { Err(error) })
                .map_err(|error| error::of_dial(&error, server))?;
        }
        Ok(opened)
    }

    pub(super) fn dial_timeout(&self) -> Duration {
        self.dial_timeout
    }

    pub(super) fn uses_tls(&self) -> bool {
        self.tls.is_some()
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
