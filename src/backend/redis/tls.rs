//! TLS over a stream of ours: the driver's own reads this machine's certificates for each connection, and fails if one of them
//! is damaged.

use std::{io, sync::Arc};

use rustls::{CertificateError, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::RedisTls;
use crate::{
    Error, ErrorKind, Result,
    backend::remote::{
        trust::{self, Checks, Files, Names},
        unreachable,
    },
};

const NAMES: Names = Names { ca: "tls_ca", cert: "tls_cert", key: "tls_key" };

/// What all connections of a store are secured with.
pub(super) struct Tls {
    connector: TlsConnector,
    /// The host that certificates must be for, if it is not the one that is dialled.
    server_name: Option<ServerName<'static>>,
}

impl Tls {
    pub(super) async fn new(config: &RedisTls) -> Result<Self> {
        let server_name = config.server_name.as_deref().map(name_of).transpose()?;
        let RedisTls { ca, cert, key, .. } = config.clone();
        let client = Files { names: &NAMES, ca, cert, key }.read(Checks::IssuerAndName).await?;
        Ok(Self { connector: Arc::new(client).into(), server_name })
    }

    pub(super) async fn secure(
        &self,
        stream: TcpStream,
        host: &str,
        server: &str,
    ) -> Result<TlsStream<TcpStream>> {
        let name = self.server_name.clone().map_or_else(|| name_of(host), Ok)?;
        self.connector.connect(name, stream).await.map_err(|error| match cause(&error) {
            Some(tls) => refusal(server, tls),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Error::new(
                ErrorKind::Unavailable,
                format!("{server} closed the connection when TLS began: see that this is its port for TLS"),
            ),
            None => unreachable(server, Some(&error)),
        })
    }
}

fn name_of(host: &str) -> Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).map_err(|_| {
        let message = "TLS certificates are for the name of a host or its address, and this is neither: name \
                       one in `tls_server_name`";
        Error::new(ErrorKind::InvalidValue, message)
    })
}

/// What of TLS made a stream fail.
pub(super) fn cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// Why TLS with a server, named so, failed, and what to do.
#[cold]
pub(super) fn refusal(server: &str, error: &rustls::Error) -> Error {
    use CertificateError::{NotValidForName, NotValidForNameContext};
    let rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) = error else {
        return trust::refusal(server, error, &NAMES);
    };
    let message = format!(
        "the TLS certificate of {server} is not for this host: connect by a name that is in it, put that name into \
         `tls_server_name`, or make a certificate with the host as its subjectAltName (the common name does not count)"
    );
    Error::new(ErrorKind::Denied, message).with_source(error.clone())
}
