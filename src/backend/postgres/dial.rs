//! Opens connections.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use bb8_postgres::{PostgresConnectionManager, bb8::ManageConnection};
use tokio::{
    net::lookup_host,
    time::{Instant, timeout, timeout_at},
};
use tokio_postgres::{
    Config, Error as DriverError,
    config::{
        ChannelBinding as DriverBinding, SslMode as DriverMode, SslNegotiation as DriverNegotiation,
        TargetSessionAttrs,
    },
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    connection::Connection,
    error,
    options::{ChannelBinding, PostgresOptions, SslMode, SslNegotiation},
    settings::of_session,
};
use crate::{
    Error, ErrorKind, Result, Secret,
    backend::remote::{later, pool::Dial, unreachable},
};

struct Host {
    name: String,
    port: u16,
    /// Its name and port in errors.
    address: String,
    config: Config,
}

/// How long the first attempt at one of several addresses may take. A second attempt follows after the
/// other addresses.
const FIRST_ATTEMPT_TIMEOUT: Duration = Duration::from_millis(250);

/// Opens connections for the pool.
pub(super) struct Dialer {
    hosts: Vec<Host>,
    password: Option<Secret>,
    tls: MakeRustlsConnect,
    behind_pooler: bool,
    /// By bb8-postgres, whose task logs notices: only where no stored value passes. Not behind a pooler,
    /// where only the end of the task closes a connection that owes a reply.
    is_for_schema: bool,
    connect_timeout: Duration,
}

impl Dialer {
    pub(super) fn new(
        options: &PostgresOptions,
        tls: MakeRustlsConnect,
        is_for_schema: bool,
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
            base.options(of_session(options));
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
                let mut config = base.clone();
                config.host(&name).ssl_mode(mode(options.sslmode, &name));
                let is_ipv6 = name.contains(':') && !name.starts_with('/');
                let address = if is_ipv6 { format!("[{name}]:{port}") } else { format!("{name}:{port}") };
                Host { name, port, address, config }
            })
            .collect();
        Ok(Self {
            hosts,
            password: options.password.clone(),
            tls,
            behind_pooler: options.pgbouncer,
            is_for_schema: is_for_schema && !options.pgbouncer,
            connect_timeout: options.connect_timeout,
        })
    }

    async fn dial_host(&self, host: &Host, config: &Config, deadline: Instant) -> Result<Connection> {
        let address = &host.address;
        if host.name.starts_with('/') {
            let dialed = self.dial_one(config.clone().port(host.port)).await;
            return dialed.map_err(|error| error::at(address, error));
        }
        let found = lookup_host((&*host.name, host.port)).await;
        let found = found.map_err(|error| error::at(address, unreachable(error::SERVER, Some(&error))))?;
        let dialed = self.dial_addresses(config, found.collect(), deadline).await;
        dialed.map_err(|(tried, error)| match tried {
            Some(tried) if tried.to_string() != *address => {
                error::at(&format!("{address} ({})", tried.ip()), error)
            }
            _ => error::at(address, error),
        })
    }

    /// Connects to the first of a host's addresses that accepts the login. Each gets its share of the time.
    /// An address that does not accept at once is tried again after the others.
    async fn dial_addresses(
        &self,
        config: &Config,
        addresses: Vec<SocketAddr>,
        deadline: Instant,
    ) -> Result<Connection, (Option<SocketAddr>, Error)> {
        let is_first = addresses.len() > 1;
        let mut left: VecDeque<_> = addresses.into_iter().map(|address| (address, is_first)).collect();
        let mut failed: Option<(SocketAddr, Error)> = None;
        while let Some((address, is_first)) = left.pop_front() {
            let share = deadline.saturating_duration_since(Instant::now()) / (left.len() as u32 + 1);
            let mut config = config.clone();
            // The certificate is still checked for the name of the host.
            config.hostaddr(address.ip()).port(address.port());
            config.connect_timeout(if is_first { FIRST_ATTEMPT_TIMEOUT.min(share) } else { share });
            let error = match timeout(share, self.dial_one(&config)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => error,
                Err(_) => error::connect_timeout(),
            };
            let is_denied = |error: &Error| error.kind() == ErrorKind::Denied;
            if is_first && error.kind() == ErrorKind::Timeout {
                left.push_back((address, false));
            } else if !failed.as_ref().is_some_and(|(_, failed)| is_denied(failed) || !is_denied(&error)) {
                // A refusal is more informative than an address that does not respond.
                failed = Some((address, error));
            }
        }
        let (address, error) = failed.unzip();
        Err((address, error.unwrap_or_else(|| unreachable(error::SERVER, None))))
    }

    async fn dial_one(&self, config: &Config) -> Result<Connection> {
        let of_dial = |failed: DriverError| {
            let error = error::of_dial(&failed, self.behind_pooler);
            let is_optional = config.get_ssl_mode() == DriverMode::Prefer;
            if is_optional { error::with_optional_tls(error, &failed) } else { error }
        };
        let cancel_tls = (!self.behind_pooler).then(|| self.tls.clone());
        if self.is_for_schema {
            let manager = PostgresConnectionManager::new(config.clone(), self.tls.clone());
            return Ok(Connection::new(manager.connect().await.map_err(of_dial)?, cancel_tls));
        }
        let (client, mut connection) = config.connect(self.tls.clone()).await.map_err(of_dial)?;
        Ok(Connection::new(client, cancel_tls).driven_by(move |context| connection.poll_message(context)))
    }
}

/// The TLS mode for a host. A Unix socket has no TLS.
fn mode(sslmode: SslMode, host: &str) -> DriverMode {
    match sslmode {
        _ if host.starts_with('/') => DriverMode::Disable,
        SslMode::Disable => DriverMode::Disable,
        SslMode::Allow | SslMode::Prefer => DriverMode::Prefer,
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => DriverMode::Require,
    }
}

impl Dial for Dialer {
    type Connection = Connection;
    const SERVER: &'static str = error::SERVER;

    /// Connects to the first host that accepts the login and, if there are several, takes writes.
    async fn dial(&self) -> Result<Connection> {
        let mut deadline = later(Instant::now(), self.connect_timeout);
        let late = |_| {
            Err(Error::new(ErrorKind::Timeout, "timed out waiting for the password of the PostgreSQL server"))
        };
        let password = match &self.password {
            Some(secret) => Some(timeout_at(deadline, secret.reveal()).await.unwrap_or_else(late)?),
            None => None,
        };
        let mut failures = Vec::new();
        for host in &self.hosts {
            let mut config = host.config.clone();
            if let Some(password) = &password {
                config.password(&**password);
            }
            match timeout_at(deadline, self.dial_host(host, &config, deadline)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => failures.push(error),
                Err(_) => failures.push(error::at(&host.address, error::connect_timeout())),
            }
            deadline = later(Instant::now(), self.connect_timeout);
        }
        Err(error::of_all(failures))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use testkit::servers::postgres::Server;
    use tokio::net::{TcpSocket, TcpStream};
    use tokio_postgres::SimpleQueryMessage;

    use super::{super::tls::connector, *};
    use crate::backend::remote::pool::Reuse;

    async fn dialer(options: &PostgresOptions) -> Result<Dialer> {
        Dialer::new(options, connector(options).await?, false)
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
            dialer.dial_addresses(&dialer.hosts[0].config, addresses.to_vec(), deadline).await
        };
        let (long, short) = (Duration::from_secs(30), Duration::from_secs(1));

        let started = Instant::now();
        for addresses in [vec![silent, live], vec![closed, silent, live], vec![live, silent], vec![live]] {
            let connection = dial(&addresses, long).await.unwrap();
            connection.client.batch_execute("").await.unwrap();
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
        let config = &dialer.hosts[0].config;
        let refused = dialer.dial_addresses(config, vec![silent, live], Instant::now() + 3 * short).await;
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
        assert!(connection.client.prepare("SELECT 1").now_or_never().is_none());
        assert!(connection.needs_cleanup());
        connection.clean_up().await;
        assert!(!connection.is_dead() && !connection.is_preparing);
        let kept = connection.client.simple_query("SELECT count(*) FROM pg_prepared_statements").await;
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
        let options = PostgresOptions {
            sslmode: SslMode::VerifyFull,
            ..PostgresOptions::new("/run/postgresql,db.internal")
        };
        let hosts = dialer(&options).await.unwrap().hosts;
        let no_time = PostgresOptions { connect_timeout: Duration::ZERO, ..options };
        assert!(dialer(&no_time).await.is_err());
        let modes: Vec<_> = hosts.iter().map(|host| host.config.get_ssl_mode()).collect();
        assert_eq!(modes, [DriverMode::Disable, DriverMode::Require]);
    }
}
