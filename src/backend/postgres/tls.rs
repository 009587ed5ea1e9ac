//! TLS by rustls, for every `sslmode`.

use std::{path::Path, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::options::{PostgresConfig, SslMode};
use crate::{Error, ErrorKind, Result};

/// What each new connection is secured with.
pub(super) fn connector(config: &PostgresConfig) -> Result<MakeRustlsConnect> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(ErrorKind::Internal, "TLS can't be set up").with_source(error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(config, provider)?));
    let tls = match (&config.sslcert, &config.sslkey) {
        (None, None) => builder.with_no_client_auth(),
        (Some(certificate), Some(key)) => {
            let key = PrivateKeyDer::from_pem_file(key).map_err(|_| unusable("sslkey"))?;
            builder
                .with_client_auth_cert(certificates(certificate, "sslcert")?, key)
                .map_err(|error| unusable("sslcert").with_source(error))?
        }
        _ => return Err(Error::new(ErrorKind::InvalidValue, "`sslcert` and `sslkey` are given together")),
    };
    Ok(MakeRustlsConnect::new(tls))
}

fn certificates(path: &Path, name: &str) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(|found| found.collect::<Result<Vec<_>, _>>());
    read.ok().filter(|found| !found.is_empty()).ok_or_else(|| unusable(name))
}

#[cold]
fn unusable(name: &str) -> Error {
    Error::new(
        ErrorKind::InvalidValue,
        format!("the file of `{name}` can't be read, or is no PEM of its kind"),
    )
}

/// Checks a server's certificate as far as the mode says. Signatures of the handshake are checked in any case.
#[derive(Debug)]
struct Verifier {
    /// None: nobody's certificate is refused.
    chain: Option<Arc<WebPkiServerVerifier>>,
    name: bool,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(config: &PostgresConfig, provider: Arc<CryptoProvider>) -> Result<Self> {
        if config.sslmode == SslMode::VerifyCa && config.sslrootcert.is_none() {
            return Err(Error::new(
                ErrorKind::InvalidValue,
                "`verify-ca` needs `sslrootcert`: without it, whoever has any public certificate would do",
            ));
        }
        let checks_chain = match config.sslmode {
            SslMode::VerifyCa | SslMode::VerifyFull => true,
            SslMode::Require => config.sslrootcert.is_some(),
            SslMode::Disable | SslMode::Allow | SslMode::Prefer => false,
        };
        let chain = if checks_chain {
            let roots = roots(config.sslrootcert.as_deref())?;
            let verifier =
                WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone()).build();
            Some(verifier.map_err(|error| unusable("sslrootcert").with_source(error))?)
        } else {
            None
        };
        Ok(Self { chain, name: config.sslmode == SslMode::VerifyFull, provider })
    }
}

fn roots(file: Option<&Path>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match file {
        Some(path) => {
            for certificate in certificates(path, "sslrootcert")? {
                roots.add(certificate).map_err(|error| unusable("sslrootcert").with_source(error))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(Error::new(
                    ErrorKind::InvalidValue,
                    "this machine trusts no certificates: name a file of them in `sslrootcert`",
                ));
            }
        }
    }
    Ok(roots)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::Error::InvalidCertificate;
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        match chain.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // The name is looked at last, so everything else held.
            Err(InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.name => Ok(ServerCertVerified::assertion()),
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
