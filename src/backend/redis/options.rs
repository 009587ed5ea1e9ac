//! [`RedisConfig`]: where the server is and how it is spoken to.

use std::{fmt, time::Duration};

use serde::Deserialize;

use crate::{
    DEFAULT_DEADLINE, Error, ErrorKind, Result,
    codec::{Location, duration, readable, unknown_option},
};

/// How a [`Redis`](crate::Redis) store is opened.
///
/// As a URL: `redis://localhost`, `redis://user:password@host:6379/0?prefix=app:`, `redis+unix:///run/redis.sock?db=2`. User,
/// password and the option `prefix` may be percent-encoded; the other fields below are options under their names.
/// Deserialized, unknown fields are refused.
///
/// ```
/// # use std::time::Duration;
/// # use gateway_storage::RedisConfig;
/// let config: RedisConfig =
///     serde_json::from_str(r#"{ "addr": "cache.internal", "password": "x", "dial_timeout": "1s" }"#).unwrap();
/// assert_eq!(config.dial_timeout, Duration::from_secs(1));
/// assert_eq!(config.prefix, "gcli2api:");
/// assert!(!format!("{config:?}").contains("\"x\""));
/// ```
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct RedisConfig {
    /// `host`, `host:port` or `[ipv6]:port`; or the path of a Unix socket, which begins with `/`. Default:
    /// `localhost:6379`.
    pub addr: String,
    /// The ACL user. None is the server's default user.
    pub username: Option<String>,
    /// Its password. `Debug` does not print it.
    pub password: Option<String>,
    /// The database's number.
    pub db: u32,
    /// What the store's keys begin with. Default: `gcli2api:`.
    pub prefix: String,
    /// The name that the server's `CLIENT LIST` shows for our connections. Default: `gateway-storage`.
    pub client_name: String,
    /// How long a connection may take to open, with its login. Default: 5 s.
    #[serde(with = "readable")]
    pub dial_timeout: Duration,
    /// How long a request that was sent waits for its reply. After it the connection is replaced. Default: 3 s.
    #[serde(with = "readable")]
    pub read_timeout: Duration,
    /// How long the network may leave what was sent unacknowledged before the connection is given up. Only Linux can tell
    /// its kernel so. Default: 3 s.
    #[serde(with = "readable")]
    pub write_timeout: Duration,
    /// The most connections. Default: 10.
    pub pool_size: u32,
    /// Connections that are kept open. All calls share them, so more are opened only under contention. Default: 2.
    pub min_idle: u32,
    /// How long a call may take as a whole. Default: [`DEFAULT_DEADLINE`].
    #[serde(with = "readable")]
    pub deadline: Duration,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            addr: "localhost:6379".to_owned(),
            username: None,
            password: None,
            db: 0,
            prefix: "gcli2api:".to_owned(),
            client_name: "gateway-storage".to_owned(),
            dial_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(3),
            write_timeout: Duration::from_secs(3),
            pool_size: 10,
            min_idle: 2,
            deadline: DEFAULT_DEADLINE,
        }
    }
}

impl RedisConfig {
    /// The defaults, for the server at this address.
    pub fn new(addr: impl Into<String>) -> Self {
        Self { addr: addr.into(), ..Self::default() }
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("addr", &self.addr)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "..."))
            .field("db", &self.db)
            .field("prefix", &self.prefix)
            .field("client_name", &self.client_name)
            .field("dial_timeout", &self.dial_timeout)
            .field("read_timeout", &self.read_timeout)
            .field("write_timeout", &self.write_timeout)
            .field("pool_size", &self.pool_size)
            .field("min_idle", &self.min_idle)
            .field("deadline", &self.deadline)
            .finish()
    }
}

const OPTIONS: [&str; 11] = [
    "client_name",
    "db",
    "deadline",
    "dial_timeout",
    "min_idle",
    "password",
    "pool_size",
    "prefix",
    "read_timeout",
    "username",
    "write_timeout",
];

impl TryFrom<&str> for RedisConfig {
    type Error = Error;

    fn try_from(url: &str) -> Result<Self> {
        let mut config = Self::default();
        let location = if url.starts_with("redis+unix:") {
            let location = Location::parse(url, "redis+unix")?;
            let path = location.rest.strip_prefix("//").unwrap_or(location.rest);
            if !path.starts_with('/') {
                return Err(invalid("a Redis socket's URL is `redis+unix:///PATH`"));
            }
            config.addr = path.to_owned();
            location
        } else {
            let location = Location::parse(url, "redis")?;
            config.place(location.rest)?;
            location
        };
        for option in location.options() {
            let (name, value) = option?;
            match name {
                "client_name" => config.client_name = decode(value)?,
                "db" => config.db = number(name, value)?,
                "deadline" => config.deadline = duration(name, value)?,
                "dial_timeout" => config.dial_timeout = duration(name, value)?,
                "min_idle" => config.min_idle = number(name, value)?,
                "password" => config.password = Some(decode(value)?),
                "pool_size" => config.pool_size = number(name, value)?,
                "prefix" => config.prefix = decode(value)?,
                "read_timeout" => config.read_timeout = duration(name, value)?,
                "username" => config.username = Some(decode(value)?),
                "write_timeout" => config.write_timeout = duration(name, value)?,
                _ => return Err(unknown_option(&OPTIONS)),
            }
        }
        Ok(config)
    }
}

impl RedisConfig {
    /// `//[user[:password]@]host[:port][/db]`
    fn place(&mut self, rest: &str) -> Result<()> {
        let wrong = || invalid("a Redis URL is `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`");
        let rest = rest.strip_prefix("//").ok_or_else(wrong)?;
        let (login, place) =
            rest.rsplit_once('@').map_or((None, rest), |(login, place)| (Some(login), place));
        if let Some(login) = login {
            let (user, password) = login.split_once(':').map_or((login, None), |(u, p)| (u, Some(p)));
            self.username = Some(decode(user)?).filter(|user| !user.is_empty());
            self.password = password.map(decode).transpose()?;
        }
        let (addr, db) = place.split_once('/').unwrap_or((place, ""));
        if addr.is_empty() {
            return Err(wrong());
        }
        self.addr = addr.to_owned();
        if !db.is_empty() {
            self.db = db.parse().map_err(|_| wrong())?;
        }
        Ok(())
    }
}

fn number(name: &str, text: &str) -> Result<u32> {
    text.parse().map_err(|_| invalid(format!("the URL option `{name}` is a whole number")))
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Result<String> {
    let wrong = || invalid("a part of the URL is not percent-encoded UTF-8");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = after.split_at_checked(2).ok_or_else(wrong)?;
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let (high, low) = digit(digits[0]).zip(digit(digits[1])).ok_or_else(wrong)?;
        bytes.push(high << 4 | low);
        rest = after;
    }
    String::from_utf8(bytes).map_err(|_| wrong())
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
        let config = RedisConfig::try_from(
            "redis://alice:p%40ss%3a@cache.internal:7000/3?prefix=app%5b1%5D:&pool_size=4&read_timeout=250ms",
        )
        .unwrap();
        assert_eq!(config.addr, "cache.internal:7000");
        assert_eq!((config.username.as_deref(), config.password.as_deref()), (Some("alice"), Some("p@ss:")));
        assert_eq!((config.db, config.prefix.as_str(), config.pool_size), (3, "app[1]:", 4));
        assert_eq!(config.read_timeout, Duration::from_millis(250));

        let config = RedisConfig::try_from("redis://:pw@[::1]").unwrap();
        assert_eq!((config.username, config.password.as_deref()), (None, Some("pw")));
        assert_eq!(config.addr, "[::1]");
        assert_eq!(RedisConfig::try_from("redis://localhost:6379").unwrap(), RedisConfig::default());

        let config =
            RedisConfig::try_from("redis+unix:///run/redis.sock?db=2&username=u&password=p").unwrap();
        assert_eq!((config.addr.as_str(), config.db), ("/run/redis.sock", 2));
        assert_eq!((config.username.as_deref(), config.password.as_deref()), (Some("u"), Some("p")));
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
        ] {
            let error = RedisConfig::try_from(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidValue, "{url}");
            assert!(!format!("{error:?}").contains("ecret"), "{error:?}");
        }
    }

    #[test]
    fn typed() {
        let config: RedisConfig = serde_json::from_str(r#"{"addr":"h:1","password":"hunter2"}"#).unwrap();
        assert_eq!(config, RedisConfig { password: Some("hunter2".into()), ..RedisConfig::new("h:1") });
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(serde_json::from_str::<RedisConfig>(r#"{"adr":"h:1"}"#).is_err());
    }
}
