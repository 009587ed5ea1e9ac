//! The URL of a storage: `scheme:rest?name=value&name=value`.

use std::time::Duration;

use crate::{Error, ErrorKind, Result};

/// A URL, taken apart. Its text can hold a password, so errors don't repeat it.
#[derive(Clone, Copy)]
pub(crate) struct Location<'u> {
    /// What stands between the scheme and the options.
    pub(crate) rest: &'u str,
    options: &'u str,
}

impl<'u> Location<'u> {
    /// Takes a URL apart. It must have this scheme.
    pub(crate) fn parse(url: &'u str, scheme: &str) -> Result<Self> {
        let rest = url.strip_prefix(scheme).and_then(|rest| rest.strip_prefix(':')).ok_or_else(|| {
            Error::new(ErrorKind::InvalidValue, format!("the URL of this backend begins with `{scheme}:`"))
        })?;
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        Ok(Self { rest, options })
    }

    /// The options, in order.
    pub(crate) fn options(self) -> impl Iterator<Item = Result<(&'u str, &'u str)>> {
        self.options.split('&').filter(|option| !option.is_empty()).map(|option| {
            option.split_once('=').ok_or_else(|| invalid("an option of a URL is written `name=value`"))
        })
    }
}

/// An option that the backend does not have. It is not repeated: it may be a piece of a password after a stray `&`.
#[cold]
pub(crate) fn unknown_option(known: &[&str]) -> Error {
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    invalid(format!("the URL has an option that this backend does not know; its options: {known}"))
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
