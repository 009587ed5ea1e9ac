//! One connection that many calls share, and how it is opened.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind,
    RedisConnectionInfo, RedisError, RedisResult, aio::MultiplexedConnection, cmd, io::tcp::TcpSettings,
};

use tokio::time::Instant;

use super::{RedisConfig, failure, sentinel::Sentinels, tls};
use crate::{
    Error, ErrorKind, Result,
    codec::{host_and_port, is_this_machine},
};

/// A connection. It closes when the last call over it is done and its slot has another.
pub(super) struct Connection {
    driver: MultiplexedConnection,
    dead: Arc<AtomicBool>,
    opened: Instant,
    /// About when a reply last came, or the first of those in flight was sent: in microseconds since it was opened.
    progress: AtomicU64,
    /// Whether a call was given up after the last reply: it still owes one, although nobody waits.
    owes: AtomicBool,
}

/// Progress is not noted more often than this: a note is seen by all threads, which costs more than reading one.
const GRAIN: Duration = Duration::from_micros(500);

impl Connection {
    fn new(driver: MultiplexedConnection, dead: Arc<AtomicBool>) -> Self {
        let (progress, owes) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { driver, dead, opened: Instant::now(), progress, owes }
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// No later call will use this connection. Those that wait on it go on waiting.
    pub(super) fn abandon(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    /// How many calls wait on it. Its slot and whoever looks are none.
    pub(super) fn in_flight(self: &Arc<Self>) -> usize {
        Arc::strong_count(self).saturating_sub(2)
    }

    /// How long it has brought no reply, if it owes one.
    pub(super) fn silence(self: &Arc<Self>, now: Instant) -> Duration {
        if self.in_flight() == 0 && !self.owes.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        self.since_progress(now)
    }

    fn since_progress(&self, now: Instant) -> Duration {
        let age = now.saturating_duration_since(self.opened);
        age.saturating_sub(Duration::from_micros(self.progress.load(Ordering::Relaxed)))
    }

    fn note_progress(&self, now: Instant) {
        let age = now.saturating_duration_since(self.opened).as_micros();
        self.progress.store(u64::try_from(age).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The use of the connection by one call. Where nothing is owed, a wait begins now.
    pub(super) fn lease(self: Arc<Self>, now: Instant) -> Lease {
        if self.silence(now).is_zero() && self.since_progress(now) > GRAIN {
            self.note_progress(now);
        }
        Lease { connection: self, replied: false }
    }
}

/// The use of a connection by one call: as long as it lives the call is in flight.
pub(super) struct Lease {
    connection: Arc<Connection>,
    replied: bool,
}

impl Lease {
    pub(super) fn driver(&self) -> MultiplexedConnection {
        self.connection.driver.clone()
    }

    pub(super) fn abandon(&self) {
        self.connection.abandon();
    }

    /// A reply came. Says how long there had been none.
    pub(super) fn replied(&mut self, now: Instant) -> Duration {
        self.replied = true;
        // Replies come in order: what was given up before is answered, too.
        if self.connection.owes.load(Ordering::Relaxed) {
            self.connection.owes.store(false, Ordering::Relaxed);
        }
        let silence = self.connection.since_progress(now);
        if silence > GRAIN {
            self.connection.note_progress(now);
        }
        silence
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.replied {
            self.connection.owes.store(true, Ordering::Relaxed);
        }
    }
}

/// What all connections of a store have in common.
pub(super) struct Settings {
    login: RedisConnectionInfo,
    tcp: TcpSettings,
    tls: Option<tls::Certificates>,
    driver: AsyncConnectionConfig,
    client_name: String,
    dial_timeout: Duration,
}

impl Settings {
    pub(super) fn new(config: &RedisConfig) -> Result<Self> {
        let tcp = tcp(config);
        Ok(Self {
            login: login(config.username.as_deref(), config.password.as_deref()).set_db(config.db.into()),
            tcp,
            tls: config.tls.as_ref().map(tls::Certificates::load).transpose()?,
            driver: AsyncConnectionConfig::new()
                .set_connection_timeout(None)
                // The driver's own is 500 ms: too short for a write whose outcome then nobody knows.
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
        login: Option<&RedisConnectionInfo>,
        push: Option<Arc<AtomicBool>>,
    ) -> RedisResult<MultiplexedConnection> {
        let login = login.unwrap_or(&self.login).clone();
        let info = |addr: ConnectionAddr| {
            let info = addr.into_connection_info()?;
            Ok::<_, RedisError>(info.set_redis_settings(login).set_tcp_settings(self.tcp.clone()))
        };
        let client = match (addr, &self.tls) {
            (Address::Socket(path), _) => Client::open(info(ConnectionAddr::Unix(path.into()))?)?,
            (Address::Host(host, port), None) => {
                Client::open(info(ConnectionAddr::Tcp(host.clone(), *port))?)?
            }
            (Address::Host(host, port), Some(certificates)) => {
                let addr = ConnectionAddr::TcpTls {
                    host: host.clone(),
                    port: *port,
                    insecure: false,
                    tls_params: None,
                };
                certificates.client(info(addr)?)?
            }
        };
        let mut config = self.driver.clone();
        if let Some(dead) = push {
            config = config.set_push_sender(move |push: PushInfo| {
                if push.kind == PushKind::Disconnection {
                    dead.store(true, Ordering::Relaxed);
                }
                Ok::<(), ()>(())
            });
        }
        client.get_multiplexed_async_connection_with_config(&config).await
    }

    /// Connects to a server of the store. The flag is set when the connection is closed.
    pub(super) async fn greet(
        &self,
        addr: &Address,
        dead: &Arc<AtomicBool>,
    ) -> RedisResult<MultiplexedConnection> {
        let mut driver = self.connect(addr, None, Some(dead.clone())).await?;
        if !self.client_name.is_empty() {
            let named = cmd("CLIENT").arg("SETNAME").arg(&self.client_name).exec_async(&mut driver).await;
            // Not every user may.
            named.or_else(|error| if error.code().is_some() { Ok(()) } else { Err(error) })?;
        }
        Ok(driver)
    }

    async fn dial(&self, target: &Target) -> Result<Connection> {
        let dead = Arc::new(AtomicBool::new(false));
        let driver = match target {
            Target::Server(addr) => {
                self.greet(addr, &dead).await.map_err(|error| failure::of_dial(&error))?
            }
            Target::Master(sentinels) => sentinels.greet_master(self, &dead).await?,
        };
        Ok(Connection::new(driver, dead))
    }

    /// Opens a connection within the time that the configuration gives it.
    pub(super) async fn open(&self, target: &Target) -> Result<Connection> {
        tokio::time::timeout(self.dial_timeout, self.dial(target)).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Timeout, "the Redis server did not open a connection in time"))
        })
    }

    pub(super) fn dial_timeout(&self) -> Duration {
        self.dial_timeout
    }

    pub(super) fn uses_tls(&self) -> bool {
        self.tls.is_some()
    }
}

/// How many requests may wait to be written to one connection before calls wait for room.
const QUEUE: usize = 256;

pub(super) fn login(username: Option<&str>, password: Option<&str>) -> RedisConnectionInfo {
    // RESP3 has the message that a connection was closed, and tells maps from lists.
    let mut login = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
    if let Some(username) = username {
        login = login.set_username(username);
    }
    if let Some(password) = password {
        login = login.set_password(password);
    }
    login
}

/// What a connection leads to.
pub(super) enum Target {
    Server(Address),
    /// Whoever is the master now.
    Master(Sentinels),
}

/// Where one server is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Address {
    Host(String, u16),
    Socket(String),
}

impl Address {
    /// Whether it is on this machine.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Self::Host(host, _) => is_this_machine(host),
            Self::Socket(_) => true,
        }
    }

    /// `host`, `host:port`, `[ipv6]:port` or `/path`
    pub(super) fn parse(addr: &str, default_port: u16) -> Result<Self> {
        if addr.starts_with('/') {
            return Ok(Self::Socket(addr.to_owned()));
        }
        let (host, port) = host_and_port(addr, default_port).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidValue,
                "a Redis address is `host`, `host:port`, `[ipv6]:port` or `/path`",
            )
        })?;
        Ok(Self::Host(host, port))
    }

    /// Several, separated by commas.
    pub(super) fn parse_list(addrs: &str, default_port: u16) -> Result<Vec<Self>> {
        addrs.split(',').map(|addr| Self::parse(addr.trim(), default_port)).collect()
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
            Self::Socket(path) => f.write_str(path),
        }
    }
}

fn tcp(config: &RedisConfig) -> TcpSettings {
    let settings = TcpSettings::default().set_nodelay(config.tcp_nodelay);
    #[cfg(target_os = "linux")]
    // Milliseconds in an int.
    let settings =
        settings.set_user_timeout(config.write_timeout.min(Duration::from_millis(i32::MAX as u64)));
    #[cfg(not(target_os = "linux"))]
    let _ = config;
    let keepalive = redis::io::tcp::socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5));
    settings.set_keepalive(keepalive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let parse = |addr| Address::parse(addr, 6379);
        let host = |host: &str, port| Address::Host(host.into(), port);
        assert_eq!(parse("host").unwrap(), host("host", 6379));
        assert_eq!(parse("host:1").unwrap(), host("host", 1));
        assert_eq!(parse("[::1]:1").unwrap(), host("::1", 1));
        assert_eq!(parse("[::1]").unwrap(), host("::1", 6379));
        assert_eq!(parse("/run/x").unwrap(), Address::Socket("/run/x".into()));
        for addr in ["host:1", "[::1]:1", "/run/x"] {
            assert_eq!(parse(addr).unwrap().to_string(), addr);
        }
        for wrong in ["", ":1", "host:", "host:x", "::1", "[::1", "[::1]x", "a,b"] {
            assert_eq!(parse(wrong).unwrap_err().kind(), ErrorKind::InvalidValue, "{wrong}");
        }
        assert_eq!(Address::parse_list("a, b:2", 1).unwrap(), [host("a", 1), host("b", 2)]);
        assert!(Address::parse_list("a,,b", 1).is_err());
    }
}
