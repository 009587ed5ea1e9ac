//! TLS by rustls.

use std::{fs, path::Path};

use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisResult, TlsCertificates,
};
use rustls::crypto::{CryptoProvider, ring};

use super::RedisTls;
use crate::{Error, ErrorKind, Result};

/// The certificates of a configuration, read.
pub(super) struct Certificates(TlsCertificates);

impl Certificates {
    pub(super) fn load(config: &RedisTls) -> Result<Self> {
        // The driver panics without one. An application that has chosen keeps its own.
        if CryptoProvider::get_default().is_none() {
            let _ = ring::default_provider().install_default();
        }
        let client_tls = match (&config.cert, &config.key) {
            (None, None) => None,
            (Some(cert), Some(key)) => {
                Some(ClientTlsConfig { client_cert: read(cert)?, client_key: read(key)? })
            }
            _ => {
                return Err(Error::new(
                    ErrorKind::InvalidValue,
                    "a TLS client certificate is two files, `tls_cert` and `tls_key`",
                ));
            }
        };
        let root_cert = config.ca.as_deref().map(read).transpose()?;
        if root_cert.as_ref().is_some_and(|pem| !pem.windows(BEGIN.len()).any(|at| at == BEGIN)) {
            return Err(unreadable());
        }
        let certificates = Self(TlsCertificates { client_tls, root_cert });
        // Parses them: what is wrong with a file is said now, not by each connection.
        let anywhere = ConnectionAddr::TcpTls {
            host: "localhost".to_owned(),
            port: 1,
            insecure: false,
            tls_params: None,
        };
        anywhere.into_connection_info().and_then(|info| certificates.client(info)).map_err(|_| {
            Error::new(
                ErrorKind::InvalidValue,
                "the TLS client certificate and its key are not what they should be",
            )
        })?;
        Ok(certificates)
    }

    pub(super) fn client(&self, info: ConnectionInfo) -> RedisResult<Client> {
        Client::build_with_tls(info, self.0.clone())
    }
}

/// Why there is no connection.
#[cold]
pub(super) fn of_handshake(error: &rustls::Error) -> Error {
    let message = match error {
        rustls::Error::InvalidCertificate(_) => {
            "the Redis server's TLS certificate is not trusted for this host"
        }
        rustls::Error::AlertReceived(_) => "the Redis server refused TLS: it may want a client certificate",
        _ => "the Redis server and this client find no common TLS",
    };
    Error::new(ErrorKind::Denied, message)
}

const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| {
        Error::new(ErrorKind::InvalidValue, "a file of TLS certificates can't be read").with_source(error)
    })
}

#[cold]
fn unreadable() -> Error {
    Error::new(ErrorKind::InvalidValue, "the file of trusted TLS certificates holds none")
}
