//! One connection, and how it is opened.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bb8::ManageConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind,
    RedisConnectionInfo, RedisError, aio::MultiplexedConnection, cmd, io::tcp::TcpSettings,
};
use tokio::sync::watch;

use super::{RedisConfig, failure};
use crate::{Error, ErrorKind, Result};

/// A handle on a connection that many calls share. It lives as long as one of its handles.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) driver: MultiplexedConnection,
    dead: Arc<AtomicBool>,
}

impl Connection {
    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// No later call will use this connection. Those that wait on it go on waiting.
    pub(super) fn abandon(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }
}

/// Opens connections for the pool.
pub(super) struct Dialer {
    client: Client,
    config: AsyncConnectionConfig,
    client_name: String,
    dial_timeout: Duration,
    /// Tells the calls that wait for a connection why there is none: bb8 lets them wait.
    failures: watch::Sender<Option<Error>>,
}

impl Dialer {
    pub(super) fn new(config: &RedisConfig, failures: watch::Sender<Option<Error>>) -> Result<Self> {
        let mut login = RedisConnectionInfo::default()
            .set_db(config.db.into())
            // Needed for the message that a connection was closed.
            .set_protocol(ProtocolVersion::RESP3);
        if let Some(username) = &config.username {
            login = login.set_username(username);
        }
        if let Some(password) = &config.password {
            login = login.set_password(password);
        }
        let client = address(&config.addr)?
            .into_connection_info()
            .map(|info| info.set_redis_settings(login).set_tcp_settings(tcp(config)))
            .and_then(Client::open)
            .map_err(|_| Error::new(ErrorKind::InvalidValue, "the Redis server's address can't be used"))?;
        Ok(Self {
            client,
            config: AsyncConnectionConfig::new()
                .set_connection_timeout(None)
                // The driver's own is 500 ms: too short for a write whose outcome then nobody knows.
                .set_response_timeout(None)
                .set_pipeline_buffer_size(QUEUE),
            client_name: config.client_name.clone(),
            dial_timeout: config.dial_timeout,
            failures,
        })
    }

    async fn dial(&self) -> Result<Connection, RedisError> {
        let dead = Arc::new(AtomicBool::new(false));
        let flag = dead.clone();
        let config = self.config.clone().set_push_sender(move |push: PushInfo| {
            if push.kind == PushKind::Disconnection {
                flag.store(true, Ordering::Relaxed);
            }
            Ok::<(), ()>(())
        });
        let mut driver = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        if !self.client_name.is_empty() {
            cmd("CLIENT").arg("SETNAME").arg(&self.client_name).exec_async(&mut driver).await?;
        }
        Ok(Connection { driver, dead })
    }
}

/// How many requests may wait to be written to one connection before calls wait for room.
const QUEUE: usize = 256;

impl ManageConnection for Dialer {
    type Connection = Connection;
    type Error = Error;

    async fn connect(&self) -> Result<Connection> {
        let dialed = tokio::time::timeout(self.dial_timeout, self.dial()).await;
        let result = match dialed {
            Ok(result) => result.map_err(|error| failure::of_dial(&error)),
            Err(_) => {
                Err(Error::new(ErrorKind::Timeout, "the Redis server did not open a connection in time"))
            }
        };
        if let Err(error) = &result {
            self.failures.send_replace(Some(error.clone()));
        }
        result
    }

    async fn is_valid(&self, _: &mut Connection) -> Result<()> {
        Ok(())
    }

    fn has_broken(&self, connection: &mut Connection) -> bool {
        connection.is_dead()
    }
}

const DEFAULT_PORT: u16 = 6379;

fn address(addr: &str) -> Result<ConnectionAddr> {
    if addr.starts_with('/') {
        return Ok(ConnectionAddr::Unix(addr.into()));
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
        None if port.is_empty() => DEFAULT_PORT,
        None => return Err(wrong()),
    };
    if host.is_empty() { Err(wrong()) } else { Ok(ConnectionAddr::Tcp(host.to_owned(), port)) }
}

fn tcp(config: &RedisConfig) -> TcpSettings {
    let settings = TcpSettings::default().set_nodelay(true);
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
        let tcp = |host: &str, port| ConnectionAddr::Tcp(host.into(), port);
        assert_eq!(address("host").unwrap(), tcp("host", 6379));
        assert_eq!(address("host:1").unwrap(), tcp("host", 1));
        assert_eq!(address("[::1]:1").unwrap(), tcp("::1", 1));
        assert_eq!(address("[::1]").unwrap(), tcp("::1", 6379));
        assert_eq!(address("/run/x").unwrap(), ConnectionAddr::Unix("/run/x".into()));
        for wrong in ["", ":1", "host:", "host:x", "::1", "[::1", "[::1]x"] {
            assert_eq!(address(wrong).unwrap_err().kind(), ErrorKind::InvalidValue, "{wrong}");
        }
    }
}
