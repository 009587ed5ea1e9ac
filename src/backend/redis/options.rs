//! [`RedisOptions`]: where the server is, and how it is used.

use std::{path::PathBuf, time::Duration};

use gateway_storage_macros::Setters;
use serde::Deserialize;

use crate::{
    DEFAULT_DEADLINE, Error, Result, Secret,
    codec::{Location, UrlOptions, canonical_hosts, from_texts, invalid, options, readable},
};

options! {
    /// Options for opening a [`Redis`](crate::Redis) store.
    ///
    /// As a URL:
    ///
    /// | URL | |
    /// |---|---|
    /// | `redis://user:password@host:6379/0?prefix=app:` | one server |
    /// | `redis+unix:///run/redis.sock?db=2` | one server, by its Unix socket |
    /// | `redis+sentinel://user:password@sentinel-1:26379,sentinel-2/mymaster/0` | the master that sentinels watch |
    /// | `redis-cluster://user:password@node-1:6379,node-2` | a cluster; any of its nodes will do |
    /// | `rediss://`, `rediss+sentinel://`, `rediss-cluster://` | the same over TLS |
    ///
    /// User, password and the values of options may be percent-encoded. The fields below are options under
    /// their names; the fields of [`RedisTls`] are `tls_ca`, `tls_cert`, `tls_key` and `tls_server_name`,
    /// those of [`RedisSentinel`] are `sentinel_username` and `sentinel_password`. `password_file` and
    /// `password_env`, or `sentinel_password_file` and `sentinel_password_env`, name the source of a password
    /// instead: see [`Secret`]. When deserialized, unknown fields are refused.
    ///
    #[doc = include_str!("providers.md")]
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use gateway_storage::RedisOptions;
    /// let options = r#"{ "addr": "cache.internal", "password": "x", "dial_timeout": "1s" }"#;
    /// let options: RedisOptions = serde_json::from_str(options).unwrap();
    /// assert_eq!(options.dial_timeout, Duration::from_secs(1));
    /// assert_eq!(options.prefix, "gcli2api:");
    /// assert!(!format!("{options:?}").contains("\"x\""));
    /// ```
    #[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    #[non_exhaustive]
    pub struct RedisOptions {
        /// `host`, `host:port` or `[ipv6]:port`; or the path of a Unix socket, which begins with `/`. Several
        /// nodes of a cluster, or several sentinels, are separated by commas. Default: `localhost:6379`.
        pub addr: String = "localhost:6379".to_owned(),
        /// Whether `addr` names a server, a cluster or sentinels. Default: [`RedisTopology::Single`].
        pub topology: RedisTopology = RedisTopology::Single,
        /// The options of TLS. Default: none, which is no TLS.
        pub tls: Option<RedisTls> = None,
        /// The ACL user, which needs a password. None: the server's default user.
        ///
        #[doc = include_str!("acl.md")]
        pub username: Option<String> = None,
        /// The user's password, read for each new connection.
        ///
        /// A password that changes at the server does not end open connections. Connections that the server
        /// ends (`CLIENT KILL`, a failover, a time limit: ElastiCache and MemoryDB close connections with an
        /// IAM login after 12 hours) are opened again with the password of that time. A call that was running
        /// on such a connection may fail as [`Unknown`](crate::Outcome::Unknown).
        pub password: Option<Secret> = None,
        /// The number of the database. A cluster has only 0. Default: 0.
        pub db: u32 = 0,
        /// The beginning of all names of the store's keys. Default: `gcli2api:`, which another program has,
        /// too: two gateways on one database need a prefix each. In a cluster, a prefix with a `{tag}` keeps
        /// all keys on one server.
        pub prefix: String = "gcli2api:".to_owned(),
        /// The name of our connections in the server's `CLIENT LIST`, without spaces and special characters.
        /// Default: `gateway-storage`.
        pub client_name: String = "gateway-storage".to_owned(),
        /// The time that opening a connection may take, with its login. One that a call has for itself may
        /// take at most 1 s of it without TLS, which bb8-redis fixes. Default: 5 s.
        #[serde(with = "readable")]
        pub dial_timeout: Duration = Duration::from_secs(5),
        /// The time that a sent request waits for its whole reply, however large. A connection that receives
        /// nothing for this time is replaced. Default: 3 s.
        #[serde(with = "readable")]
        pub read_timeout: Duration = Duration::from_secs(3),
        /// The time that sent data may stay unacknowledged by the network before the connection is closed.
        /// Only Linux supports it. Default: 3 s.
        #[serde(with = "readable")]
        pub write_timeout: Duration = Duration::from_secs(3),
        /// Whether each request is sent at once (the default). With `false`, requests that are made while an
        /// earlier one is on its way are sent together (Nagle's algorithm): more requests fit where the
        /// processor is the limit, and a request may be delayed by 40 ms.
        pub tcp_nodelay: bool = true,
        /// The most connections to a server that one call has for itself, 1 to 1024. Lists, exports, large
        /// batches and large values use these, so that they delay no small call, and so do writes that wait
        /// for replicas. Opened on demand, and closed after a minute without use. Default: 10.
        pub pool_size: u32 = 10,
        /// The number of connections to a server that all other calls share, at most 1024 and at least 1.
        /// Default: 2.
        pub min_idle: u32 = 2,
        /// The number of replicas that must have a write before it is `Ok`
        /// ([WAIT](https://redis.io/docs/latest/commands/wait/)). Default: 0.
        ///
        /// A write that fewer replicas confirm in time was applied, but a failover may lose it: it fails as
        /// [`Unavailable`](crate::ErrorKind::Unavailable) and [`Unknown`](crate::Outcome::Unknown). Each such
        /// write has a connection for itself; more than `pool_size` at once wait. While too few replicas
        /// confirm, [`health`](crate::Backend::health) is an error.
        pub wait_replicas: u32 = 0,
        /// The time that a write waits for its replicas. Default: 1 s.
        #[serde(with = "readable")]
        pub wait_timeout: Duration = Duration::from_secs(1),
        /// The durability that the server must be configured for. Default: [`RedisDurability::Any`].
        pub durability: RedisDurability = RedisDurability::Any,
        /// The deadline of each call. Default: [`DEFAULT_DEADLINE`].
        #[serde(with = "readable")]
        pub deadline: Duration = DEFAULT_DEADLINE,
    }
}

/// How the servers of a [`Redis`](crate::Redis) store work together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RedisTopology {
    /// One server.
    #[default]
    Single,
    /// A cluster: credentials, counters and cache values are spread over its masters by their keys.
    Cluster,
    /// A master, its replicas, and sentinels that promote a replica when the master fails.
    Sentinel(RedisSentinel),
}

/// Which master the sentinels are asked for, and the login at the sentinels.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Setters)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RedisSentinel {
    /// The name that the sentinels have for the master.
    pub master: String,
    /// The ACL user at the sentinels, which needs a password. None: the default user.
    pub username: Option<String>,
    /// The user's password, read for each new connection to a sentinel.
    pub password: Option<Secret>,
}

impl RedisSentinel {
    /// The master of this name, at sentinels without a login.
    pub fn new(master: impl Into<String>) -> Self {
        Self { master: master.into(), username: None, password: None }
    }
}

/// Which servers are trusted, and the client's own certificate.
///
/// The server's certificate must be trusted and must be for the host that was asked for; this can't be turned
/// off. A certificate that is itself in the file of trusted ones needs no authority. Files are read when the
/// store is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Setters)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct RedisTls {
    /// A PEM file of the certificates to trust. None: those that this machine trusts.
    pub ca: Option<PathBuf>,
    /// A PEM file of the client's certificate and its intermediate certificates.
    pub cert: Option<PathBuf>,
    /// A PEM file of the client's private key.
    pub key: Option<PathBuf>,
    /// The host name that the certificates of all servers and sentinels must be for. None: the host that is
    /// connected to. Use it for a cluster that announces its servers by address, or for a tunnel.
    pub server_name: Option<String>,
}

/// How durable the writes of a server must be, for [`open`](crate::Open::open) to accept it.
///
/// A server that does less is refused as [`Unsupported`](crate::ErrorKind::Unsupported). In a cluster every
/// master is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RedisDurability {
    /// No requirement.
    #[default]
    Any,
    /// An append-only file, and no eviction of keys that don't expire: a crash loses at most what the file's
    /// policy allows, one second by default.
    Aof,
    /// As `Aof`, with `appendfsync always`: a crash loses nothing. The user must be allowed `CONFIG GET`.
    Fsync,
}

impl RedisOptions {
    /// The defaults, for the server at this address.
    pub fn new(addr: impl Into<String>) -> Self {
        Self { addr: addr.into(), ..Self::default() }
    }

    /// Identifies the store, without its login: equal for two URLs of one store.
    #[doc(hidden)]
    #[must_use]
    pub fn identity(&self) -> String {
        let (port, master) = match &self.topology {
            RedisTopology::Sentinel(sentinel) => (26379, format!("{}/", sentinel.master)),
            _ => (6379, String::new()),
        };
        format!("redis://{}/{master}{}?prefix={}", canonical_hosts(&self.addr, port), self.db, self.prefix)
    }

    /// How long a connection may owe a reply.
    pub(super) fn reply_timeout(&self) -> Duration {
        let wait = if self.wait_replicas > 0 { self.wait_timeout } else { Duration::ZERO };
        self.read_timeout.saturating_add(wait)
    }

    /// Refuses invalid options before anything is opened.
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |wrong: bool, why: &'static str| if wrong { Err(invalid(why)) } else { Ok(()) };
        let timeouts = [self.dial_timeout, self.read_timeout, self.write_timeout, self.deadline];
        let sentinel_user = match &self.topology {
            RedisTopology::Sentinel(of) => of.username.is_some() && of.password.is_none(),
            _ => false,
        };
        // The driver would log in as the default user.
        let user = self.username.is_some() && self.password.is_none();
        let is_socket = self.addr.starts_with('/');
        let spaced = |text: &str| text.contains(|letter: char| !letter.is_ascii_graphic());
        check_connections(self.pool_size)?;
        check_connections(self.min_idle.max(1))?;
        refuse(timeouts.iter().any(Duration::is_zero), "a timeout of a Redis store must be more than zero")?;
        refuse(user || sentinel_user, "a Redis user needs a password")?;
        refuse(is_socket && self.tls.is_some(), "a Unix socket has no TLS")?;
        refuse(
            spaced(&self.client_name),
            "the `client_name` of a Redis store must not contain spaces or special characters",
        )?;
        refuse(self.topology == RedisTopology::Cluster && self.db != 0, "a Redis cluster has only database 0")
    }
}

/// A larger number of connections is a mistake: few calls need one for themselves, and the others share.
const MAX_CONNECTIONS: u32 = 1024;

/// Checks a number of connections.
pub(super) fn check_connections(number: u32) -> Result<()> {
    match number {
        1..=MAX_CONNECTIONS => Ok(()),
        _ => Err(invalid("a Redis store has 1 to 1024 connections of each kind to a server")),
    }
}

/// The schemes of this backend's URLs.
pub(super) const SCHEMES: &[&str] = &[
    "redis",
    "rediss",
    "redis+unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis-cluster",
    "rediss-cluster",
];

from_texts!(RedisOptions);

impl TryFrom<&str> for RedisOptions {
    type Error = Error;

    fn try_from(url: &str) -> Result<Self> {
        let location = Location::parse(url, SCHEMES)?;
        let tls = location.scheme.starts_with("rediss");
        let sentinel = location.scheme.ends_with("+sentinel");
        let mut options = UrlOptions::of::<Self>(&["addr", "topology", "tls"])
            .with::<RedisTls>("tls_", "tls.", &[])
            .with::<RedisSentinel>("sentinel_", "topology.sentinel.", &["master"]);
        if location.scheme == "redis+unix" {
            let path = location.rest.strip_prefix("//").unwrap_or(location.rest);
            if !path.starts_with('/') {
                return Err(invalid("a Redis socket's URL is `redis+unix:///PATH`"));
            }
            options.texts.insert("addr".to_owned(), path.to_owned());
        } else {
            servers(location, &mut options)?;
        }
        for option in location.options() {
            let (name, value) = option?;
            if is_harmless_elsewhere(name, &value)? {
                continue;
            }
            options.add((name, value))?;
            if name.starts_with("tls_") && !tls {
                return Err(invalid("the URL has TLS options, and its scheme is not `rediss`"));
            }
            if name.starts_with("sentinel_") && !sentinel {
                return Err(invalid(
                    "the URL has options for sentinels, and its scheme is not `redis+sentinel`",
                ));
            }
        }
        let mut options: Self = options.read()?;
        if tls {
            options.tls.get_or_insert_default();
        }
        Ok(options)
    }
}

/// Reads `//[user[:password]@]host[:port][,host...][/master][/db]`. Only sentinels have a master.
fn servers(location: Location<'_>, options: &mut UrlOptions) -> Result<()> {
    let (form, topology) = match location.scheme.trim_start_matches("rediss").trim_start_matches("redis") {
        "" => ("redis://[USER:PASSWORD@]HOST[:PORT][/DB]", "single"),
        "-cluster" => ("redis-cluster://[USER:PASSWORD@]HOST[:PORT][,HOST...]", "cluster"),
        _ => ("redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST...]/MASTER[/DB]", "sentinel"),
    };
    let not_of_form = || invalid(format!("the URL is not of the form `{form}`"));
    let parts = location.authority().filter(|parts| !parts.hosts.is_empty()).ok_or_else(not_of_form)?;
    let (master, db) = match topology {
        "sentinel" => {
            let (master, db) = parts.path.split_once('/').unwrap_or((parts.path, ""));
            (Some(master), db)
        }
        _ => (None, parts.path),
    };
    if master == Some("") || !(db.is_empty() || db.parse::<u32>().is_ok()) {
        return Err(not_of_form());
    }
    options.set([
        ("username", parts.user.filter(|user| !user.is_empty())),
        ("password", parts.password),
        ("addr", Some(parts.hosts)),
        ("topology", Some(topology).filter(|_| master.is_none())),
        ("topology.sentinel.master", master),
        ("db", Some(db).filter(|db| !db.is_empty())),
    ])
}

/// Whether this is an option of redis-py, as providers' pages show it, that asks for what this backend does
/// anyway.
fn is_harmless_elsewhere(name: &str, value: &str) -> Result<bool> {
    match name {
        "ssl_cert_reqs" if value == "required" => Ok(true),
        "ssl_check_hostname" if value.eq_ignore_ascii_case("true") => Ok(true),
        "protocol" if value == "3" => Ok(true),
        // How its values are decoded in Python.
        "decode_responses" => Ok(true),
        "protocol" => Err(invalid("the URL option `protocol` must be `3`, for RESP3: remove it")),
        "ssl_cert_reqs" | "ssl_check_hostname" => Err(invalid(format!(
            "the URL option `{name}` asks for certificates that are not checked, and they always are: remove it, and \
             name the file of the authority's certificate in `tls_ca`"
        ))),
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn urls() {
        let options = RedisOptions::try_from(
            "redis://alice:p%40ss%3a@cache.internal:7000/3?prefix=app%5b1%5D:&pool_size=4&read_timeout=250ms",
        )
        .unwrap();
        assert_eq!(options.addr, "cache.internal:7000");
        assert_eq!((options.username.as_deref(), options.password), (Some("alice"), Some("p@ss:".into())));
        assert_eq!((options.db, options.prefix.as_str(), options.pool_size), (3, "app[1]:", 4));
        assert_eq!(options.read_timeout, Duration::from_millis(250));

        let options = RedisOptions::try_from("redis://:pw@[::1]").unwrap();
        assert_eq!((options.username, options.password), (None, Some("pw".into())));
        assert_eq!(options.addr, "[::1]");
        assert_eq!(RedisOptions::try_from("redis://localhost:6379").unwrap(), RedisOptions::default());

        let options =
            RedisOptions::try_from("redis+unix:///run/redis.sock?db=2&username=u&password=p").unwrap();
        assert_eq!((options.addr.as_str(), options.db), ("/run/redis.sock", 2));
        assert_eq!((options.username.as_deref(), options.password), (Some("u"), Some("p".into())));
    }

    #[test]
    fn urls_of_many_servers() {
        let options = RedisOptions::try_from(
            "rediss+sentinel://u:p@s1:26379,s2/my%2dmaster/3?sentinel_password=q&tls_ca=/a%20b.pem&wait_replicas=1",
        )
        .unwrap();
        assert_eq!((options.addr.as_str(), options.db, options.wait_replicas), ("s1:26379,s2", 3, 1));
        let expected = RedisSentinel { password: Some("q".into()), ..RedisSentinel::new("my-master") };
        assert_eq!(options.topology, RedisTopology::Sentinel(expected));
        assert_eq!(options.tls.unwrap().ca.unwrap().to_str(), Some("/a b.pem"));

        let options = RedisOptions::try_from("redis-cluster://a,b:7000?durability=fsync").unwrap();
        assert_eq!((options.topology, options.addr.as_str()), (RedisTopology::Cluster, "a,b:7000"));
        assert_eq!((options.durability, options.tls), (RedisDurability::Fsync, None));

        let typed =
            r#"{"addr":"s1","topology":{"sentinel":{"master":"m","password":"hidden"}},"tls":{"ca":"x"}}"#;
        let options: RedisOptions = serde_json::from_str(typed).unwrap();
        assert!(matches!(&options.topology, RedisTopology::Sentinel(of) if of.master == "m"));
        assert!(!format!("{options:?}").contains("hidden"));
    }

    #[test]
    fn passwords_have_a_source() {
        let url = "redis+sentinel://app@s/m?password_file=/run/a%20b&sentinel_password_env=S_PW";
        let options = RedisOptions::try_from(url).unwrap();
        assert_eq!(options.password, Some(Secret::file("/run/a b")));
        assert!(
            matches!(options.topology, RedisTopology::Sentinel(of) if of.password == Some(Secret::env("S_PW")))
        );
        let typed = r#"{"addr":"h:1","password":{"env":"DB_PASSWORD"}}"#;
        let options: RedisOptions = serde_json::from_str(typed).unwrap();
        assert_eq!(options.password, Some(Secret::env("DB_PASSWORD")));
    }

    #[test]
    fn options_of_other_drivers() {
        let same = "rediss://default:pw@h:6380/0?ssl_cert_reqs=required&ssl_check_hostname=True&protocol=3&decode_responses=True";
        assert_eq!(
            RedisOptions::try_from(same).unwrap(),
            RedisOptions::try_from("rediss://default:pw@h:6380").unwrap()
        );
        for (option, said) in [
            ("ssl_cert_reqs=none", "`ssl_cert_reqs` asks for certificates that are not checked"),
            ("ssl_cert_reqs=CERT_NONE", "`tls_ca`"),
            ("ssl_check_hostname=false", "`ssl_check_hostname` asks for"),
            ("protocol=2", "`protocol` must be `3`"),
            ("skip_verify=true", "`skip_verify` is not one of this backend"),
        ] {
            let error = RedisOptions::try_from(format!("rediss://:pw@h?{option}").as_str()).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn errors_of_invalid_urls_quote_nothing() {
        for url in [
            "file:secret",
            "redis:secret",
            "redis://",
            "redis://:secret@/1",
            "redis://:secret@host/secret",
            "redis://:secret%4@host",
            "redis://:secret%zz@host",
            "redis://:secret%ff@host",
            "redis://host?db=secret",
            "redis://host?deadline=secret",
            "redis://host?Secret=1",
            "redis://host?secret",
            "redis+unix:secret",
            "redis+sentinel://secret",
            "redis+sentinel://secret/",
            "redis+sentinel://host/secret/secret",
            "redis://host?tls_ca=secret",
            "redis://host?sentinel_password=secret",
            "redis://host?durability=secret",
            "redis-other://secret",
            "redis://host?tls_server_name=secret",
            "redis://host?sentinel_password_file=secret",
            "redis://:secret@host?password_file=secret",
            "redis://host?password_env=secret&password=secret",
            "redis+sentinel://host/m?sentinel_password_file=a&sentinel_password_env=secret",
        ] {
            let error = RedisOptions::try_from(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidValue, "{url}");
            assert!(!format!("{error:?}").contains("ecret"), "{error:?}");
        }
    }

    #[test]
    fn typed() {
        let options: RedisOptions = serde_json::from_str(r#"{"addr":"h:1","password":"hunter2"}"#).unwrap();
        assert_eq!(options, RedisOptions { password: Some("hunter2".into()), ..RedisOptions::new("h:1") });
        assert!(!format!("{options:?}").contains("hunter2"));
        assert!(serde_json::from_str::<RedisOptions>(r#"{"adr":"h:1"}"#).is_err());
    }
}
