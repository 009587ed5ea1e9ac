//! [`PostgresOptions`]: where the server is, and how it is used.

use std::{net::Ipv6Addr, path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::{
    DEFAULT_DEADLINE, Error, Result, Secret,
    codec::{Location, UrlOptions, canonical_hosts, from_texts, host_and_port, invalid, options, readable},
};

options! {
    /// Options for opening a [`Postgres`](crate::Postgres) store.
    ///
    /// As a URL: `postgres://user:password@host:5432/database?sslmode=verify-full`, or with the directory of
    /// a Unix socket: `postgres:///database?host=/run/postgresql`. `postgresql://` is the same. The parts of
    /// the URL and the values of options may be percent-encoded. The other fields below are options under
    /// their names; `password_file` and `password_env` name the source of the password instead: see
    /// [`Secret`]. When deserialized, unknown fields are refused.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use gateway_storage::{postgres::SslMode, PostgresOptions};
    /// let options: PostgresOptions = serde_json::from_str(
    ///     r#"{ "addr": "db.internal", "password": "x", "sslmode": "verify-full", "lock_timeout": "1s" }"#,
    /// ).unwrap();
    /// assert_eq!(options.sslmode, SslMode::VerifyFull);
    /// assert_eq!(options.lock_timeout, Duration::from_secs(1));
    /// assert!(!format!("{options:?}").contains("\"x\""));
    /// ```
    ///
    #[doc = include_str!("providers.md")]
    #[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    #[non_exhaustive]
    pub struct PostgresOptions {
        /// `host`, `host:port` or `[ipv6]:port`; or the directory of a Unix socket, `/directory` or
        /// `/directory:port`. Several, separated by commas, are tried in order, and the first that accepts
        /// writes is used. After a directory only digits are a port: a directory such as
        /// `/cloudsql/project:region:instance` needs none. Default: `localhost:5432`.
        pub addr: String = "localhost:5432".to_owned(),
        /// The role. None: the name of the system's user.
        pub user: Option<String> = None,
        /// The role's password, read for each new connection.
        pub password: Option<Secret> = None,
        /// The database. None: the one with the role's name.
        pub dbname: Option<String> = None,
        /// The schema of the store's tables, 1 to 63 bytes. Default: `gateway_storage`.
        pub schema: String = "gateway_storage".to_owned(),
        /// The name of our connections in the server's `pg_stat_activity`. Default: `gateway-storage`.
        pub application_name: String = "gateway-storage".to_owned(),
        /// Whether TLS is used, and what is checked. A Unix socket has no TLS. Default: [`SslMode::Prefer`];
        /// in a URL with `sslrootcert=system`, [`SslMode::VerifyFull`].
        pub sslmode: SslMode = SslMode::Prefer,
        /// A file of trusted certificates (PEM): those of authorities, or the server's own. Unreadable parts
        /// of it are skipped. None, or `system`: those that this machine trusts. `system` needs
        /// `verify-full`. This file and the next two are read once, when the store is opened.
        pub sslrootcert: Option<PathBuf> = None,
        /// A file with the client's certificate (PEM), for a server that asks for one. Needs `sslkey`.
        pub sslcert: Option<PathBuf> = None,
        /// A file with the certificate's private key (PEM).
        pub sslkey: Option<PathBuf> = None,
        /// How TLS begins. Default: [`SslNegotiation::Request`].
        pub sslnegotiation: SslNegotiation = SslNegotiation::Request,
        /// Whether the login is bound to the TLS connection. Default: [`ChannelBinding::Prefer`].
        pub channel_binding: ChannelBinding = ChannelBinding::Prefer,
        /// Whether the connection goes through a pooler in transaction mode, such as PgBouncer or RDS Proxy.
        /// Then nothing is prepared, the server's timeouts are set in transactions only, and a commit whose
        /// reply is lost is [`Unknown`](crate::Outcome::Unknown) unless it was rolled back. Default: `false`.
        pub pgbouncer: bool = false,
        /// The isolation of transactions. Default: [`Isolation::Serializable`].
        pub isolation: Isolation = Isolation::Serializable,
        /// The most connections. Default: 10.
        pub pool_size: u32 = 10,
        /// The time that connecting to one host may take, with its login. Several addresses of the host share
        /// it. In a URL, a number without a unit is in seconds. Default: 5 s.
        #[serde(with = "readable")]
        pub connect_timeout: Duration = Duration::from_secs(5),
        /// The time after which the server cancels a statement. Zero: never. Default: 9 s, which is a little
        /// less than the deadline, so that the server reports that nothing was applied. If you set a longer
        /// deadline, set this longer as well. Under a shorter deadline, a request to cancel stops a write
        /// when a quarter of its time is left, 500 ms at most; not with `pgbouncer`, and not in a
        /// transaction, where nothing is applied before the commit.
        #[serde(with = "readable")]
        pub statement_timeout: Duration = Duration::from_secs(9),
        /// The time after which the server cancels a statement that waits for a lock. Zero: never. Default: 5
        /// s.
        #[serde(with = "readable")]
        pub lock_timeout: Duration = Duration::from_secs(5),
        /// The time after which the server ends a transaction whose client is silent. Zero: never. Default:
        /// 30 s.
        #[serde(with = "readable")]
        pub idle_in_transaction_session_timeout: Duration = Duration::from_secs(30),
        /// The time that sent data may stay unacknowledged by the network before the connection is closed.
        /// Only Linux supports it. Default: 10 s.
        #[serde(with = "readable")]
        pub tcp_user_timeout: Duration = Duration::from_secs(10),
        /// The time after which an unused connection is closed. Default: 10 min.
        #[serde(with = "readable")]
        pub idle_timeout: Duration = Duration::from_secs(10 * 60),
        /// The time after which a connection is closed in any case, so that a new server or new certificates
        /// are used. Default: 30 min.
        #[serde(with = "readable")]
        pub max_lifetime: Duration = Duration::from_secs(30 * 60),
        /// The deadline of each call. Default: [`DEFAULT_DEADLINE`].
        #[serde(with = "readable")]
        pub deadline: Duration = DEFAULT_DEADLINE,
        /// Whether a missing schema is created, and an old one migrated. Default: `true`.
        pub create: bool = true,
    }
}

/// Whether TLS is used, and what is checked, as in libpq.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// The same as `prefer`: libpq tries without TLS first.
    Allow,
    /// TLS if the server has it. Nothing is checked, and an attacker in between can turn TLS off. Unlike
    /// libpq, it is not tried again without TLS if TLS fails or if the server refuses the login.
    Prefer,
    /// TLS. The certificate is checked only if `sslrootcert` is given, and then as in `verify-ca`.
    Require,
    /// TLS, and the server's certificate must be in `sslrootcert`, which is required, or signed by one in it.
    /// It may be for any host.
    VerifyCa,
    /// TLS, and the server's certificate must be trusted, or signed by a trusted one, and must be for the
    /// host that we connect to: the host's name is among the certificate's `subjectAltName`s. The common name
    /// does not count.
    VerifyFull,
}

/// How TLS begins, as in libpq.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SslNegotiation {
    /// The client requests TLS first, which every server supports: libpq's `postgres`.
    #[serde(rename = "postgres")]
    Request,
    /// TLS begins at once, which saves a round trip per connection. Needs PostgreSQL 17 and
    /// [`SslMode::Require`] or more.
    Direct,
}

/// Whether a login by password (SCRAM) is bound to the TLS connection, so that a server in between can't
/// relay it, as in libpq.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// Where the server offers it.
    Prefer,
    /// A server that does not offer it is refused. Needs TLS, and a password stored for SCRAM.
    Require,
}

/// The isolation of a transaction. Weaker levels lose updates and are not offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Isolation {
    /// A snapshot: no update is lost, but two transactions may both commit although each read what the other
    /// wrote.
    RepeatableRead,
    /// As if transactions ran one after the other. Writes outside of transactions are not included.
    Serializable,
}

impl PostgresOptions {
    /// The defaults, for the server at this address.
    pub fn new(addr: impl Into<String>) -> Self {
        Self { addr: addr.into(), ..Self::default() }
    }
}

/// The schemes of this backend's URLs.
pub(super) const SCHEMES: &[&str] = &["postgres", "postgresql"];

from_texts!(PostgresOptions);

impl TryFrom<&str> for PostgresOptions {
    type Error = Error;

    fn try_from(url: &str) -> Result<Self> {
        Self::in_schema(url, None)
    }
}

impl PostgresOptions {
    /// Reads a URL. If it names no schema, this is the schema.
    pub(super) fn in_schema(url: &str, schema: Option<&str>) -> Result<Self> {
        let wrong = || invalid("a PostgreSQL URL is `postgres://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`");
        let location = Location::parse(url, SCHEMES)?;
        let parts = location.authority().filter(|parts| !parts.path.contains('/')).ok_or_else(wrong)?;
        let hosts = [("host", "host"), ("port", "port")];
        let mut options = UrlOptions::named(&hosts).with::<Self>("", "", &["addr"]);
        let located = [
            ("user", parts.user),
            ("password", parts.password),
            ("addr", Some(parts.hosts)),
            ("dbname", Some(parts.path)),
            ("schema", schema),
        ];
        options.set(located.map(|(field, text)| (field, text.filter(|text| !text.is_empty()))))?;
        for option in location.options() {
            match option? {
                (name, value) if is_harmless_elsewhere(name, &value)? => {}
                // As in libpq.
                ("connect_timeout", seconds) if seconds.parse::<u64>().is_ok() => {
                    options.add(("connect_timeout", format!("{seconds}s")))?;
                }
                // Prisma's name for it.
                ("connection_limit", value) => options.add(("pool_size", value))?,
                option => options.add(option)?,
            }
        }
        let (host, ports) = (options.texts.remove("host"), options.texts.remove("port"));
        let has_sslmode = options.texts.contains_key("sslmode");
        let mut options: Self = options.read()?;
        if !has_sslmode && options.trusts_system() {
            options.sslmode = SslMode::VerifyFull;
        }
        if host.is_some() || ports.is_some() {
            options.addr = addresses(host.as_deref().unwrap_or(&options.addr), ports.as_deref())?;
        }
        Ok(options)
    }

    /// Identifies the store, without its login: equal for two URLs of one store.
    #[doc(hidden)]
    #[must_use]
    pub fn identity(&self) -> String {
        // Without a name, PostgreSQL uses the user's name for the database.
        let database = self.dbname.as_ref().or(self.user.as_ref()).map_or("", String::as_str);
        let hosts = canonical_hosts(&self.addr, DEFAULT_PORT);
        format!("postgres://{hosts}/{database}?schema={}", self.schema)
    }

    /// Whether `sslrootcert` is libpq's word for the certificates that this machine trusts.
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
            Err(invalid("the name of a PostgreSQL schema must have 1 to 63 bytes and no control characters"))
        }
    }
}

const DEFAULT_PORT: u16 = 5432;

fn host(addr: &str) -> Result<(String, u16)> {
    let found = if addr.starts_with('/') { directory(addr) } else { host_and_port(addr, DEFAULT_PORT) };
    found.ok_or_else(|| {
        invalid(
            "a PostgreSQL address is `host`, `host:port`, `[ipv6]:port`, or `/directory` of a Unix socket",
        )
    })
}

/// The directory of a Unix socket. Its name may have colons, so only digits after the last one are a port.
fn directory(addr: &str) -> Option<(String, u16)> {
    match addr.rsplit_once(':') {
        Some((directory, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some((directory.to_owned(), port.parse().ok()?))
        }
        _ => Some((addr.to_owned(), DEFAULT_PORT)),
    }
}

/// `host=a,b` and `port=1,2` as one text. One port is the port of all hosts, as in libpq.
fn addresses(hosts: &str, ports: Option<&str>) -> Result<String> {
    let hosts: Vec<&str> = hosts.split(',').collect();
    let ports: Vec<&str> = ports.map_or(vec![""], |ports| ports.split(',').collect());
    if ports.len() != 1 && ports.len() != hosts.len() {
        return Err(invalid("the URL option `port` must have one port, or one per host"));
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
                port => match port.parse::<u16>() {
                    Ok(port) => Ok(format!("{host}:{port}")),
                    Err(_) => Err(invalid("the URL option `port` must be a whole number")),
                },
            }
        })
        .collect();
    Ok(joined?.join(","))
}

/// Whether this is an option of libpq or of another program that asks for what this backend does anyway.
fn is_harmless_elsewhere(name: &str, value: &str) -> Result<bool> {
    let is_number = || value.parse::<u32>().is_ok();
    let why = match name {
        "target_session_attrs" if matches!(value, "any" | "read-write" | "primary") => return Ok(true),
        "target_session_attrs" => "the store writes, so it is `any`, `read-write` or `primary`",
        "client_encoding" if ["utf8", "utf-8", "unicode", "auto"].contains(&&*value.to_lowercase()) => {
            return Ok(true);
        }
        "client_encoding" => "it is always `UTF8`",
        "gssencmode" if matches!(value, "disable" | "prefer") => return Ok(true),
        "gssencmode" => "GSSAPI is not supported; it is `disable` or `prefer`, and TLS is `sslmode`",
        "sslsni" if value == "1" => return Ok(true),
        "sslsni" => "the server's name is always sent; it is `1`",
        "keepalives" if value == "1" => return Ok(true),
        "keepalives" => "connections are always kept alive; it is `1`",
        // The store's own intervals are shorter than the system's.
        "keepalives_idle" | "keepalives_interval" | "keepalives_count" if is_number() => return Ok(true),
        "keepalives_idle" | "keepalives_interval" | "keepalives_count" => "it is a whole number",
        "options" => {
            "the store sets up its sessions itself; a schema is the option `schema`, the server's timeouts are options of \
             their own, and the host's name is sent with TLS (Neon's endpoint)"
        }
        "currentSchema" | "search_path" => "a schema is the option `schema`",
        "passfile" => "a file with the password alone is the option `password_file`",
        "service" | "servicefile" => "services are not read: write the service's parameters into the URL",
        "ssl" | "requiressl" | "sslaccept" => {
            "write `sslmode=verify-full`, or `sslmode=require`, which checks nothing"
        }
        "sslmode" if value == "no-verify" => "write `require`, which checks nothing",
        "sslmode" if matches!(value, "true" | "1") => {
            "write `verify-full`, or `require`, which checks nothing"
        }
        "pool_timeout" => "the time that a call may take as a whole is the option `deadline`",
        "prepareThreshold"
        | "prepared_statements"
        | "prepared_statement_cache_size"
        | "statement_cache_size" => "for a pooler write `pgbouncer=true`, and nothing is prepared",
        "sslpassword" => "a key with a passphrase is not supported: store it without one",
        _ => return Ok(false),
    };
    Err(invalid(format!("the URL option `{name}` is not accepted like this: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn urls() {
        let options = PostgresOptions::try_from(
            "postgres://alice:p%40ss%3a@db.internal:6432/gateway?schema=a%22b&pool_size=4&sslmode=verify-ca\
             &isolation=repeatable_read&pgbouncer=true&connect_timeout=3&lock_timeout=250ms",
        )
        .unwrap();
        assert_eq!(options.hosts().unwrap(), [("db.internal".to_owned(), 6432)]);
        assert_eq!(
            (options.user.as_deref(), options.password.clone()),
            (Some("alice"), Some("p@ss:".into()))
        );
        assert_eq!((options.dbname.as_deref(), options.pool_size), (Some("gateway"), 4));
        assert_eq!(options.quoted_schema().unwrap(), "\"a\"\"b\"");
        assert_eq!((options.sslmode, options.isolation), (SslMode::VerifyCa, Isolation::RepeatableRead));
        assert_eq!(options.connect_timeout, Duration::from_secs(3));
        assert_eq!(options.lock_timeout, Duration::from_millis(250));
        assert!(options.pgbouncer && options.create);

        for url in ["postgres://localhost", "postgresql://localhost:5432", "postgres://"] {
            let options = PostgresOptions::try_from(url).unwrap();
            assert_eq!(options.hosts().unwrap(), [("localhost".to_owned(), 5432)]);
            assert_eq!((options.user, options.dbname), (None, None));
        }
        for url in ["postgres:///db?host=/run/postgresql&port=5433", "postgres://%2Frun%2Fpostgresql:5433/db"]
        {
            let options = PostgresOptions::try_from(url).unwrap();
            assert_eq!(options.hosts().unwrap(), [("/run/postgresql".to_owned(), 5433)]);
            assert_eq!(options.dbname.as_deref(), Some("db"));
        }
        let options = PostgresOptions::try_from("postgres://u@a,b:1,[::1]:2/db").unwrap();
        assert_eq!(
            options.hosts().unwrap(),
            [("a".to_owned(), 5432), ("b".to_owned(), 1), ("::1".to_owned(), 2)]
        );
    }

    #[test]
    fn directories_have_colons() {
        for (url, directory, port) in [
            ("postgres://u@/db?host=/cloudsql/p:r:i", "/cloudsql/p:r:i", 5432),
            ("postgres://u@/db?host=/cloudsql/p:r:i&port=6432", "/cloudsql/p:r:i", 6432),
            ("postgres://u@%2Fcloudsql%2Fp%3Ar%3Ai/db", "/cloudsql/p:r:i", 5432),
            ("postgres://u@%2Fcloudsql%2Fp%3Ar%3Ai:1/db", "/cloudsql/p:r:i", 1),
            ("postgres:///db?host=/a:1:2", "/a:1", 2),
            ("postgres:///db?host=/a:", "/a:", 5432),
        ] {
            let options = PostgresOptions::try_from(url).unwrap();
            assert_eq!(options.hosts().unwrap(), [(directory.to_owned(), port)], "{url}");
            assert_eq!(options.dbname.as_deref(), Some("db"));
        }
        let options: PostgresOptions = serde_json::from_str(r#"{"addr":"/a:b,/c:d:7,e:8"}"#).unwrap();
        let expected = [("/a:b", 5432), ("/c:d", 7), ("e", 8)].map(|(host, port)| (host.to_owned(), port));
        assert_eq!(options.hosts().unwrap(), expected);
        assert!(PostgresOptions::new("/a:70000").hosts().is_err());
    }

    #[test]
    fn lists_of_ports() {
        for (list, addr) in [
            ("host=a,b&port=1,2", "a:1,b:2"),
            ("host=a,b&port=1", "a:1,b:1"),
            ("host=a,b&port=,2", "a,b:2"),
            ("host=::1,/s&port=1,2", "[::1]:1,/s:2"),
            ("port=7", "h:7"),
        ] {
            let options = PostgresOptions::try_from(&*format!("postgres://h/db?{list}")).unwrap();
            assert_eq!(options.addr, addr, "{list}");
            options.hosts().unwrap();
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
        let options = read("channel_binding=require&connection_limit=3&sslrootcert=system").unwrap();
        assert_eq!((options.channel_binding, options.pool_size), (ChannelBinding::Require, 3));
        assert_eq!((options.sslmode, options.trusts_system()), (SslMode::VerifyFull, true));
        assert_eq!(read("sslnegotiation=direct").unwrap().sslnegotiation, SslNegotiation::Direct);
        for (refused, said) in [
            ("target_session_attrs=standby", "the store writes"),
            ("client_encoding=latin1", "always `UTF8`"),
            ("gssencmode=require", "GSSAPI is not supported"),
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
    fn errors_of_invalid_urls_quote_nothing() {
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
            let options = PostgresOptions { schema, ..PostgresOptions::default() };
            assert_eq!(options.quoted_schema().unwrap_err().kind(), ErrorKind::InvalidValue);
        }
    }

    #[test]
    fn typed() {
        let options: PostgresOptions = serde_json::from_str(
            r#"{"addr":"h:1","password":"hunter2","sslmode":"verify-full","isolation":"serializable"}"#,
        )
        .unwrap();
        let expected = PostgresOptions {
            password: Some("hunter2".into()),
            sslmode: SslMode::VerifyFull,
            ..PostgresOptions::new("h:1")
        };
        assert_eq!(options, expected);
        assert!(!format!("{options:?}").contains("hunter2"));
        assert!(serde_json::from_str::<PostgresOptions>(r#"{"adr":"h:1"}"#).is_err());
    }
}
