//! Addresses of servers.

use crate::{
    Error, ErrorKind, Result,
    codec::{host_and_port, is_this_machine},
};

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Address {
    Host(String, u16),
    Socket(String),
}

impl Address {
    /// Whether the address is of this machine.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Self::Host(host, _) => is_this_machine(host),
            Self::Socket(_) => true,
        }
    }

    /// How an error names the server at this address.
    pub(super) fn named(&self, server: &str) -> String {
        format!("{server} at {self}")
    }

    /// Parses `host`, `host:port`, `[ipv6]:port` or `/path`.
    pub(super) fn parse(addr: &str, default_port: u16) -> Result<Self> {
        if addr.starts_with('/') {
            return Ok(Self::Socket(addr.to_owned()));
        }
        let (host, port) = host_and_port(addr, default_port).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidValue,
                "a Redis address must be `host`, `host:port`, `[ipv6]:port` or `/path`",
            )
        })?;
        Ok(Self::Host(host, port))
    }

    /// Parses several addresses, separated by commas.
    pub(super) fn parse_list(addrs: &str, default_port: u16) -> Result<Vec<Self>> {
        addrs.split(',').map(|addr| Self::parse(addr.trim(), default_port)).collect()
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
            Self::Socket(path) => f.write_str(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let parse = |addr| Address::parse(addr, 6379);
        let host = |host: &str, port| Address::Host(host.into(), port);
        assert_eq!(parse("host").unwrap(), host("host", 6379));
        assert_eq!(parse("host:1").unwrap(), host("host", 1));
        assert_eq!(parse("[::1]:1").unwrap(), host("::1", 1));
        assert_eq!(parse("[::1]").unwrap(), host("::1", 6379));
        assert_eq!(parse("/run/x").unwrap(), Address::Socket("/run/x".into()));
        for addr in ["host:1", "[::1]:1", "/run/x"] {
            assert_eq!(parse(addr).unwrap().to_string(), addr);
        }
        for wrong in ["", ":1", "host:", "host:x", "::1", "[::1", "[::1]x", "a,b"] {
            assert_eq!(parse(wrong).unwrap_err().kind(), ErrorKind::InvalidValue, "{wrong}");
        }
        assert_eq!(Address::parse_list("a, b:2", 1).unwrap(), [host("a", 1), host("b", 2)]);
        assert!(Address::parse_list("a,,b", 1).is_err());
    }
}
