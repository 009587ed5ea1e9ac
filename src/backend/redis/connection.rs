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
    RedisConnectionInfo, RedisError, RedisResult, Value, aio::MultiplexedConnection, cmd,
    io::tcp::TcpSettings,
};

use tokio::time::Instant;

use super::{RedisConfig, failure, pulse::Pulse, sentinel::Sentinels, tls};
use crate::{
    Error, ErrorKind, Result,
    codec::{host_and_port, is_this_machine},
};

/// A connection. It closes when the last call over it is done and its slot has another.
pub(super) struct Connection {
    driver: MultiplexedConnection,
    dead: Arc<AtomicBool>,
    pulse: Pulse,
    /// When it was last asked for its role, in milliseconds since it was opened.
    asked: AtomicU64,
}

/// A connection in use is asked for its role so often.
const ROLE_EVERY: Duration = Duration::from_secs(5);

impl Connection {
    fn new(driver: MultiplexedConnection, dead: Arc<AtomicBool>, dialed: Duration) -> Self {
        Self { driver, dead, pulse: Pulse::new(Instant::now(), dialed), asked: AtomicU64::new(0) }
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// No later call will use this connection. Those that wait on it go on waiting.
    pub(super) fn abandon(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    pub(super) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// The use of the connection by one call.
    pub(super) fn lease(self: Arc<Self>, now: Instant) -> Lease {
        let age = self.pulse.age(now).as_millis() as u64;
        if age.saturating_sub(self.asked.load(Ordering::Relaxed)) > ROLE_EVERY.as_millis() as u64 {
            self.ask_role(age);
        }
        self.pulse.begin(now);
        Lease { connection: self, replied: false }
    }

    /// Asks the server for its role, meanwhile: only a write is refused by one that has become a replica.
    #[cold]
    fn ask_role(&self, age: u64) {
        self.asked.store(age, Ordering::Relaxed);
        let (mut driver, dead) = (self.driver.clone(), self.dead.clone());
        tokio::spawn(async move {
            // Not every user may ask.
            if let Ok(Ok(false)) = tokio::time::timeout(ROLE_EVERY, is_master(&mut driver)).await {
                dead.store(true, Ordering::Relaxed);
            }
        });
    }
}

/// Whether a server says that it is a master.
pub(super) async fn is_master(driver: &mut MultiplexedConnection) -> RedisResult<bool> {
    let role: Value = cmd("ROLE").query_async(driver).await?;
    let Value::Array(parts) = role else { return Ok(false) };
    Ok(matches!(parts.first(), Some(Value::BulkString(role)) if role == b"master"))
}

/// The use of a connection by one call: as long as it lives the call is in flight.
pub(super) struct Lease {
    connection: Arc<Connection>,
    replied: bool,
}

impl Lease {
    /// What sends the next request.
    pub(super) fn driver(&mut self) -> MultiplexedConnection {
        self.replied = false;
        self.connection.driver.clone()
    }

    pub(super) fn abandon(&self) {
        self.connection.abandon();
    }

    /// A reply to what was sent then came. Says whether it was a long time coming.
    pub(super) fn replied(&mut self, sent: Instant, now: Instant) -> bool {
        self.replied = true;
        self.connection.pulse.replied(sent, now)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.replied {
            self.connection.pulse.give_up(Instant::now());
        }
        self.connection.pulse.end();
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
        let (begun, dead) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let driver = match target {
            Target::Server(addr) => {
                self.greet(addr, &dead).await.map_err(|error| failure::of_dial(&error))?
            }
            Target::Master(sentinels) => sentinels.greet_master(self, &dead).await?,
        };
        Ok(Connection::new(driver, dead, begun.elapsed()))
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
