//! [`PostgresOptions`]: where the server is and how it is spoken to.

use std::{net::Ipv6Addr, path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::{
    DEFAULT_DEADLINE, Error, ErrorKind, Result, Secret,
    codec::{Location, boolean, decode, duration, host_and_port, number, readable, unknown_option},
};

/// How a [`Postgres`](crate::Postgres) store is opened.
///
/// As a URL: `postgres://user:password@host:5432/database?sslmode=verify-full`, or with a Unix socket's folder:
/// `postgres:///database?host=/run/postgresql`. `postgresql://` is the same. The parts of the URL and the option values may be
/// percent-encoded; the other fields below are options under their names, and the password may be one of `password`,
/// `password_file` and `password_env`, too (see [`Secret`]). Deserialized, unknown fields are refused.
///
/// ```
/// # use std::time::Duration;
/// # use gateway_storage::{postgres::SslMode, PostgresOptions};
/// let config: PostgresOptions = serde_json::from_str(
///     r#"{ "addr": "db.internal", "password": "x", "sslmode": "verify-full", "lock_timeout": "1s" }"#,
/// ).unwrap();
/// assert_eq!(config.sslmode, SslMode::VerifyFull);
/// assert_eq!(config.lock_timeout, Duration::from_secs(1));
/// assert!(!format!("{config:?}").contains("\"x\""));
/// ```
///
#[doc = include_str!("providers.md")]
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct PostgresOptions {
    /// `host`, `host:port` or `[ipv6]:port`; or the folder of a Unix socket, `/folder` or `/folder:port`. Several, separated
    /// by commas, are tried in order, and the first that takes writes is used. Behind a folder only digits are a port: a folder
    /// such as `/cloudsql/project:region:instance` needs none. Default: `localhost:5432`.
    pub addr: String,
    /// The role. None is the name of the system's user.
    pub user: Option<String>,
    /// Its password, asked for at each new connection. `Debug` does not print it.
    pub password: Option<Secret>,
    /// The database. None is the one with the role's name.
    pub dbname: Option<String>,
    /// The schema that holds our tables, 1 to 63 bytes. Default: `gateway_storage`.
    pub schema: String,
    /// The name that the server's `pg_stat_activity` shows for our connections. Default: `gateway-storage`.
    pub application_name: String,
    /// Whether TLS is used and what is checked. Over a Unix socket there is none. Default: `prefer`.
    pub sslmode: SslMode,
    /// A file of certificates (PEM) that are trusted: authorities', or the server's own. What can't be read of it is passed over.
    /// None, or `system`: those that this machine trusts. `system` needs `verify-full`.
    /// This file and the next two are read once, when the store is opened.
    pub sslrootcert: Option<PathBuf>,
    /// A file with our own certificate (PEM), for a server that asks for one. Needs `sslkey`.
    pub sslcert: Option<PathBuf>,
    /// A file with its private key (PEM).
    pub sslkey: Option<PathBuf>,
    /// How TLS begins. Default: [`SslNegotiation::Request`].
    pub sslnegotiation: SslNegotiation,
    /// Whether the login is bound to the TLS connection. Default: [`ChannelBinding::Prefer`].
    pub channel_binding: ChannelBinding,
    /// Whether a pooler in transaction mode, such as PgBouncer or RDS Proxy, stands in between: nothing is prepared then, the server's
    /// timeouts are set for transactions only, and a commit whose reply is lost is Unknown unless it was undone.
    pub pgbouncer: bool,
    /// What transactions promise. Default: [`Isolation::Serializable`].
    pub isolation: Isolation,
    /// The most connections. Default: 10.
    pub pool_size: u32,
    /// How long a connection to one host may take to open, with its login. Several addresses of the host share it. Default:
    /// 5 s.
    #[serde(with = "readable")]
    pub connect_timeout: Duration,
    /// When the server gives a statement up. Zero: never. Default: 9 s, a little before our own deadline, so that it is the
    /// server who says that nothing happened. A longer deadline needs a longer one. Under a shorter one a write is stopped by a
    /// request to cancel, a quarter of its time before the end, 500 ms at most; not with `pgbouncer`, nor in a transaction, where
    /// nothing has happened before the commit.
    #[serde(with = "readable")]
    pub statement_timeout: Duration,
    /// When the server gives a statement up that waits for a lock. Zero: never. Default: 5 s.
    #[serde(with = "readable")]
    pub lock_timeout: Duration,
    /// When the server gives a transaction up whose owner is silent. Zero: never. Default: 30 s.
    #[serde(with = "readable")]
    pub idle_in_transaction_session_timeout: Duration,
    /// How long the network may leave what was sent unacknowledged before the connection is given up. Only Linux can tell
    /// its kernel so. Default: 10 s.
    #[serde(with = "readable")]
    pub tcp_user_timeout: Duration,
    /// When a connection that nobody uses is closed. Default: 10 min.
    #[serde(with = "readable")]
    pub idle_timeout: Duration,
    /// When a connection is closed in any case, so that a new server or new certificates are found. Default: 30 min.
    #[serde(with = "readable")]
    pub max_lifetime: Duration,
    /// How long a call may take as a whole. Default: [`DEFAULT_DEADLINE`].
    #[serde(with = "readable")]
    pub deadline: Duration,
    /// Whether the schema is made if it is missing, and migrated if it is old. Default: true.
    pub create: bool,
}

/// Whether TLS is used, and what is checked: as libpq has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS only if the server refuses a connection without.
    Allow,
    /// TLS if the server has it. Nothing is checked, and an attacker in between can turn it off. Where TLS fails, or the server
    /// refuses the login with it, the connection is made without, as libpq does, and an event (WARN) says so.
    Prefer,
    /// TLS. The certificate is checked only if `sslrootcert` is given, and then as in `verify-ca`; else it may be of any form.
    Require,
    /// TLS, and the server's certificate is in `sslrootcert`, which it needs, or signed by one in it, for any host.
    VerifyCa,
    /// TLS, and the server's certificate is trusted, or signed by one that is, for the host that we connect to: its name is
    /// among the certificate's `subjectAltName`s. The common name does not count.
    VerifyFull,
}

/// How TLS begins: as libpq has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SslNegotiation {
    /// The client requests it first, which every server knows: libpq's `postgres`.
    #[serde(rename = "postgres")]
    Request,
    /// At once, which saves a round trip for each connection. Needs PostgreSQL 17 and [`SslMode::Require`] or more.
    Direct,
}

/// Whether a login by password (SCRAM) is bound to the TLS connection, so that a server in between can't pass it on: as libpq
/// has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// Where the server offers it.
    Prefer,
    /// A server that does not offer it is refused: it needs TLS, and a password in SCRAM.
    Require,
}

/// What a transaction promises. Weaker levels lose updates, and are not offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// A snapshot: no update is lost, but two transactions that each read what the other one writes may both commit.
    RepeatableRead,
    /// As if transactions ran one after the other. Writes outside of transactions are not part of this.
    Serializable,
}

const SSL_MODES: [(&str, SslMode); 6] = [
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

const SSL_NEGOTIATIONS: [(&str, SslNegotiation); 2] =
    [("postgres", SslNegotiation::Request), ("direct", SslNegotiation::Direct)];

const CHANNEL_BINDINGS: [(&str, ChannelBinding); 3] = [
    ("disable", ChannelBinding::Disable),
    ("prefer", ChannelBinding::Prefer),
    ("require", ChannelBinding::Require),
];

const ISOLATIONS: [(&str, Isolation); 2] =
    [("repeatable_read", Isolation::RepeatableRead), ("serializable", Isolation::Serializable)];

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            addr: "localhost:5432".to_owned(),
            user: None,
            password: None,
            dbname: None,
            schema: "gateway_storage".to_owned(),
            application_name: "gateway-storage".to_owned(),
            sslmode: SslMode::Prefer,
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
            sslnegotiation: SslNegotiation::Request,
            channel_binding: ChannelBinding::Prefer,
            pgbouncer: false,
            isolation: Isolation::Serializable,
            pool_size: 10,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(9),
            lock_timeout: Duration::from_secs(5),
            idle_in_transaction_session_timeout: Duration::from_secs(30),
            tcp_user_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(10 * 60),
            max_lifetime: Duration::from_secs(30 * 60),
            deadline: DEFAULT_DEADLINE,
            create: true,
        }
    }
}

impl PostgresOptions {
    /// The defaults, for the server at this address.
    pub fn new(addr: impl Into<String>) -> Self {
        Self { addr: addr.into(), ..Self::default() }
    }
}

const OPTIONS: [&str; 27] = [
    "application_name",
    "channel_binding",
    "connect_timeout",
    "create",
    "dbname",
    "deadline",
    "host",
    "idle_in_transaction_session_timeout",
    "idle_timeout",
    "isolation",
    "lock_timeout",
    "max_lifetime",
    "password",
    "password_env",
    "password_file",
    "pgbouncer",
    "pool_size",
    "port",
    "schema",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
    "statement_timeout",
    "tcp_user_timeout",
    "user",
];

impl TryFrom<&str> for PostgresOptions {
    type Error = Error;

    fn try_from(url: &str) -> Result<Self> {
        let location = Location::parse(url, &["postgres", "postgresql"])?;
        let mut config = Self::default();
        config.place(location.rest)?;
        let (mut host, mut ports, mut sslmode) = (None, None, None);
        for option in location.options() {
            let (name, value) = option?;
            match name {
                "application_name" => config.application_name = decode(value)?,
                "channel_binding" => config.channel_binding = one_of(name, value, &CHANNEL_BINDINGS)?,
                "connect_timeout" => config.connect_timeout = seconds(name, value)?,
                "create" => config.create = boolean(name, value)?,
                "dbname" => config.dbname = Some(decode(value)?),
                "deadline" => config.deadline = duration(name, value)?,
                "host" => host = Some(decode(value)?),
                "idle_in_transaction_session_timeout" => {
                    config.idle_in_transaction_session_timeout = duration(name, value)?;
                }
                "idle_timeout" => config.idle_timeout = duration(name, value)?,
                "isolation" => config.isolation = one_of(name, value, &ISOLATIONS)?,
                "lock_timeout" => config.lock_timeout = duration(name, value)?,
                "max_lifetime" => config.max_lifetime = duration(name, value)?,
                "password" => Secret::from(decode(value)?).fill(&mut config.password)?,
                "password_env" => Secret::env(decode(value)?).fill(&mut config.password)?,
                "password_file" => Secret::file(decode(value)?).fill(&mut config.password)?,
                "pgbouncer" => config.pgbouncer = boolean(name, value)?,
                // Prisma's name for it.
                "pool_size" | "connection_limit" => config.pool_size = number(name, value)?,
                "port" => ports = Some(decode(value)?),
                "schema" => config.schema = decode(value)?,
                "sslcert" => config.sslcert = Some(decode(value)?.into()),
                "sslkey" => config.sslkey = Some(decode(value)?.into()),
                "sslmode" => sslmode = Some(ssl_mode(name, value)?),
                "sslnegotiation" => config.sslnegotiation = one_of(name, value, &SSL_NEGOTIATIONS)?,
                "sslrootcert" => config.sslrootcert = Some(decode(value)?.into()),
                "statement_timeout" => config.statement_timeout = duration(name, value)?,
                "tcp_user_timeout" => config.tcp_user_timeout = duration(name, value)?,
                "user" => config.user = Some(decode(value)?),
                _ => elsewhere(name, &decode(value)?)?,
            }
        }
        config.sslmode = match sslmode {
            Some(mode) => mode,
            None if config.trusts_system() => SslMode::VerifyFull,
            None => config.sslmode,
        };
        if host.is_some() || ports.is_some() {
            config.addr = addresses(host.as_deref().unwrap_or(&config.addr), ports.as_deref())?;
        }
        Ok(config)
    }
}

impl PostgresOptions {
    /// `//[user[:password]@][host[:port],...][/database]`
    fn place(&mut self, rest: &str) -> Result<()> {
        let wrong = || invalid("a PostgreSQL URL is `postgres://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`");
        let rest = rest.strip_prefix("//").ok_or_else(wrong)?;
        let (login, place) =
            rest.rsplit_once('@').map_or((None, rest), |(login, place)| (Some(login), place));
        if let Some(login) = login {
            let (user, password) = login.split_once(':').map_or((login, None), |(u, p)| (u, Some(p)));
            self.user = Some(decode(user)?).filter(|user| !user.is_empty());
            self.password =
                password.map(decode).transpose()?.filter(|password| !password.is_empty()).map(Secret::from);
        }
        let (addr, database) = place.split_once('/').unwrap_or((place, ""));
        if database.contains('/') {
            return Err(wrong());
        }
        if !addr.is_empty() {
            self.addr = decode(addr)?;
        }
        if !database.is_empty() {
            self.dbname = Some(decode(database)?);
        }
        Ok(())
    }

    /// Whether the certificates that this machine trusts are asked for by libpq's word.
    pub(super) fn trusts_system(&self) -> bool {
        self.sslrootcert.as_deref().is_some_and(|path| path.as_os_str() == "system")
    }

    /// Each host with its port.
    pub(super) fn hosts(&self) -> Result<Vec<(String, u16)>> {
        self.addr.split(',').map(host).collect()
    }

    /// The schema as a quoted identifier.
    pub(super) fn quoted_schema(&self) -> Result<String> {
        let fits = (1..=63).contains(&self.schema.len()) && !self.schema.contains(char::is_control);
        if fits {
            Ok(format!("\"{}\"", self.schema.replace('"', "\"\"")))
        } else {
            Err(invalid("the name of a PostgreSQL schema has 1 to 63 bytes and no control characters"))
        }
    }
}

const DEFAULT_PORT: u16 = 5432;

fn host(addr: &str) -> Result<(String, u16)> {
    let found = if addr.starts_with('/') { folder(addr) } else { host_and_port(addr, DEFAULT_PORT) };
    found.ok_or_else(|| {
        invalid("a PostgreSQL address is `host`, `host:port`, `[ipv6]:port`, or `/folder` of a Unix socket")
    })
}

/// The folder of a Unix socket. Its name may have colons, so only digits behind the last one are a port.
fn folder(addr: &str) -> Option<(String, u16)> {
    match addr.rsplit_once(':') {
        Some((folder, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some((folder.to_owned(), port.parse().ok()?))
        }
        _ => Some((addr.to_owned(), DEFAULT_PORT)),
    }
}

/// `host=a,b` and `port=1,2` as one text. One port is that of all hosts, as libpq has it.
fn addresses(hosts: &str, ports: Option<&str>) -> Result<String> {
    let hosts: Vec<&str> = hosts.split(',').collect();
    let ports: Vec<&str> = ports.map_or(vec![""], |ports| ports.split(',').collect());
    if ports.len() != 1 && ports.len() != hosts.len() {
        return Err(invalid("the URL option `port` has one port, or one for each host"));
    }
    let pairs = hosts.iter().zip(ports.iter().cycle());
    let joined: Result<Vec<String>> = pairs
        .map(|(host, port)| {
            let host = match host.parse::<Ipv6Addr>() {
                Ok(address) => format!("[{address}]"),
                Err(_) => (*host).to_owned(),
            };
            match port {
                &"" => Ok(host),
                port => number::<u16>("port", port).map(|port| format!("{host}:{port}")),
            }
        })
        .collect();
    Ok(joined?.join(","))
}

fn ssl_mode(name: &str, value: &str) -> Result<SslMode> {
    // What other programs have for TLS without a check, and with one.
    match value {
        "no-verify" => {
            Err(invalid("the URL option `sslmode` has no `no-verify`: write `require`, which checks nothing"))
        }
        "true" | "1" => Err(invalid(
            "the URL option `sslmode` is not switched on and off: write `verify-full`, or `require`, which checks nothing",
        )),
        _ => one_of(name, value, &SSL_MODES),
    }
}

/// An option of libpq or of another program. One that asks for what we do anyway is taken.
fn elsewhere(name: &str, value: &str) -> Result<()> {
    let is_number = || value.parse::<u32>().is_ok();
    let why = match name {
        "target_session_attrs" if matches!(value, "any" | "read-write" | "primary") => return Ok(()),
        "target_session_attrs" => "the store writes, so it is `any`, `read-write` or `primary`",
        "client_encoding" if ["utf8", "utf-8", "unicode", "auto"].contains(&&*value.to_lowercase()) => {
            return Ok(());
        }
        "client_encoding" => "it is always `UTF8`",
        "gssencmode" if matches!(value, "disable" | "prefer") => return Ok(()),
        "gssencmode" => "there is no GSSAPI here; it is `disable` or `prefer`, and TLS is `sslmode`",
        "sslsni" if value == "1" => return Ok(()),
        "sslsni" => "the server's name is always sent; it is `1`",
        "keepalives" if value == "1" => return Ok(()),
        "keepalives" => "connections are always kept alive; it is `1`",
        // Ours are shorter than the system's own.
        "keepalives_idle" | "keepalives_interval" | "keepalives_count" if is_number() => return Ok(()),
        "keepalives_idle" | "keepalives_interval" | "keepalives_count" => "it is a whole number",
        "options" => {
            "the store sets up its sessions itself; a schema is the option `schema`, the server's timeouts are options of \
             their own, and the host's name is sent with TLS (Neon's endpoint)"
        }
        "currentSchema" | "search_path" => "a schema is the option `schema`",
        "passfile" => "a file with the password alone is the option `password_file`",
        "service" | "servicefile" => "services are not read: write what the service says into the URL",
        "ssl" | "requiressl" | "sslaccept" => {
            "write `sslmode=verify-full`, or `sslmode=require`, which checks nothing"
        }
        "pool_timeout" => "how long a call may take as a whole is the option `deadline`",
        "prepareThreshold"
        | "prepared_statements"
        | "prepared_statement_cache_size"
        | "statement_cache_size" => "behind a pooler write `pgbouncer=true`, and nothing is prepared",
        "sslpassword" => "a key with a passphrase is not read: store it without one",
        _ => return Err(unknown_option(name, &OPTIONS)),
    };
    Err(invalid(format!("the URL option `{name}` is not taken like this: {why}")))
}

fn one_of<T: Copy>(name: &str, text: &str, words: &[(&str, T)]) -> Result<T> {
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        invalid(format!("the URL option `{name}` is one of {}", words.join(", ")))
    })
}

/// A duration; a bare number is seconds, as libpq has it.
fn seconds(name: &str, text: &str) -> Result<Duration> {
    text.parse().map(Duration::from_secs).or_else(|_| duration(name, text))
}

#[cold]
fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidValue, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let config = PostgresOptions::try_from(
            "postgres://alice:p%40ss%3a@db.internal:6432/gateway?schema=a%22b&pool_size=4&sslmode=verify-ca\
             &isolation=repeatable_read&pgbouncer=true&connect_timeout=3&lock_timeout=250ms",
        )
        .unwrap();
        assert_eq!(config.hosts().unwrap(), [("db.internal".to_owned(), 6432)]);
        assert_eq!((config.user.as_deref(), config.password.clone()), (Some("alice"), Some("p@ss:".into())));
        assert_eq!((config.dbname.as_deref(), config.pool_size), (Some("gateway"), 4));
        assert_eq!(config.quoted_schema().unwrap(), "\"a\"\"b\"");
        assert_eq!((config.sslmode, config.isolation), (SslMode::VerifyCa, Isolation::RepeatableRead));
        assert_eq!(config.connect_timeout, Duration::from_secs(3));
        assert_eq!(config.lock_timeout, Duration::from_millis(250));
        assert!(config.pgbouncer && config.create);

        for url in ["postgres://localhost", "postgresql://localhost:5432", "postgres://"] {
            let config = PostgresOptions::try_from(url).unwrap();
            assert_eq!(config.hosts().unwrap(), [("localhost".to_owned(), 5432)]);
            assert_eq!((config.user, config.dbname), (None, None));
        }
        for url in ["postgres:///db?host=/run/postgresql&port=5433", "postgres://%2Frun%2Fpostgresql:5433/db"]
        {
            let config = PostgresOptions::try_from(url).unwrap();
            assert_eq!(config.hosts().unwrap(), [("/run/postgresql".to_owned(), 5433)]);
            assert_eq!(config.dbname.as_deref(), Some("db"));
        }
        let config = PostgresOptions::try_from("postgres://u@a,b:1,[::1]:2/db").unwrap();
        assert_eq!(
            config.hosts().unwrap(),
            [("a".to_owned(), 5432), ("b".to_owned(), 1), ("::1".to_owned(), 2)]
        );
    }

    #[test]
    fn folders_have_colons() {
        for (url, folder, port) in [
            ("postgres://u@/db?host=/cloudsql/p:r:i", "/cloudsql/p:r:i", 5432),
            ("postgres://u@/db?host=/cloudsql/p:r:i&port=6432", "/cloudsql/p:r:i", 6432),
            ("postgres://u@%2Fcloudsql%2Fp%3Ar%3Ai/db", "/cloudsql/p:r:i", 5432),
            ("postgres://u@%2Fcloudsql%2Fp%3Ar%3Ai:1/db", "/cloudsql/p:r:i", 1),
            ("postgres:///db?host=/a:1:2", "/a:1", 2),
            ("postgres:///db?host=/a:", "/a:", 5432),
        ] {
            let config = PostgresOptions::try_from(url).unwrap();
            assert_eq!(config.hosts().unwrap(), [(folder.to_owned(), port)], "{url}");
            assert_eq!(config.dbname.as_deref(), Some("db"));
        }
        let config: PostgresOptions = serde_json::from_str(r#"{"addr":"/a:b,/c:d:7,e:8"}"#).unwrap();
        let expected = [("/a:b", 5432), ("/c:d", 7), ("e", 8)].map(|(host, port)| (host.to_owned(), port));
        assert_eq!(config.hosts().unwrap(), expected);
        assert!(PostgresOptions::new("/a:70000").hosts().is_err());
    }

    #[test]
    fn lists_of_ports() {
        for (options, addr) in [
            ("host=a,b&port=1,2", "a:1,b:2"),
            ("host=a,b&port=1", "a:1,b:1"),
            ("host=a,b&port=,2", "a,b:2"),
            ("host=::1,/s&port=1,2", "[::1]:1,/s:2"),
            ("port=7", "h:7"),
        ] {
            let config = PostgresOptions::try_from(&*format!("postgres://h/db?{options}")).unwrap();
            assert_eq!(config.addr, addr, "{options}");
            config.hosts().unwrap();
        }
        for options in ["host=a,b,c&port=1,2", "port=1,2", "host=a&port=x"] {
            assert!(PostgresOptions::try_from(&*format!("postgres://h/db?{options}")).is_err(), "{options}");
        }
    }

    #[test]
    fn options_of_other_programs() {
        let read = |options: &str| PostgresOptions::try_from(&*format!("postgres://u:p@h/db?{options}"));
        for harmless in [
            "sslmode=require&channel_binding=prefer&target_session_attrs=read-write&gssencmode=disable",
            "target_session_attrs=any&client_encoding=UTF8&sslnegotiation=postgres&sslsni=1",
            "keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=3&gssencmode=prefer",
            "target_session_attrs=primary&client_encoding=utf%2d8",
        ] {
            read(harmless).unwrap();
        }
        let config = read("channel_binding=require&connection_limit=3&sslrootcert=system").unwrap();
        assert_eq!((config.channel_binding, config.pool_size), (ChannelBinding::Require, 3));
        assert_eq!((config.sslmode, config.trusts_system()), (SslMode::VerifyFull, true));
        assert_eq!(read("sslnegotiation=direct").unwrap().sslnegotiation, SslNegotiation::Direct);
        for (refused, said) in [
            ("target_session_attrs=standby", "the store writes"),
            ("client_encoding=latin1", "always `UTF8`"),
            ("gssencmode=require", "no GSSAPI"),
            ("sslnegotiation=secret", "postgres, direct"),
            ("keepalives=0", "always kept alive"),
            ("options=-c%20search_path%3Dx", "the option `schema`"),
            ("options=project%3Dep-1", "the host's name is sent"),
            ("passfile=/secret", "`password_file`"),
            ("ssl=true", "sslmode=verify-full"),
            ("sslmode=no-verify", "write `require`"),
            ("sslmode=true", "write `verify-full`"),
            ("pool_timeout=3", "`deadline`"),
            ("sslcrl=/secret", "`sslcrl` is not one of this backend"),
            ("password=secret", "two passwords"),
            ("password_file=/secret", "two passwords"),
            ("channel_binding=secret", "disable, prefer, require"),
        ] {
            let error = read(refused).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidValue);
            let (name, text) = (refused.split_once('=').unwrap().0, error.to_string());
            assert!(text.contains(said) && (text.contains(name) || said == "two passwords"), "{text}");
            assert!(!text.contains("secret"), "{text}");
        }
        let password = |url: &str| PostgresOptions::try_from(url).unwrap().password;
        assert_eq!(password("postgres://u@h?password_file=/a%20b"), Some(Secret::file("/a b")));
        assert_eq!(password("postgres://u:@h?password_env=A"), Some(Secret::env("A")));
        assert_eq!(password("postgres://u@h"), None);
    }

    #[test]
    fn wrong_urls_repeat_nothing() {
        for url in [
            "file:secret",
            "postgres:secret",
            "postgres://:secret@host/a/secret",
            "postgres://:secret%4@host",
            "postgres://:secret%zz@host",
            "postgres://:secret%ff@host",
            "postgres://host?sslmode=secret",
            "postgres://host?pool_size=secret",
            "postgres://host?deadline=secret",
            "postgres://host?Secret=1",
            "postgres://host?secret",
        ] {
            let error = PostgresOptions::try_from(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidValue, "{url}");
            assert!(!format!("{error:?}").contains("ecret"), "{error:?}");
        }
        for addr in ["", ":1", "host:", "host:x", "::1", "[::1", "[::1]x", "a,"] {
            let error = PostgresOptions::new(addr).hosts().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidValue, "{addr}");
        }
        for schema in ["".to_owned(), "x".repeat(64), "a\0b".to_owned()] {
            let config = PostgresOptions { schema, ..PostgresOptions::default() };
            assert_eq!(config.quoted_schema().unwrap_err().kind(), ErrorKind::InvalidValue);
        }
    }

    #[test]
    fn typed() {
        let config: PostgresOptions = serde_json::from_str(
            r#"{"addr":"h:1","password":"hunter2","sslmode":"verify-full","isolation":"serializable"}"#,
        )
        .unwrap();
        let expected = PostgresOptions {
            password: Some("hunter2".into()),
            sslmode: SslMode::VerifyFull,
            ..PostgresOptions::new("h:1")
        };
        assert_eq!(config, expected);
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(serde_json::from_str::<PostgresOptions>(r#"{"adr":"h:1"}"#).is_err());
    }
}
