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
use crate::{Error, ErrorKind, Result};

/// A connection. It closes when the last call over it is done and its slot has another.
pub(super) struct Connection {
    driver: MultiplexedConnection,
    dead: Arc<AtomicBool>,
    opened: Instant,
    /// About when a reply last came, or the first of those in flight was sent: in microseconds since it was opened.
    progress: AtomicU64,
}

/// Progress is not noted more often than this: a note is seen by all threads, which costs more than reading one.
const GRAIN: Duration = Duration::from_micros(500);

impl Connection {
    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// No later call will use this connection. Those that wait on it go on waiting.
    pub(super) fn abandon(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    fn new(driver: MultiplexedConnection, dead: Arc<AtomicBool>) -> Self {
        Self { driver, dead, opened: Instant::now(), progress: AtomicU64::new(0) }
    }

    /// How long it has brought no reply.
    fn silence(&self, now: Instant) -> Duration {
        let age = now.saturating_duration_since(self.opened);
        age.saturating_sub(Duration::from_micros(self.progress.load(Ordering::Relaxed)))
    }

    fn note_progress(&self, now: Instant) {
        let age = now.saturating_duration_since(self.opened).as_micros();
        self.progress.store(u64::try_from(age).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// The use of a connection by one call: in its slot it is one more.
pub(super) struct Lease(Arc<Connection>);

impl Lease {
    pub(super) fn driver(&self) -> MultiplexedConnection {
        self.0.driver.clone()
    }

    pub(super) fn abandon(&self) {
        self.0.abandon();
    }

    pub(super) fn is_dead(&self) -> bool {
        self.0.is_dead()
    }

    /// How many other calls wait on the connection.
    pub(super) fn others(&self) -> usize {
        // Its slot and this lease are no others.
        Arc::strong_count(&self.0).saturating_sub(2)
    }

    /// Whether nobody else waits on it. A wait begins now, then.
    pub(super) fn is_first(&self, now: Instant) -> bool {
        let first = self.others() == 0;
        if first && self.0.silence(now) > GRAIN {
            self.0.note_progress(now);
        }
        first
    }

    /// Whether it owes replies and has brought none for longer than this.
    pub(super) fn is_stalled(&self, now: Instant, stall: Duration) -> bool {
        self.0.silence(now) > stall
    }

    /// Whether it has brought nothing for so long.
    pub(super) fn is_silent(&self, patience: Duration) -> bool {
        self.0.silence(Instant::now()) + GRAIN >= patience
    }

    /// A reply came. Says how long there had been none.
    pub(super) fn replied(&self, now: Instant) -> Duration {
        let silence = self.0.silence(now);
        if silence > GRAIN {
            self.0.note_progress(now);
        }
        silence
    }
}

impl From<Arc<Connection>> for Lease {
    fn from(connection: Arc<Connection>) -> Self {
        Self(connection)
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
        Ok(Self {
            login: login(config.username.as_deref(), config.password.as_deref()).set_db(config.db.into()),
            tcp: tcp(config),
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

    async fn dial(&self, target: &Target) -> Result<Connection> {
        let addr = match target {
            Target::Server(addr) => addr.clone(),
            Target::Master(sentinels) => sentinels.master(self).await?,
        };
        let dead = Arc::new(AtomicBool::new(false));
        let connect = async {
            let mut driver = self.connect(&addr, None, Some(dead.clone())).await?;
            if !self.client_name.is_empty() {
                cmd("CLIENT").arg("SETNAME").arg(&self.client_name).exec_async(&mut driver).await?;
            }
            Ok(driver)
        };
        let mut driver = connect.await.map_err(|error| failure::of_dial(&error))?;
        if let Target::Master(_) = target {
            super::sentinel::check_role(&mut driver).await?;
        }
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
    /// `host`, `host:port`, `[ipv6]:port` or `/path`
    pub(super) fn parse(addr: &str, default_port: u16) -> Result<Self> {
        if addr.starts_with('/') {
            return Ok(Self::Socket(addr.to_owned()));
        }
        let wrong = || {
            Error::new(
                ErrorKind::InvalidValue,
                "a Redis address is `host`, `host:port`, `[ipv6]:port` or `/path`",
            )
        };
        let (host, port) = match addr.strip_prefix('[') {
            Some(rest) => rest.split_once(']').ok_or_else(wrong)?,
            None => addr.split_at(addr.find(':').unwrap_or(addr.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().map_err(|_| wrong())?,
            None if port.is_empty() => default_port,
            None => return Err(wrong()),
        };
        if host.is_empty() { Err(wrong()) } else { Ok(Self::Host(host.to_owned(), port)) }
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
    let settings = settings.set_user_timeout(config.write_timeout);
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
        for wrong in ["", ":1", "host:", "host:x", "::1", "[::1", "[::1]x"] {
            assert_eq!(parse(wrong).unwrap_err().kind(), ErrorKind::InvalidValue, "{wrong}");
        }
        assert_eq!(Address::parse_list("a, b:2", 1).unwrap(), [host("a", 1), host("b", 2)]);
        assert!(Address::parse_list("a,,b", 1).is_err());
    }
}
