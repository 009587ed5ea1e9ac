//! [`PostgresConfig`]: where the server is and how it is spoken to.

use std::{fmt, path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::{
    DEFAULT_DEADLINE, Error, ErrorKind, Result,
    codec::{Location, boolean, decode, duration, host_and_port, number, readable, unknown_option},
};

/// How a [`Postgres`](crate::Postgres) store is opened.
///
/// As a URL: `postgres://user:password@host:5432/database?sslmode=verify-full`, or with a Unix socket's folder:
/// `postgres:///database?host=/run/postgresql`. `postgresql://` is the same. The parts of the URL and the option values may be
/// percent-encoded; the other fields below are options under their names. Deserialized, unknown fields are refused.
///
/// ```
/// # use std::time::Duration;
/// # use gateway_storage::{PostgresConfig, SslMode};
/// let config: PostgresConfig = serde_json::from_str(
///     r#"{ "addr": "db.internal", "password": "x", "sslmode": "verify-full", "lock_timeout": "1s" }"#,
/// ).unwrap();
/// assert_eq!(config.sslmode, SslMode::VerifyFull);
/// assert_eq!(config.lock_timeout, Duration::from_secs(1));
/// assert!(!format!("{config:?}").contains("\"x\""));
/// ```
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct PostgresConfig {
    /// `host`, `host:port` or `[ipv6]:port`; or the folder of a Unix socket, `/folder` or `/folder:port`. Several, separated
    /// by commas, are tried in order, and the first that takes writes is used. Default: `localhost:5432`.
    pub addr: String,
    /// The role. None is the name of the system's user.
    pub user: Option<String>,
    /// Its password. `Debug` does not print it.
    pub password: Option<String>,
    /// The database. None is the one with the role's name.
    pub dbname: Option<String>,
    /// The schema that holds our tables, 1 to 63 bytes. Default: `gateway_storage`.
    pub schema: String,
    /// The name that the server's `pg_stat_activity` shows for our connections. Default: `gateway-storage`.
    pub application_name: String,
    /// Whether TLS is used and what is checked. Over a Unix socket there is none. Default: `prefer`.
    pub sslmode: SslMode,
    /// A file of certificates (PEM) that are trusted. None: those that this machine trusts.
    pub sslrootcert: Option<PathBuf>,
    /// A file with our own certificate (PEM), for a server that asks for one. Needs `sslkey`.
    pub sslcert: Option<PathBuf>,
    /// A file with its private key (PEM).
    pub sslkey: Option<PathBuf>,
    /// Whether a pooler in transaction mode, such as PgBouncer, stands in between: nothing is prepared then, the server's
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
    /// TLS if the server has it. Nothing is checked, and whoever is in between can turn it off.
    Prefer,
    /// TLS. The certificate is checked only if `sslrootcert` is given, and then as in `verify-ca`.
    Require,
    /// TLS, and somebody in `sslrootcert`, which it needs, signed the server's certificate, for whatever host.
    VerifyCa,
    /// TLS, and somebody we trust signed the server's certificate for the host that we connect to.
    VerifyFull,
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

const ISOLATIONS: [(&str, Isolation); 2] =
    [("repeatable_read", Isolation::RepeatableRead), ("serializable", Isolation::Serializable)];

impl Default for PostgresConfig {
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

impl PostgresConfig {
    /// The defaults, for the server at this address.
    pub fn new(addr: impl Into<String>) -> Self {
        Self { addr: addr.into(), ..Self::default() }
    }
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("addr", &self.addr)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "..."))
            .field("dbname", &self.dbname)
            .field("schema", &self.schema)
            .field("application_name", &self.application_name)
            .field("sslmode", &self.sslmode)
            .field("sslrootcert", &self.sslrootcert)
            .field("sslcert", &self.sslcert)
            .field("sslkey", &self.sslkey)
            .field("pgbouncer", &self.pgbouncer)
            .field("isolation", &self.isolation)
            .field("pool_size", &self.pool_size)
            .field("connect_timeout", &self.connect_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field("lock_timeout", &self.lock_timeout)
            .field("idle_in_transaction_session_timeout", &self.idle_in_transaction_session_timeout)
            .field("tcp_user_timeout", &self.tcp_user_timeout)
            .field("idle_timeout", &self.idle_timeout)
            .field("max_lifetime", &self.max_lifetime)
            .field("deadline", &self.deadline)
            .field("create", &self.create)
            .finish()
    }
}

const OPTIONS: [&str; 23] = [
    "application_name",
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
    "pgbouncer",
    "pool_size",
    "port",
    "schema",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement_timeout",
    "tcp_user_timeout",
    "user",
];

impl TryFrom<&str> for PostgresConfig {
    type Error = Error;

    fn try_from(url: &str) -> Result<Self> {
        let url = url.trim();
        let scheme = if url.starts_with("postgresql:") { "postgresql" } else { "postgres" };
        let location = Location::parse(url, scheme)?;
        let mut config = Self::default();
        config.place(location.rest)?;
        let (mut host, mut port) = (None, None);
        for option in location.options() {
            let (name, value) = option?;
            match name {
                "application_name" => config.application_name = decode(value)?,
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
                "password" => config.password = Some(decode(value)?),
                "pgbouncer" => config.pgbouncer = boolean(name, value)?,
                "pool_size" => config.pool_size = number(name, value)?,
                "port" => port = Some(number::<u16>(name, value)?),
                "schema" => config.schema = decode(value)?,
                "sslcert" => config.sslcert = Some(decode(value)?.into()),
                "sslkey" => config.sslkey = Some(decode(value)?.into()),
                "sslmode" => config.sslmode = one_of(name, value, &SSL_MODES)?,
                "sslrootcert" => config.sslrootcert = Some(decode(value)?.into()),
                "statement_timeout" => config.statement_timeout = duration(name, value)?,
                "tcp_user_timeout" => config.tcp_user_timeout = duration(name, value)?,
                "user" => config.user = Some(decode(value)?),
                _ => return Err(unknown_option(name, &OPTIONS)),
            }
        }
        match (host, port) {
            (None, None) => {}
            (Some(host), None) => config.addr = host,
            (Some(host), Some(port)) => config.addr = format!("{host}:{port}"),
            (None, Some(port)) => config.addr = format!("{}:{port}", config.addr),
        }
        Ok(config)
    }
}

impl PostgresConfig {
    /// `//[user[:password]@][host[:port],...][/database]`
    fn place(&mut self, rest: &str) -> Result<()> {
        let wrong = || invalid("a PostgreSQL URL is `postgres://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`");
        let rest = rest.strip_prefix("//").ok_or_else(wrong)?;
        let (login, place) =
            rest.rsplit_once('@').map_or((None, rest), |(login, place)| (Some(login), place));
        if let Some(login) = login {
            let (user, password) = login.split_once(':').map_or((login, None), |(u, p)| (u, Some(p)));
            self.user = Some(decode(user)?).filter(|user| !user.is_empty());
            self.password = password.map(decode).transpose()?;
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
    host_and_port(addr, DEFAULT_PORT).ok_or_else(|| {
        invalid("a PostgreSQL address is `host`, `host:port`, `[ipv6]:port`, or `/folder` of a Unix socket")
    })
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
        let config = PostgresConfig::try_from(
            "postgres://alice:p%40ss%3a@db.internal:6432/gateway?schema=a%22b&pool_size=4&sslmode=verify-ca\
             &isolation=repeatable_read&pgbouncer=true&connect_timeout=3&lock_timeout=250ms",
        )
        .unwrap();
        assert_eq!(config.hosts().unwrap(), [("db.internal".to_owned(), 6432)]);
        assert_eq!((config.user.as_deref(), config.password.as_deref()), (Some("alice"), Some("p@ss:")));
        assert_eq!((config.dbname.as_deref(), config.pool_size), (Some("gateway"), 4));
        assert_eq!(config.quoted_schema().unwrap(), "\"a\"\"b\"");
        assert_eq!((config.sslmode, config.isolation), (SslMode::VerifyCa, Isolation::RepeatableRead));
        assert_eq!(config.connect_timeout, Duration::from_secs(3));
        assert_eq!(config.lock_timeout, Duration::from_millis(250));
        assert!(config.pgbouncer && config.create);

        for url in ["postgres://localhost", "postgresql://localhost:5432", "postgres://"] {
            let config = PostgresConfig::try_from(url).unwrap();
            assert_eq!(config.hosts().unwrap(), [("localhost".to_owned(), 5432)]);
            assert_eq!((config.user, config.dbname), (None, None));
        }
        for url in ["postgres:///db?host=/run/postgresql&port=5433", "postgres://%2Frun%2Fpostgresql:5433/db"]
        {
            let config = PostgresConfig::try_from(url).unwrap();
            assert_eq!(config.hosts().unwrap(), [("/run/postgresql".to_owned(), 5433)]);
            assert_eq!(config.dbname.as_deref(), Some("db"));
        }
        let config = PostgresConfig::try_from("postgres://u@a,b:1,[::1]:2/db").unwrap();
        assert_eq!(
            config.hosts().unwrap(),
            [("a".to_owned(), 5432), ("b".to_owned(), 1), ("::1".to_owned(), 2)]
        );
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
            let error = PostgresConfig::try_from(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidValue, "{url}");
            assert!(!format!("{error:?}").contains("ecret"), "{error:?}");
        }
        for addr in ["", ":1", "host:", "host:x", "::1", "[::1", "[::1]x", "a,"] {
            let error = PostgresConfig::new(addr).hosts().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidValue, "{addr}");
        }
        for schema in ["".to_owned(), "x".repeat(64), "a\0b".to_owned()] {
            let config = PostgresConfig { schema, ..PostgresConfig::default() };
            assert_eq!(config.quoted_schema().unwrap_err().kind(), ErrorKind::InvalidValue);
        }
    }

    #[test]
    fn typed() {
        let config: PostgresConfig = serde_json::from_str(
            r#"{"addr":"h:1","password":"hunter2","sslmode":"verify-full","isolation":"serializable"}"#,
        )
        .unwrap();
        let expected = PostgresConfig {
            password: Some("hunter2".into()),
            sslmode: SslMode::VerifyFull,
            ..PostgresConfig::new("h:1")
        };
        assert_eq!(config, expected);
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(serde_json::from_str::<PostgresConfig>(r#"{"adr":"h:1"}"#).is_err());
    }
}
