//! [`RedisOptions`]: where the server is and how it is spoken to.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::{
    DEFAULT_DEADLINE, Error, ErrorKind, Result, Secret,
    codec::{Location, boolean, decode, duration, number, readable, unknown_option},
};

/// How a [`Redis`](crate::Redis) store is opened.
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
/// User, password and options may be percent-encoded. The fields below are options under their names; those of
/// [`RedisTls`] are `tls_ca`, `tls_cert`, `tls_key` and `tls_server_name`, those of [`RedisSentinel`] `sentinel_username` and
/// `sentinel_password`. In place of a password `password_file` or `password_env` say where it is, and so do
/// `sentinel_password_file` and `sentinel_password_env`: see [`Secret`]. Deserialized, unknown fields are refused.
///
#[doc = include_str!("providers.md")]
///
/// ```
/// # use std::time::Duration;
/// # use gateway_storage::RedisOptions;
/// let config: RedisOptions =
///     serde_json::from_str(r#"{ "addr": "cache.internal", "password": "x", "dial_timeout": "1s" }"#).unwrap();
/// assert_eq!(config.dial_timeout, Duration::from_secs(1));
/// assert_eq!(config.prefix, "gcli2api:");
/// assert!(!format!("{config:?}").contains("\"x\""));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct RedisOptions {
    /// `host`, `host:port` or `[ipv6]:port`; or the path of a Unix socket, which begins with `/`. Several nodes of a
    /// cluster, or sentinels, are separated by commas. Default: `localhost:6379`.
    pub addr: String,
    /// Whether that is a server, a cluster, or sentinels.
    pub topology: RedisTopology,
    /// TLS, if it is used.
    pub tls: Option<RedisTls>,
    /// The ACL user, who has a password. None is the server's default user.
    ///
    #[doc = include_str!("acl.md")]
    pub username: Option<String>,
    /// Its password, asked for at each new connection.
    ///
    /// A password that is changed at the server does not end its connections; those that it ends (`CLIENT KILL`, a failover, a
    /// limit of time: ElastiCache and MemoryDB close connections with an IAM login after 12 hours) are opened again with
    /// the password as it is then. A call that was under way on one may be [`Unknown`](crate::Outcome::Unknown).
    pub password: Option<Secret>,
    /// The database's number. A cluster has only 0.
    pub db: u32,
    /// What the store's keys begin with. Default: `gcli2api:`. In a cluster a `{tag}` in it would keep all keys on one server.
    pub prefix: String,
    /// The name that the server's `CLIENT LIST` shows for our connections. Default: `gateway-storage`.
    pub client_name: String,
    /// How long a connection may take to open, with its login. Default: 5 s.
    #[serde(with = "readable")]
    pub dial_timeout: Duration,
    /// How long a request that was sent waits for its whole reply, however wide. A connection that brings nothing for so long
    /// is replaced. Default: 3 s.
    #[serde(with = "readable")]
    pub read_timeout: Duration,
    /// How long the network may leave what was sent unacknowledged before the connection is given up. Only Linux can tell
    /// its kernel so. Default: 3 s.
    #[serde(with = "readable")]
    pub write_timeout: Duration,
    /// Whether each request leaves at once (the default), and not together with those that come while the one before it is
    /// on its way (Nagle's algorithm). `false` carries more requests where the processor is what there is too little of,
    /// and can hold up a request for 40 ms.
    pub tcp_nodelay: bool,
    /// The most connections to a server, 1 to 1024. Default: 10.
    pub pool_size: u32,
    /// Connections to a server that are kept open. All calls share them; more are opened only when none of these keeps up, and
    /// closed after a minute in which all did. Default: 2.
    pub min_idle: u32,
    /// How many replicas have to have a write before it is `Ok`
    /// ([WAIT](https://redis.io/docs/latest/commands/wait/)). Default: 0.
    ///
    /// A write that fewer have in time is done, but a failover may lose it: it fails as
    /// [`Unavailable`](crate::ErrorKind::Unavailable) and [`Unknown`](crate::Outcome::Unknown). Such writes have
    /// up to `pool_size` connections of their own, one each; more of them queue where the fewest wait. While too few
    /// replicas confirm, [`health`](crate::Backend::health) is an error.
    pub wait_replicas: u32,
    /// How long a write waits for its replicas. Default: 1 s.
    #[serde(with = "readable")]
    pub wait_timeout: Duration,
    /// What the server has to be set up for. Default: anything.
    pub durability: RedisDurability,
    /// How long a call may take as a whole. Default: [`DEFAULT_DEADLINE`].
    #[serde(with = "readable")]
    pub deadline: Duration,
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
    /// A master, its replicas, and sentinels that make one of them the master when it fails.
    Sentinel(RedisSentinel),
}

/// What sentinels are asked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RedisSentinel {
    /// The name that the sentinels know the master by.
    pub master: String,
    /// The ACL user at the sentinels.
    pub username: Option<String>,
    /// Its password, asked for at each new connection to a sentinel.
    pub password: Option<Secret>,
}

impl RedisSentinel {
    /// The master of this name, at sentinels without a login.
    pub fn new(master: impl Into<String>) -> Self {
        Self { master: master.into(), username: None, password: None }
    }
}

/// How the server is trusted, and how it trusts us.
///
/// The server's certificate must be trusted, and be for the host that was asked for; there is no way to turn that off. A
/// certificate that is itself in the file of trusted ones needs no authority. Files are read when the store is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct RedisTls {
    /// A PEM file of the certificates to trust, in place of the system's.
    pub ca: Option<PathBuf>,
    /// A PEM file of the client's certificate and those that lead to it.
    pub cert: Option<PathBuf>,
    /// A PEM file of the client's private key.
    pub key: Option<PathBuf>,
    /// The host that the certificates of all servers and sentinels must be for, in place of the host that is connected to:
    /// for a cluster whose servers are announced by their addresses, or a tunnel.
    pub server_name: Option<String>,
}

/// How well a server must keep what it is given, for [`open`](crate::Open::open) to take it.
///
/// A server that does not is refused as [`Unsupported`](crate::ErrorKind::Unsupported). In a cluster each is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RedisDurability {
    /// As it likes.
    #[default]
    Any,
    /// With an append-only file and no eviction of keys that don't expire: a crash loses at most what the file's policy
    /// allows, a second by default.
    Aof,
    /// The same, and `appendfsync always`: a crash loses nothing. The user must be allowed `CONFIG GET`.
    Fsync,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self {
            addr: "localhost:6379".to_owned(),
            topology: RedisTopology::Single,
            tls: None,
            username: None,
            password: None,
            db: 0,
            prefix: "gcli2api:".to_owned(),
            client_name: "gateway-storage".to_owned(),
            dial_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(3),
            write_timeout: Duration::from_secs(3),
            tcp_nodelay: true,
            pool_size: 10,
            min_idle: 2,
            wait_replicas: 0,
            wait_timeout: Duration::from_secs(1),
            durability: RedisDurability::Any,
            deadline: DEFAULT_DEADLINE,
        }
    }
}

impl RedisOptions {
    /// The defaults, for the server at this address.
    pub fn new(addr: impl Into<String>) -> Self {
        Self { addr: addr.into(), ..Self::default() }
    }
}

impl RedisOptions {
    /// How long a connection may owe a reply.
    pub(super) fn patience(&self) -> Duration {
        let wait = if self.wait_replicas > 0 { self.wait_timeout } else { Duration::ZERO };
        self.read_timeout.saturating_add(wait)
    }

    /// Refuses what can't be meant.
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
        refuse(timeouts.iter().any(Duration::is_zero), "a timeout of a Redis store is more than zero")?;
        refuse(user || sentinel_user, "a Redis user has a password")?;
        refuse(is_socket && self.tls.is_some(), "TLS is not spoken over a Unix socket")?;
        refuse(
            spaced(&self.client_name),
            "the `client_name` of a Redis store has no spaces or special characters",
        )?;
        refuse(self.topology == RedisTopology::Cluster && self.db != 0, "a Redis cluster has only database 0")
    }
}

const OPTIONS: [&str; 25] = [
    "client_name",
    "db",
    "deadline",
    "dial_timeout",
    "durability",
    "min_idle",
    "password",
    "password_env",
    "password_file",
    "pool_size",
    "prefix",
    "read_timeout",
    "sentinel_password",
    "sentinel_password_env",
    "sentinel_password_file",
    "sentinel_username",
    "tcp_nodelay",
    "tls_ca",
    "tls_cert",
    "tls_key",
    "tls_server_name",
    "username",
    "wait_replicas",
    "wait_timeout",
    "write_timeout",
];

/// The schemes of this backend's URLs.
const SCHEMES: [&str; 7] =
    ["redis", "rediss", "redis+unix", "redis+sentinel", "rediss+sentinel", "redis-cluster", "rediss-cluster"];

impl TryFrom<&str> for RedisOptions {
    type Error = Error;

    fn try_from(url: &str) -> Result<Self> {
        let location = Location::parse(url, &SCHEMES)?;
        let mut config = Self::default();
        if location.scheme.starts_with("rediss") {
            config.tls = Some(RedisTls::default());
        }
        match location.scheme {
            "redis+unix" => config.socket(location.rest)?,
            "redis" | "rediss" => {
                config.servers(location.rest, "redis://[USER:PASSWORD@]HOST[:PORT][/DB]")?
            }
            "redis-cluster" | "rediss-cluster" => {
                config.servers(location.rest, "redis-cluster://[USER:PASSWORD@]HOST[:PORT][,HOST...]")?;
                config.topology = RedisTopology::Cluster;
            }
            _ => config.sentinels(location.rest)?,
        }
        for option in location.options() {
            let (name, value) = option?;
            match (name, &mut config.tls, &mut config.topology) {
                ("client_name", ..) => config.client_name = decode(value)?,
                ("db", ..) => config.db = number(name, value)?,
                ("deadline", ..) => config.deadline = duration(name, value)?,
                ("dial_timeout", ..) => config.dial_timeout = duration(name, value)?,
                ("durability", ..) => config.durability = durability(value)?,
                ("min_idle", ..) => config.min_idle = number(name, value)?,
                ("password", ..) => Secret::from(decode(value)?).fill(&mut config.password)?,
                ("password_env", ..) => Secret::env(decode(value)?).fill(&mut config.password)?,
                ("password_file", ..) => Secret::file(decode(value)?).fill(&mut config.password)?,
                ("pool_size", ..) => config.pool_size = number(name, value)?,
                ("prefix", ..) => config.prefix = decode(value)?,
                ("read_timeout", ..) => config.read_timeout = duration(name, value)?,
                ("sentinel_password", _, RedisTopology::Sentinel(of)) => {
                    Secret::from(decode(value)?).fill(&mut of.password)?;
                }
                ("sentinel_password_env", _, RedisTopology::Sentinel(of)) => {
                    Secret::env(decode(value)?).fill(&mut of.password)?;
                }
                ("sentinel_password_file", _, RedisTopology::Sentinel(of)) => {
                    Secret::file(decode(value)?).fill(&mut of.password)?;
                }
                ("sentinel_username", _, RedisTopology::Sentinel(of)) => of.username = Some(decode(value)?),
                ("tcp_nodelay", ..) => config.tcp_nodelay = boolean(name, value)?,
                ("tls_ca", Some(tls), _) => tls.ca = Some(decode(value)?.into()),
                ("tls_cert", Some(tls), _) => tls.cert = Some(decode(value)?.into()),
                ("tls_key", Some(tls), _) => tls.key = Some(decode(value)?.into()),
                ("tls_server_name", Some(tls), _) => tls.server_name = Some(decode(value)?),
                ("tls_ca" | "tls_cert" | "tls_key" | "tls_server_name", None, _) => {
                    return Err(invalid("the URL has TLS options, and its scheme is not `rediss`"));
                }
                (name, ..) if name.starts_with("sentinel_") && OPTIONS.contains(&name) => {
                    return Err(invalid(
                        "the URL has options for sentinels, and its scheme is not `redis+sentinel`",
                    ));
                }
                ("username", ..) => config.username = Some(decode(value)?),
                ("wait_replicas", ..) => config.wait_replicas = number(name, value)?,
                ("wait_timeout", ..) => config.wait_timeout = duration(name, value)?,
                ("write_timeout", ..) => config.write_timeout = duration(name, value)?,
                _ => elsewhere(name, value)?,
            }
        }
        Ok(config)
    }
}

impl RedisOptions {
    /// `//PATH`
    fn socket(&mut self, rest: &str) -> Result<()> {
        let path = rest.strip_prefix("//").unwrap_or(rest);
        if !path.starts_with('/') {
            return Err(invalid("a Redis socket's URL is `redis+unix:///PATH`"));
        }
        path.clone_into(&mut self.addr);
        Ok(())
    }

    /// `//[user[:password]@]host[:port][,host...][/db]`
    fn servers(&mut self, rest: &str, form: &str) -> Result<()> {
        let place = self.login(rest, form)?;
        let (addr, db) = place.split_once('/').unwrap_or((place, ""));
        self.place(addr, db, form)
    }

    /// `//[user[:password]@]host[:port][,host...]/master[/db]`
    fn sentinels(&mut self, rest: &str) -> Result<()> {
        let form = "redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST...]/MASTER[/DB]";
        let place = self.login(rest, form)?;
        let (addr, master) = place.split_once('/').ok_or_else(|| not_of_form(form))?;
        let (master, db) = master.split_once('/').unwrap_or((master, ""));
        if master.is_empty() {
            return Err(not_of_form(form));
        }
        self.topology = RedisTopology::Sentinel(RedisSentinel::new(decode(master)?));
        self.place(addr, db, form)
    }

    /// Takes the login off.
    fn login<'u>(&mut self, rest: &'u str, form: &str) -> Result<&'u str> {
        let rest = rest.strip_prefix("//").ok_or_else(|| not_of_form(form))?;
        let Some((login, place)) = rest.rsplit_once('@') else { return Ok(rest) };
        let (user, password) = login.split_once(':').map_or((login, None), |(u, p)| (u, Some(p)));
        self.username = Some(decode(user)?).filter(|user| !user.is_empty());
        self.password = password.map(decode).transpose()?.map(Secret::from);
        Ok(place)
    }

    fn place(&mut self, addr: &str, db: &str, form: &str) -> Result<()> {
        if addr.is_empty() {
            return Err(not_of_form(form));
        }
        addr.clone_into(&mut self.addr);
        if !db.is_empty() {
            self.db = db.parse().map_err(|_| not_of_form(form))?;
        }
        Ok(())
    }
}

/// An option of redis-py, which providers' pages show. What asks for no more than is done anyway is taken.
#[cold]
fn elsewhere(name: &str, value: &str) -> Result<()> {
    let is_same = match name {
        "ssl_cert_reqs" => value == "required",
        "ssl_check_hostname" => value.eq_ignore_ascii_case("true"),
        "protocol" => value == "3",
        // Of texts in its language.
        "decode_responses" => true,
        _ => return Err(unknown_option(name, &OPTIONS)),
    };
    match name {
        _ if is_same => Ok(()),
        "protocol" => {
            Err(invalid("the URL option `protocol` is `3`: RESP3 is the one that is spoken. Take it away"))
        }
        _ => Err(invalid(format!(
            "the URL option `{name}` asks for certificates that are not checked, and they always are: take it away, and \
             name the file of the authority's certificate in `tls_ca`"
        ))),
    }
}

#[cold]
fn not_of_form(form: &str) -> Error {
    invalid(format!("the URL is not of the form `{form}`"))
}

fn durability(text: &str) -> Result<RedisDurability> {
    match text {
        "any" => Ok(RedisDurability::Any),
        "aof" => Ok(RedisDurability::Aof),
        "fsync" => Ok(RedisDurability::Fsync),
        _ => Err(invalid("the URL option `durability` is `any`, `aof` or `fsync`")),
    }
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
        let config = RedisOptions::try_from(
            "redis://alice:p%40ss%3a@cache.internal:7000/3?prefix=app%5b1%5D:&pool_size=4&read_timeout=250ms",
        )
        .unwrap();
        assert_eq!(config.addr, "cache.internal:7000");
        assert_eq!((config.username.as_deref(), config.password), (Some("alice"), Some("p@ss:".into())));
        assert_eq!((config.db, config.prefix.as_str(), config.pool_size), (3, "app[1]:", 4));
        assert_eq!(config.read_timeout, Duration::from_millis(250));

        let config = RedisOptions::try_from("redis://:pw@[::1]").unwrap();
        assert_eq!((config.username, config.password), (None, Some("pw".into())));
        assert_eq!(config.addr, "[::1]");
        assert_eq!(RedisOptions::try_from("redis://localhost:6379").unwrap(), RedisOptions::default());

        let config =
            RedisOptions::try_from("redis+unix:///run/redis.sock?db=2&username=u&password=p").unwrap();
        assert_eq!((config.addr.as_str(), config.db), ("/run/redis.sock", 2));
        assert_eq!((config.username.as_deref(), config.password), (Some("u"), Some("p".into())));
    }

    #[test]
    fn urls_of_many_servers() {
        let config = RedisOptions::try_from(
            "rediss+sentinel://u:p@s1:26379,s2/my%2dmaster/3?sentinel_password=q&tls_ca=/a%20b.pem&wait_replicas=1",
        )
        .unwrap();
        assert_eq!((config.addr.as_str(), config.db, config.wait_replicas), ("s1:26379,s2", 3, 1));
        let expected = RedisSentinel { password: Some("q".into()), ..RedisSentinel::new("my-master") };
        assert_eq!(config.topology, RedisTopology::Sentinel(expected));
        assert_eq!(config.tls.unwrap().ca.unwrap().to_str(), Some("/a b.pem"));

        let config = RedisOptions::try_from("redis-cluster://a,b:7000?durability=fsync").unwrap();
        assert_eq!((config.topology, config.addr.as_str()), (RedisTopology::Cluster, "a,b:7000"));
        assert_eq!((config.durability, config.tls), (RedisDurability::Fsync, None));

        let typed =
            r#"{"addr":"s1","topology":{"sentinel":{"master":"m","password":"hidden"}},"tls":{"ca":"x"}}"#;
        let config: RedisOptions = serde_json::from_str(typed).unwrap();
        assert!(matches!(&config.topology, RedisTopology::Sentinel(of) if of.master == "m"));
        assert!(!format!("{config:?}").contains("hidden"));
    }

    #[test]
    fn where_passwords_are() {
        let url = "redis+sentinel://app@s/m?password_file=/run/a%20b&sentinel_password_env=S_PW";
        let config = RedisOptions::try_from(url).unwrap();
        assert_eq!(config.password, Some(Secret::file("/run/a b")));
        assert!(
            matches!(config.topology, RedisTopology::Sentinel(of) if of.password == Some(Secret::env("S_PW")))
        );
        let typed = r#"{"addr":"h:1","password":{"env":"DB_PASSWORD"}}"#;
        let config: RedisOptions = serde_json::from_str(typed).unwrap();
        assert_eq!(config.password, Some(Secret::env("DB_PASSWORD")));
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
            ("protocol=2", "`protocol` is `3`"),
            ("skip_verify=true", "`skip_verify` is not one of this backend"),
        ] {
            let error = RedisOptions::try_from(format!("rediss://:pw@h?{option}").as_str()).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn wrong_urls_repeat_nothing() {
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
        let config: RedisOptions = serde_json::from_str(r#"{"addr":"h:1","password":"hunter2"}"#).unwrap();
        assert_eq!(config, RedisOptions { password: Some("hunter2".into()), ..RedisOptions::new("h:1") });
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(serde_json::from_str::<RedisOptions>(r#"{"adr":"h:1"}"#).is_err());
    }
}
