//! Options types: declared with their defaults, and read from the options of a URL by serde.

use std::{
    collections::{BTreeMap, btree_map},
    fmt,
    str::FromStr,
    time::Duration,
};

use serde::{
    Deserialize, Deserializer, Serializer,
    de::{
        self, DeserializeOwned, Error as _, Expected, IntoDeserializer, Unexpected, Visitor,
        value::{MapAccessDeserializer, MapDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::Map;

use super::location::{decode, invalid};
use crate::{Error, Result};

/// Declares an options type with its setters. The default of each field follows it, and `Default` is made of
/// these.
macro_rules! options {
    ($(#[$attribute:meta])* pub struct $name:ident {
        $($(#[$about:meta])* pub $field:ident: $type:ty = $default:expr,)+
    }) => {
        $(#[$attribute])*
        #[derive(::gateway_storage_macros::Setters)]
        pub struct $name { $($(#[$about])* pub $field: $type,)+ }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }
    };
}
pub(crate) use options;

/// Reads an options type from each type of text, as from a `&str`.
macro_rules! from_texts {
    ($name:ty $(, $parameter:ident: $bound:path)*) => {
        impl<$($parameter: $bound),*> ::std::str::FromStr for $name {
            type Err = $crate::Error;

            fn from_str(url: &str) -> $crate::Result<Self> {
                Self::try_from(url)
            }
        }

        impl<$($parameter: $bound),*> TryFrom<String> for $name {
            type Error = $crate::Error;

            fn try_from(url: String) -> $crate::Result<Self> {
                Self::try_from(url.as_str())
            }
        }

        impl<$($parameter: $bound),*> TryFrom<&String> for $name {
            type Error = $crate::Error;

            fn try_from(url: &String) -> $crate::Result<Self> {
                Self::try_from(url.as_str())
            }
        }
    };
}
pub(crate) use from_texts;

/// Makes an options type of each type of path, as its `new` does.
macro_rules! from_paths {
    ($name:ty $(, $parameter:ident: $bound:path)*) => {
        impl<$($parameter: $bound),*> From<&::std::path::Path> for $name {
            fn from(path: &::std::path::Path) -> Self {
                Self::new(path)
            }
        }

        impl<$($parameter: $bound),*> From<::std::path::PathBuf> for $name {
            fn from(path: ::std::path::PathBuf) -> Self {
                Self::new(path)
            }
        }

        impl<$($parameter: $bound),*> From<&::std::path::PathBuf> for $name {
            fn from(path: &::std::path::PathBuf) -> Self {
                Self::new(path)
            }
        }
    };
}
pub(crate) use from_paths;

/// Reads an options type from a map. Serde's message can quote a password, so it is repeated only where it
/// names a field.
pub(crate) fn options_from<T: DeserializeOwned>(
    backend: &str,
    fields: Map<String, serde_json::Value>,
) -> Result<T> {
    serde_path_to_error::deserialize(serde_json::Value::Object(fields)).map_err(|error| {
        let message = error.inner().to_string();
        let is_about_names = message.starts_with("unknown field") || message.starts_with("missing field");
        invalid(match error.path().to_string() {
            _ if is_about_names => format!("the options of the backend `{backend}`: {message}"),
            path => format!("the option `{path}` of the backend `{backend}` has a value that it can't have"),
        })
    })
}

/// The parts and options of a URL, collected so that serde can read an options type from them.
///
/// A path names a field: `deadline`, or `topology.sentinel.username`. A field `password` or `token` is a
/// [`Secret`](crate::Secret), which has `password.file` and `password.env`, too.
pub(crate) struct UrlOptions {
    /// The options that the URL may have, each with its path.
    names: BTreeMap<String, String>,
    /// Paths with their texts.
    pub(crate) texts: BTreeMap<String, String>,
    /// Paths with the name of the option that gave the text, for errors.
    given: BTreeMap<String, String>,
}

impl UrlOptions {
    /// Options with these names, each with its path.
    pub(crate) fn named(names: &[(&str, &str)]) -> Self {
        let names = names.iter().map(|(name, path)| ((*name).to_owned(), (*path).to_owned())).collect();
        Self { names, texts: BTreeMap::new(), given: BTreeMap::new() }
    }

    /// Options with the names of a type's fields, except these.
    pub(crate) fn of<T: DeserializeOwned>(except: &[&str]) -> Self {
        Self::named(&[]).with::<T>("", "", except)
    }

    /// Adds the fields of another type, except these, with a prefix for names and one for paths.
    pub(crate) fn with<T: DeserializeOwned>(mut self, prefix: &str, path: &str, except: &[&str]) -> Self {
        for field in fields_of::<T>() {
            let sources: &[(&str, &str)] = &[("", ""), ("_env", ".env"), ("_file", ".file")];
            for (suffix, source) in &sources[..if is_secret(field) { 3 } else { 1 }] {
                let name = format!("{field}{suffix}");
                if !except.contains(&&*name) {
                    self.names.insert(format!("{prefix}{name}"), format!("{path}{field}{source}"));
                }
            }
        }
        self
    }

    /// Sets fields to parts of the URL, which are decoded.
    pub(crate) fn set<'p>(
        &mut self,
        parts: impl IntoIterator<Item = (&'p str, Option<&'p str>)>,
    ) -> Result<()> {
        for (path, part) in parts {
            if let Some(part) = part {
                self.texts.insert(path.to_owned(), decode(part)?);
            }
        }
        Ok(())
    }

    /// Adds an option. The last of several with one name counts; a second password is refused.
    pub(crate) fn add(&mut self, (name, text): (&str, String)) -> Result<()> {
        let path = self.names.get(name).ok_or_else(|| unknown_option(name, &self.names))?;
        let secret = path.trim_end_matches(".env").trim_end_matches(".file");
        if is_secret(secret) && self.texts.keys().any(|path| path.starts_with(secret)) {
            return Err(invalid(
                "the URL has two passwords: keep the one of its login, or one of the options for it",
            ));
        }
        self.given.insert(path.clone(), name.to_owned());
        self.texts.insert(path.clone(), text);
        Ok(())
    }

    /// Reads an options type from the texts.
    pub(crate) fn read<T: DeserializeOwned>(self) -> Result<T> {
        serde_path_to_error::deserialize(Value(self.texts)).map_err(|error| {
            let path = error.path().to_string();
            invalid(format!(
                "the URL option `{}` {}",
                self.given.get(&path).unwrap_or(&path),
                error.inner().must
            ))
        })
    }
}

/// Whether the field at a path is a [`Secret`](crate::Secret).
fn is_secret(path: &str) -> bool {
    path.ends_with("password") || path.ends_with("token")
}

/// The error of an option that the backend does not have. It may be a piece of a password after a stray `&`,
/// so only the name of an option that other programs know is repeated, and of a misspelt one the right name.
#[cold]
fn unknown_option(name: &str, names: &BTreeMap<String, String>) -> Error {
    let known = match names.keys().map(String::as_str).collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => "none".to_owned(),
        known => known,
    };
    let alike = most_alike(name, names).map_or(String::new(), |alike| format!("; did you mean `{alike}`?"));
    let elsewhere = OPTIONS_ELSEWHERE.split_whitespace().find(|option| option.eq_ignore_ascii_case(name));
    let what = elsewhere.map_or("the URL has an option that this backend does not know".to_owned(), |name| {
        format!("the URL option `{name}` is not one of this backend: remove it")
    });
    invalid(format!("{what}{alike}; its options: {known}"))
}

/// The option with the most similar name, if at most two characters differ.
fn most_alike<'k>(name: &str, known: &'k BTreeMap<String, String>) -> Option<&'k str> {
    const SHORTEST: usize = 4;
    const LONGEST: usize = 64;
    let name: Vec<char> = name.chars().take(LONGEST + 1).collect();
    if !(SHORTEST..=LONGEST).contains(&name.len()) {
        return None;
    }
    let distances = known.keys().map(|option| (edits(&name, option), option.as_str()));
    distances.filter(|(distance, _)| *distance <= 2).min().map(|(_, option)| option)
}

/// How many characters must be added, removed or replaced to make one text of the other.
fn edits(one: &[char], other: &str) -> usize {
    // The distances of the beginnings of `one` from the part of `other` so far.
    let mut distances: Vec<usize> = (0..=one.len()).collect();
    for (row, wanted) in other.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut distances[0], row + 1);
        for (at, character) in one.iter().enumerate() {
            let replaced = diagonal + usize::from(*character != wanted);
            diagonal = distances[at + 1];
            distances[at + 1] = replaced.min(diagonal + 1).min(distances[at] + 1);
        }
    }
    distances[one.len()]
}

/// Options of URLs that providers and other drivers' manuals show: those of
/// [libpq](https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS), of
/// [MongoDB](https://www.mongodb.com/docs/manual/reference/connection-string-options/), of
/// [redis-py](https://redis.readthedocs.io/en/stable/connections.html), go-redis, Prisma, SQLAlchemy and
/// JDBC; and our own.
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

/// The names of a type's fields, as serde has them: a text can't be a struct, and the error has its fields.
fn fields_of<T: DeserializeOwned>() -> &'static [&'static str] {
    let text = BTreeMap::from([(String::new(), String::new())]);
    T::deserialize(Value(text)).map_or_else(|misfit| misfit.fields, |_| &[])
}

/// The source from which serde reads an options type: texts by their paths. The text of the value itself has
/// an empty path.
#[derive(Default)]
struct Value(BTreeMap<String, String>);

impl Value {
    fn fields<'de>(self) -> MapDeserializer<'de, btree_map::IntoIter<String, Self>, Misfit> {
        let mut fields = BTreeMap::<String, Self>::new();
        for (path, text) in self.0 {
            let (field, below) = path.split_once('.').unwrap_or((&path, ""));
            fields.entry(field.to_owned()).or_default().0.insert(below.to_owned(), text);
        }
        MapDeserializer::new(fields.into_iter())
    }

    fn parse<T: FromStr>(&self, must: &str) -> Result<T, Misfit> {
        self.0.get("").and_then(|text| text.parse().ok()).ok_or_else(|| Misfit::custom(must))
    }
}

impl<'de> Deserializer<'de> for Value {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Misfit> {
        match self.0.remove("") {
            Some(text) => visitor.visit_string(text),
            None => visitor.visit_map(self.fields()),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        self.deserialize_any(visitor).map_err(|misfit| Misfit { fields, ..misfit })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        mut self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        match self.0.remove("") {
            Some(text) => visitor.visit_enum(text.into_deserializer()),
            None => visitor.visit_enum(MapAccessDeserializer::new(self.fields())),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_some(self)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_bool(self.parse("must be `true` or `false`")?)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_u32(self.parse("must be a whole number")?)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 u8 u16 u64 f32 f64 char str string bytes byte_buf unit unit_struct newtype_struct seq
        tuple tuple_struct map identifier ignored_any
    }
}

impl IntoDeserializer<'_, Misfit> for Value {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// What a text must be. The text itself can be secret, so it is not repeated.
#[derive(Debug, thiserror::Error)]
#[error("{must}")]
struct Misfit {
    must: String,
    /// The fields of the type that was to be read.
    fields: &'static [&'static str],
}

impl de::Error for Misfit {
    fn custom<T: fmt::Display>(must: T) -> Self {
        Self { must: must.to_string(), fields: &[] }
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format_args!("must be {expected}"))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format_args!("must be {expected}"))
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format_args!("must be one of {}", expected.join(", ")))
    }
}

/// Durations as text, in URLs and elsewhere: `"10s"` or `"1m 30s"`.
pub(crate) mod readable {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .map_err(|_| de::Error::custom("must be a duration such as `10s` or `250ms`"))
    }
}

/// Sizes in bytes as text, in URLs and elsewhere: `"64MiB"`.
#[cfg(feature = "file")]
pub(crate) mod readable_size {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.into_iter().find(|(bits, _)| *bytes > 0 && bytes.trailing_zeros() >= *bits) {
            Some((bits, unit)) => serializer.collect_str(&format_args!("{}{unit}", bytes >> bits)),
            None => serializer.collect_str(&format_args!("{bytes}B")),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse::<bytesize::ByteSize>()
            .map(|size| size.as_u64())
            .map_err(|_| de::Error::custom("must be a size such as `64MiB`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Two {
        count: u32,
        password: crate::Secret,
    }

    #[test]
    fn texts_are_read_by_path() {
        let mut options = UrlOptions::of::<Two>(&["password"]);
        assert_eq!(options.names.keys().collect::<Vec<_>>(), ["count", "password_env", "password_file"]);
        for option in [("count", "1"), ("password_file", "/a"), ("count", "2")] {
            options.add((option.0, option.1.to_owned())).unwrap();
        }
        let error = options.add(("password_env", "hunter2".to_owned())).unwrap_err();
        assert!(error.to_string().starts_with("the URL has two passwords:"), "{error}");
        let read: Two = options.read().unwrap();
        assert_eq!(read, Two { count: 2, password: crate::Secret::file("/a") });

        let mut options = UrlOptions::named(&[("n", "count")]);
        options.add(("n", "hunter2".to_owned())).unwrap();
        let error = options.read::<Two>().unwrap_err();
        assert_eq!(error.to_string(), "the URL option `n` must be a whole number");
    }

    #[test]
    fn only_the_names_of_known_options_are_repeated() {
        let known = BTreeMap::from([("deadline".to_owned(), String::new())]);
        let said = |name| unknown_option(name, &known).to_string();
        assert!(said("channel_binding").contains("`channel_binding` is not one of this backend"));
        assert!(said("READPREFERENCE").contains("`readPreference`"));
        assert!(
            said("pa55word").contains("an option that this backend does not know; its options: deadline")
        );
        assert!(!said("pa55word").contains("pa55"));
        assert!(!said("").contains("``"));
    }

    #[test]
    fn the_right_name_of_a_misspelt_option_is_suggested() {
        let known = ["create", "deadline", "pool_size", "wait"];
        let known = known.map(|name| (name.to_owned(), String::new())).into();
        let suggested = |name| {
            let said = unknown_option(name, &known).to_string();
            assert!(!said.contains(&format!("`{name}`")), "{said}");
            let (_, suggested) = said.split_once("; did you mean `")?;
            Some(suggested.split_once("`?; its options: create, deadline").unwrap().0.to_owned())
        };
        for (name, wanted) in [
            ("poolSize", "pool_size"),
            ("pool-size", "pool_size"),
            ("deadlin", "deadline"),
            ("deadlines", "deadline"),
            ("daedline", "deadline"),
            ("creat", "create"),
            ("wiat", "wait"),
        ] {
            assert_eq!(suggested(name).as_deref(), Some(wanted), "{name}");
        }
        let long = "x".repeat(100_000);
        for name in [
            "",
            "wai",
            "ait",
            "pool",
            "deadl",
            "dead_lines_",
            "hunter2",
            "pa55word",
            "\u{1f600}".repeat(4).as_str(),
            &long,
        ] {
            assert_eq!(suggested(name), None, "{}", name.len());
        }
    }
}
