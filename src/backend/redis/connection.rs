//! One connection that many calls share, and how it is opened.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo, RedisResult, Value,
    aio::MultiplexedConnection, cmd,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinHandle,
    time::Instant,
};

use super::{
    RedisOptions,
    dial::{self, Tcp},
    error,
    pulse::Pulse,
    sentinel::Sentinels,
    tls::Tls,
};
use crate::{
    Error, ErrorKind, Result, Secret,
    codec::{host_and_port, is_this_machine},
};

/// A connection. It closes when the last call over it is done and its slot has another.
pub(super) struct Connection {
    opened: Opened,
    dead: Arc<AtomicBool>,
    pulse: Pulse,
    /// When it was last asked for its role, in milliseconds since it was opened.
    asked: AtomicU64,
}

/// A connection in use is asked for its role so often.
const ROLE_EVERY: Duration = Duration::from_secs(5);

impl Connection {
    fn new(opened: Opened, dead: Arc<AtomicBool>, dialed: Duration) -> Self {
        Self { opened, dead, pulse: Pulse::new(Instant::now(), dialed), asked: AtomicU64::new(0) }
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
        let (mut driver, dead) = (self.opened.driver.clone(), self.dead.clone());
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
        self.connection.opened.driver.clone()
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

/// An open connection. When this is dropped it is closed, whatever is on its way.
pub(super) struct Opened {
    pub(super) driver: MultiplexedConnection,
    /// Carries what is sent and what comes.
    task: JoinHandle<()>,
}

impl Opened {
    /// Logs in over a stream to a server, which errors name so.
    async fn greet(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        info: &RedisConnectionInfo,
        config: AsyncConnectionConfig,
        server: &str,
    ) -> Result<Self> {
        let greeted = MultiplexedConnection::new_with_config(info, stream, config).await;
        let (driver, carry) = greeted.map_err(|error| error::of_greeting(&error, server))?;
        Ok(Self { driver, task: tokio::spawn(carry) })
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Who we are at a server.
pub(super) struct Login {
    username: Option<String>,
    password: Option<Secret>,
    db: u32,
}

impl Login {
    pub(super) fn new(username: Option<&str>, password: Option<&Secret>, db: u32) -> Self {
        Self { username: username.map(str::to_owned), password: password.cloned(), db }
    }

    /// With the password as it is now.
    async fn ask(&self) -> Result<RedisConnectionInfo> {
        // RESP3 has the message that a connection was closed, and tells maps from lists.
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

/// What all connections of a store have in common.
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
    pub(super) async fn new(config: &RedisOptions) -> Result<Self> {
        let tls = match &config.tls {
            Some(tls) => Some(Tls::new(tls).await?),
            None => None,
        };
        Ok(Self {
            login: Login::new(config.username.as_deref(), config.password.as_ref(), config.db),
            tcp: Tcp::new(config),
            tls,
            driver: AsyncConnectionConfig::new()
                // The driver's own is 500 ms: too short for a write whose outcome is not known then.
                .set_response_timeout(None)
                .set_pipeline_buffer_size(QUEUE),
            client_name: config.client_name.clone(),
            dial_timeout: config.dial_timeout,
        })
    }

    /// Connects to a server, which errors name so, and logs in as these settings say, or as another.
    pub(super) async fn connect(
        &self,
        addr: &Address,
        server: &str,
        login: Option<&Login>,
        push: Option<Arc<AtomicBool>>,
    ) -> Result<Opened> {
        let info = login.unwrap_or(&self.login).ask().await?;
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
            Address::Host(host, port) => (host, *port),
            Address::Socket(path) => {
                return Opened::greet(dial::socket(path, server).await?, &info, config, server).await;
            }
        };
        let stream = self.tcp.open(host, port, server).await?;
        match &self.tls {
            None => Opened::greet(stream, &info, config, server).await,
            Some(tls) => Opened::greet(tls.secure(stream, host, server).await?, &info, config, server).await,
        }
    }

    /// Connects to a server of the store. The flag is set when the connection is closed.
    pub(super) async fn greet(&self, addr: &Address, server: &str, dead: &Arc<AtomicBool>) -> Result<Opened> {
        let mut opened = self.connect(addr, server, None, Some(dead.clone())).await?;
        if !self.client_name.is_empty() {
            let named =
                cmd("CLIENT").arg("SETNAME").arg(&self.client_name).exec_async(&mut opened.driver).await;
            // Not every user may.
            named
                .or_else(|error| if error.code().is_some() { Ok(()) } else { Err(error) })
                .map_err(|error| error::of_dial(&error, server))?;
        }
        Ok(opened)
    }

    /// Opens a connection within the time that the configuration gives it.
    pub(super) async fn open(&self, target: &Target) -> Result<Connection> {
        let (begun, dead) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let opened = match target {
            Target::Server(addr) => {
                let server = addr.named("the Redis server");
                let greeted = tokio::time::timeout(self.dial_timeout, self.greet(addr, &server, &dead)).await;
                greeted.unwrap_or_else(|_| Err(self.slow(&server)))?
            }
            // Each of the sentinels has its part of the time.
            Target::Master(sentinels) => sentinels.greet_master(self, &dead).await?,
        };
        Ok(Connection::new(opened, dead, begun.elapsed()))
    }

    pub(super) fn dial_timeout(&self) -> Duration {
        self.dial_timeout
    }

    pub(super) fn uses_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// A server, named so, that let the time to connect pass. One that waits for plain text says nothing to TLS.
    #[cold]
    pub(super) fn slow(&self, server: &str) -> Error {
        let port = if self.tls.is_some() { ": see that this is its port for TLS" } else { "" };
        Error::new(ErrorKind::Timeout, format!("{server} did not open a connection in time{port}"))
    }
}

/// How many requests may wait to be written to one connection before calls wait for room.
const QUEUE: usize = 256;

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

    /// How an error names what is there.
    pub(super) fn named(&self, what: &str) -> String {
        format!("{what} at {self}")
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
