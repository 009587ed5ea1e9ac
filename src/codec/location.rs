//! The URL of a storage: `scheme:rest?name=value&name=value`.

use std::{net::IpAddr, path::Path, str::FromStr, time::Duration};

use crate::{Error, ErrorKind, Result};

/// A URL, taken apart. Its text can hold a password, so errors don't repeat it.
#[derive(Clone, Copy)]
pub(crate) struct Location<'u> {
    pub(crate) scheme: &'u str,
    /// What stands between the scheme and the options.
    pub(crate) rest: &'u str,
    options: &'u str,
}

impl<'u> Location<'u> {
    /// Takes a URL apart. It must have one of these schemes. White space around it, as a secret's line feed, is no part of it.
    pub(crate) fn parse(url: &'u str, schemes: &[&str]) -> Result<Self> {
        let url = url.trim();
        if url.contains(char::is_control) {
            return Err(invalid(
                "the URL has a line feed or another control character within: percent-encode it in a part that may have one",
            ));
        }
        let found = url.split_once(':').filter(|(scheme, _)| schemes.contains(scheme));
        let (scheme, rest) = found.ok_or_else(|| {
            let one_of = if schemes.len() > 1 { "one of " } else { "" };
            let schemes: Vec<String> = schemes.iter().map(|scheme| format!("`{scheme}:`")).collect();
            invalid(format!("the URL of this backend begins with {one_of}{}", schemes.join(", ")))
        })?;
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        Ok(Self { scheme, rest, options })
    }

    /// Whether the URL has this option, whatever its scheme is.
    pub(crate) fn has_option(url: &'u str, name: &str) -> Result<bool> {
        let (_, options) = url.split_once('?').unwrap_or((url, ""));
        let mut options = Self { scheme: "", rest: "", options }.options();
        options.try_fold(false, |has, option| Ok(has || option?.0 == name))
    }

    /// The options, in order.
    pub(crate) fn options(self) -> impl Iterator<Item = Result<(&'u str, &'u str)>> {
        self.options.split('&').filter(|option| !option.is_empty()).map(|option| {
            option.split_once('=').ok_or_else(|| invalid("an option of a URL is written `name=value`"))
        })
    }
}

/// An option that the backend does not have. It may be a piece of a password after a stray `&`, so only the name of an
/// option that other programs know is repeated.
#[cold]
pub(crate) fn unknown_option(name: &str, known: &[&str]) -> Error {
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    match OPTIONS_ELSEWHERE.split_whitespace().find(|option| option.eq_ignore_ascii_case(name)) {
        Some(name) => invalid(format!(
            "the URL option `{name}` is not one of this backend: take it away; its options: {known}"
        )),
        None => {
            invalid(format!("the URL has an option that this backend does not know; its options: {known}"))
        }
    }
}

/// Options of URLs that providers and other drivers' manuals show: those of
/// [libpq](https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS), of
/// [MongoDB](https://www.mongodb.com/docs/manual/reference/connection-string-options/), of
/// [redis-py](https://redis.readthedocs.io/en/stable/connections.html), go-redis, Prisma, SQLAlchemy and JDBC; and our own.
const OPTIONS_ELSEWHERE: &str = "\
    abortConnect allowAdmin application_name appName authMechanism authMechanismProperties authSource branch \
    channel_binding client_encoding client_name clientName compressors conn_max_idle_time conn_max_lifetime \
    connect_timeout connection_limit connectRetry connectTimeout connectTimeoutMS create currentSchema db \
    dbname deadline decode_responses defaultDatabase dial_timeout directConnection durability encoding \
    encoding_errors fallback_application_name family gssapiServiceName gssdelegation gssencmode gsslib \
    health_check_interval heartbeatFrequencyMS host hostaddr idle_check_frequency \
    idle_in_transaction_session_timeout idle_timeout interval isolation j journal keepalives keepalives_count \
    keepalives_idle keepalives_interval krbsrvname load_balance_hosts loadBalanced localThresholdMS \
    lock_timeout max_active_conns max_connections max_idle_conns max_lifetime max_protocol_version \
    max_redirects max_retries max_retry_backoff maxConnecting maxIdleTimeMS maxPoolSize maxStalenessSeconds \
    min_idle min_idle_conns min_protocol_version min_retry_backoff minPoolSize oauth_client_id oauth_issuer \
    options passfile password password_env password_file pgbouncer pool_fifo pool_max_conns pool_min_conns \
    pool_mode pool_size pool_timeout port prefix prepared_statement_cache_size prepared_statements \
    prepareThreshold protocol proxyHost proxyPort proxyUsername push read_only read_timeout readConcernLevel \
    readPreference readPreferenceTags remote remote_timeout replicaSet replication require_auth requirepeer \
    requiressl resp retry_on_timeout retryReads retryWrites route_by_latency route_randomly safe schema \
    search_path sentinel_password sentinel_username serverMonitoringMode serverSelectionTimeoutMS \
    serverSelectionTryOnce service servicefile single_connection_client skip_verify socket_connect_timeout \
    socket_keepalive socket_timeout socketTimeoutMS srvMaxHosts srvServiceName ssh_key ssl ssl_ca_certs \
    ssl_ca_path ssl_cert_reqs ssl_certfile ssl_check_hostname ssl_keyfile ssl_max_protocol_version \
    ssl_min_protocol_version ssl_min_version sslaccept sslcert sslcertmode sslcompression sslcrl sslcrldir \
    sslidentity sslkey sslmode sslnegotiation sslpassword sslrootcert sslsni statement_cache_capacity \
    statement_cache_mode statement_cache_size statement_timeout syncTimeout target_session_attrs tcp_nodelay \
    tcp_user_timeout tcpKeepAlive timeout timeoutMS tls tls_ca tls_cert tls_insecure tls_key \
    tlsAllowInvalidCertificates tlsAllowInvalidHostnames tlsCAFile tlsCertificateKeyFile \
    tlsCertificateKeyFilePassword tlsDisableCertificateRevocationCheck tlsDisableOCSPEndpointCheck tlsInsecure \
    token_env token_file user username uuidRepresentation verify_ssl virtual_host w wait wait_replicas \
    wait_timeout waitQueueMultiple waitQueueTimeoutMS write_timeout wtimeout wtimeoutMS zlibCompressionLevel";

/// Refuses a path that a shell should have replaced: it would lead to a new folder of that very name.
pub(crate) fn check_path(path: &Path) -> Result<()> {
    match path.as_os_str().as_encoded_bytes().first() {
        Some(b'~' | b'$') => Err(invalid(
            "the path begins with `~` or `$`, which no shell has replaced: write the whole path (on a command line `$HOME/..`, without single quotes); a folder of such a name is `./~`",
        )),
        _ => Ok(()),
    }
}

/// `true` or `false`.
pub(crate) fn boolean(name: &str, text: &str) -> Result<bool> {
    text.parse().map_err(|_| invalid(format!("the URL option `{name}` is `true` or `false`")))
}

/// A duration such as `10s` or `1m 30s`.
pub(crate) fn duration(name: &str, text: &str) -> Result<Duration> {
    humantime::parse_duration(text)
        .map_err(|_| invalid(format!("the URL option `{name}` is a duration such as `10s` or `250ms`")))
}

/// A whole number.
pub(crate) fn number<T: FromStr>(name: &str, text: &str) -> Result<T> {
    text.parse().map_err(|_| invalid(format!("the URL option `{name}` is a whole number")))
}

/// Undoes percent-encoding.
pub(crate) fn decode(text: &str) -> Result<String> {
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

/// `host`, `host:port` or `[ipv6]:port`.
pub(crate) fn host_and_port(addr: &str, default_port: u16) -> Option<(String, u16)> {
    let (host, port) = match addr.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => addr.split_at(addr.find(':').unwrap_or(addr.len())),
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().ok()?,
        None if port.is_empty() => default_port,
        None => return None,
    };
    (!host.is_empty() && !host.contains([',', ' '])).then(|| (host.to_owned(), port))
}

/// Whether a host is this machine, as far as its name says it.
pub(crate) fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cold]
fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidValue, message)
}

/// Durations in typed configurations, written as in URLs: `"10s"`.
pub(crate) mod readable {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .map_err(|_| de::Error::custom("expected a duration such as \"10s\" or \"250ms\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_names_of_known_options_are_repeated() {
        let said = |name| unknown_option(name, &["deadline"]).to_string();
        assert!(said("channel_binding").contains("`channel_binding` is not one of this backend"));
        assert!(said("READPREFERENCE").contains("`readPreference`"));
        assert!(
            said("pa55word").contains("an option that this backend does not know; its options: deadline")
        );
        assert!(!said("pa55word").contains("pa55"));
        assert!(!said("").contains("``"));
    }

    #[cfg(feature = "cli")]
    #[test]
    fn white_space_is_no_part_of_a_url_and_is_refused_within() {
        use crate::{FileOptions, GitOptions, MemoryOptions, MongoDbOptions, PostgresOptions, RedisOptions};

        macro_rules! each {
            ($($config:ty: $($url:literal)+;)+) => {$($({
                let read = |url: &str| <$config>::try_from(url);
                let plain = read($url).unwrap();
                for (before, after) in [("", "\n"), ("", " \r\n\n"), ("\n", ""), (" \t", "\u{a0}\u{85}")] {
                    let around = read(&format!("{before}{}{after}", $url)).unwrap();
                    assert_eq!(format!("{around:?}"), format!("{plain:?}"), "{before:?} {after:?}");
                }
                for within in ["\n", "\r\n", "\0", "\u{9f}"] {
                    let error = read(&format!("{}{within}x", $url)).unwrap_err();
                    assert!(error.to_string().starts_with("the URL has a line feed or another control"), "{error}");
                }
            })+)+};
        }
        each! {
            FileOptions: "file:./data" "file:./data?create=false";
            GitOptions: "git:./x" "git:./x?branch=b";
            MemoryOptions: "memory:";
            MongoDbOptions: "mongodb://h/db" "mongodb+srv://h.example/db?w=majority";
            PostgresOptions: "postgres://u:p@h/db" "postgresql://u:p@h/db?sslmode=require";
            RedisOptions: "redis://h:6379/0" "rediss://h?prefix=a" "redis+unix:///run/x.sock";
        }
    }
}
