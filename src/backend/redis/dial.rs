//! How a connection is opened: TCP or a socket, TLS, and the login.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::select_ok;
use redis::{
    AsyncConnectionConfig, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo,
    aio::MultiplexedConnection,
    cmd,
    io::tcp::socket2::{SockRef, TcpKeepalive},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream, lookup_host},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use super::{RedisConfig, RedisTls, address::Address, connection::Connection, failure, sentinel::Sentinels};
use crate::{
    Error, ErrorKind, Result, Secret,
    backend::remote::trust::{Checks, Files, Names},
};

/// What a connection leads to.
pub(super) enum Target {
    Server(Address),
    /// The server that is the master now.
    Master(Sentinels),
}

/// What all connections of a store have in common.
pub(super) struct Settings {
    login: Login,
    db: u32,
    nodelay: bool,
    #[cfg(target_os = "linux")]
    user_timeout: Duration,
    tls: Option<Tls>,
    driver: AsyncConnectionConfig,
    client_name: String,
    dial_timeout: Duration,
}

struct Tls {
    connector: TlsConnector,
    /// The host that certificates are for, if it is not the one that is connected to.
    server_name: Option<ServerName<'static>>,
}

/// Who logs in. The password is asked for at each new connection.
#[derive(Clone)]
pub(super) struct Login {
    pub(super) username: Option<String>,
    pub(super) password: Option<Secret>,
}

/// How many requests may wait to be written to one connection before calls wait for room.
const QUEUE: usize = 256;

pub(super) const NAMES: Names = Names { ca: "tls_ca", cert: "tls_cert", key: "tls_key" };

impl Settings {
    pub(super) async fn new(config: &RedisConfig) -> Result<Self> {
        let tls = match &config.tls {
            Some(tls) => Some(Tls::new(tls).await?),
            None => None,
        };
        Ok(Self {
            login: Login { username: config.username.clone(), password: config.password.clone() },
            db: config.db,
            nodelay: config.tcp_nodelay,
            // Milliseconds in an int.
            #[cfg(target_os = "linux")]
            user_timeout: config.write_timeout.min(Duration::from_millis(i32::MAX as u64)),
            tls,
            driver: AsyncConnectionConfig::new()
                .set_connection_timeout(None)
                // The driver's own is 500 ms: too short for a write, whose outcome is unknown then.
                .set_response_timeout(None)
                .set_pipeline_buffer_size(QUEUE),
            client_name: config.client_name.clone(),
            dial_timeout: config.dial_timeout,
        })
    }

    /// Connects to a server, and logs in as these settings say, or as another.
    pub(super) async fn connect(
        &self,
        addr: &Address,
        login: Option<&Login>,
        push: Option<Arc<AtomicBool>>,
    ) -> Result<Driver> {
        let connected = self.connect_to(addr, login, push).await;
        connected.map_err(|error| error.at(addr))
    }

    async fn connect_to(
        &self,
        addr: &Address,
        login: Option<&Login>,
        push: Option<Arc<AtomicBool>>,
    ) -> Result<Driver> {
        // Sentinels have no databases.
        let (login, db) = login.map_or((&self.login, self.db), |login| (login, 0));
        let login = login.info(db).await?;
        let mut config = self.driver.clone();
        if let Some(dead) = push {
            config = config.set_push_sender(move |push: PushInfo| {
                if push.kind == PushKind::Disconnection {
                    dead.store(true, Ordering::Relaxed);
                }
                Ok::<(), ()>(())
            });
        }
        let (host, port) = match addr {
            Address::Host(host, port) => (&**host, *port),
            Address::Socket(path) => {
                let stream =
                    UnixStream::connect(path).await.map_err(|error| failure::of_connecting(&error))?;
                return Driver::greet(stream, &login, config).await;
            }
        };
        let stream = self.tcp(host, port).await.map_err(|error| failure::of_connecting(&error))?;
        match &self.tls {
            None => Driver::greet(stream, &login, config).await,
            Some(tls) => Driver::greet(tls.handshake(host, stream).await?, &login, config).await,
        }
    }

    /// All addresses of a name are tried at once: the first that accepts is taken.
    async fn tcp(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let attempts: Vec<_> =
            lookup_host((host, port)).await?.map(|addr| Box::pin(TcpStream::connect(addr))).collect();
        if attempts.is_empty() {
            return Err(io::Error::other("failed to lookup address information: no address"));
        }
        let (stream, _) = select_ok(attempts).await?;
        stream.set_nodelay(self.nodelay)?;
        let socket = SockRef::from(&stream);
        let keepalive =
            TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));
        socket.set_tcp_keepalive(&keepalive)?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(self.user_timeout))?;
        Ok(stream)
    }

    /// Connects to a server of the store. The flag is set when the connection is closed.
    pub(super) async fn greet(&self, addr: &Address, dead: &Arc<AtomicBool>) -> Result<Driver> {
        let driver = self.connect(addr, None, Some(dead.clone())).await?;
        if !self.client_name.is_empty() {
            let mut requests = driver.requests();
            let named = cmd("CLIENT").arg("SETNAME").arg(&self.client_name).exec_async(&mut requests).await;
            // Not every user may.
            named
                .or_else(|error| if error.code().is_some() { Ok(()) } else { Err(error) })
                .map_err(|error| failure::of_dial(&error).at(addr))?;
        }
        Ok(driver)
    }

    async fn dial(&self, target: &Target) -> Result<Connection> {
        let (begun, dead) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let driver = match target {
            Target::Server(addr) => self.greet(addr, &dead).await?,
            Target::Master(sentinels) => sentinels.greet_master(self, &dead).await?,
        };
        Ok(Connection::new(driver, dead, begun.elapsed()))
    }

    /// Opens a connection within the time that the configuration gives it.
    pub(super) async fn open(&self, target: &Target) -> Result<Connection> {
        timeout(self.dial_timeout, self.dial(target)).await.unwrap_or_else(|_| {
            let slow = Error::new(ErrorKind::Timeout, "the Redis server did not open a connection in time");
            Err(match target {
                Target::Server(addr) => slow.at(addr),
                Target::Master(_) => slow,
            })
        })
    }

    pub(super) fn dial_timeout(&self) -> Duration {
        self.dial_timeout
    }

    pub(super) fn uses_tls(&self) -> bool {
        self.tls.is_some()
    }
}

impl Login {
    async fn info(&self, db: u32) -> Result<RedisConnectionInfo> {
        // RESP3 has the message that a connection was closed, and tells maps from lists.
        let mut login = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_db(db.into());
        if let Some(username) = &self.username {
            login = login.set_username(username);
        }
        if let Some(password) = &self.password {
            login = login.set_password(password.reveal().await?);
        }
        Ok(login)
    }
}

impl Tls {
    async fn new(config: &RedisTls) -> Result<Self> {
        let server_name = config.server_name.clone().map(ServerName::try_from).transpose().map_err(|_| {
            Error::new(ErrorKind::InvalidValue, "`tls_server_name` is the name or the IP address of a host")
        })?;
        let RedisTls { ca, cert, key, .. } = config.clone();
        let trust = Files { names: &NAMES, ca, cert, key }.read(Checks::IssuerAndName).await?;
        Ok(Self { connector: Arc::new(trust).into(), server_name })
    }

    async fn handshake(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(|_| {
                Error::new(ErrorKind::InvalidValue, "TLS needs the name or the IP address of a host")
            })?,
        };
        self.connector.connect(name, stream).await.map_err(|error| failure::of_connecting(&error))
    }
}

/// A driver's connection, and the task that serves it. Dropping it closes the connection.
pub(super) struct Driver {
    requests: MultiplexedConnection,
    task: JoinHandle<()>,
}

impl Driver {
    async fn greet(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        login: &RedisConnectionInfo,
        config: AsyncConnectionConfig,
    ) -> Result<Self> {
        let (requests, task) = MultiplexedConnection::new_with_config(login, stream, config)
            .await
            .map_err(|error| failure::of_greeting(&error))?;
        Ok(Self { requests, task: tokio::spawn(task) })
    }

    /// What sends requests.
    pub(super) fn requests(&self) -> MultiplexedConnection {
        self.requests.clone()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}
