//! TLS over a stream that this crate opens. The driver's own TLS reads the machine's certificates for each
//! connection and fails if one of them is damaged.

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

/// The TLS settings of all connections of a store.
#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
    /// The host that certificates must be for, if it is not the host that is connected to.
    server_name: Option<ServerName<'static>>,
}

impl Tls {
    pub(super) async fn new(options: &RedisTls) -> Result<Self> {
        let server_name = options.server_name.as_deref().map(name_of).transpose()?;
        let RedisTls { ca, cert, key, .. } = options.clone();
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
                format!(
                    "{server} closed the connection during the TLS handshake: check that this is its TLS port"
                ),
            ),
            None => unreachable(server, Some(&error)),
        })
    }
}

fn name_of(host: &str) -> Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).map_err(|_| {
        let message = "the address is neither a host name nor an IP address, as TLS certificates require: put one into \
                       `tls_server_name`";
        Error::new(ErrorKind::InvalidValue, message)
    })
}

/// The TLS error that made a stream fail.
pub(super) fn cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// The error for a failed TLS handshake, with what to do. `server` is how the error names the server.
#[cold]
pub(super) fn refusal(server: &str, error: &rustls::Error) -> Error {
    use CertificateError::{NotValidForName, NotValidForNameContext};
    let rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) = error else {
        return trust::refusal(server, error, &NAMES);
    };
    let message = format!(
        "the TLS certificate of {server} is not for this host: connect by a name that is in it, put that name into \
         `tls_server_name`, or issue a certificate with the host as its subjectAltName (the common name does not count)"
    );
    Error::new(ErrorKind::Denied, message).with_source(error.clone())
}
