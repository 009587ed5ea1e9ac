//! The URL of a store: `scheme:rest?name=value&name=value`.

use std::{net::IpAddr, path::Path};

use crate::{Error, ErrorKind, Result};

/// A URL, taken apart. Its text can hold a password, so errors don't repeat it.
#[derive(Clone, Copy)]
pub(crate) struct Location<'u> {
    pub(crate) scheme: &'u str,
    /// The text between the scheme and the options.
    pub(crate) rest: &'u str,
    options: &'u str,
}

/// The parts of `//[user[:password]@]hosts[/path]`, still percent-encoded.
pub(crate) struct Authority<'u> {
    pub(crate) user: Option<&'u str>,
    pub(crate) password: Option<&'u str>,
    pub(crate) hosts: &'u str,
    pub(crate) path: &'u str,
}

impl<'u> Location<'u> {
    /// Takes a URL apart, which must have one of these schemes. White space around it, such as the line feed
    /// at the end of a secret's file, is ignored.
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

    /// The parts of a server's URL. `None` if no `//` follows the scheme.
    pub(crate) fn authority(self) -> Option<Authority<'u>> {
        let rest = self.rest.strip_prefix("//")?;
        let (login, rest) = rest.rsplit_once('@').map_or((None, rest), |(login, rest)| (Some(login), rest));
        let (user, password) = match login.and_then(|login| login.split_once(':')) {
            Some((user, password)) => (Some(user), Some(password)),
            None => (login, None),
        };
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        Some(Authority { user, password, hosts, path })
    }

    /// The options, in order, with their values decoded.
    pub(crate) fn options(self) -> impl Iterator<Item = Result<(&'u str, String)>> {
        self.options.split('&').filter(|option| !option.is_empty()).map(|option| {
            let parts = option.split_once('=');
            let (name, value) = parts.ok_or_else(|| invalid("an option of a URL is written `name=value`"))?;
            Ok((name, decode(value)?))
        })
    }
}

/// Refuses a path that a shell should have expanded: a directory of that very name would be created.
pub(crate) fn check_path(path: &Path) -> Result<()> {
    match path.as_os_str().as_encoded_bytes().first() {
        Some(b'~' | b'$') => Err(invalid(
            "the path begins with `~` or `$`, which no shell has replaced: write the whole path (on a command line `$HOME/..`, without single quotes); a directory of such a name is `./~`",
        )),
        _ => Ok(()),
    }
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

/// The hosts of a list, each with its port and `localhost` as `127.0.0.1`, to compare lists.
pub(crate) fn canonical_hosts(addrs: &str, default_port: u16) -> String {
    let canonical = |addr| match host_and_port(addr, default_port) {
        _ if addr.starts_with('/') => addr.to_owned(),
        Some((host, port)) if host == "localhost" => format!("127.0.0.1:{port}"),
        Some((host, port)) if host.contains(':') => format!("[{host}]:{port}"),
        Some((host, port)) => format!("{host}:{port}"),
        None => addr.to_owned(),
    };
    addrs.split(',').map(canonical).collect::<Vec<_>>().join(",")
}

/// Whether a host is this machine, judged by its name.
pub(crate) fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The error of an option or a URL that is refused.
#[cold]
pub(crate) fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidValue, message)
}

#[cfg(test)]
mod tests {
    #[cfg(feature = "full")]
    #[test]
    fn white_space_is_no_part_of_a_url_and_is_refused_within() {
        use crate::{FileOptions, GitOptions, MemoryOptions, MongoDbOptions, PostgresOptions, RedisOptions};

        macro_rules! each {
            ($($options:ty: $($url:literal)+;)+) => {$($({
                let read = |url: &str| <$options>::try_from(url);
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
