//! TLS by rustls: trusted certificates, the client certificate, and the errors of handshakes.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime, pem::PemObject,
    },
    server::ParsedCertificate,
};

use crate::{Error, ErrorKind, Result, codec::invalid};

/// The names of a backend's TLS options, for error messages.
#[derive(Debug)]
pub(crate) struct Names {
    /// The file of trusted certificates.
    pub(crate) ca: &'static str,
    /// The file of the client certificate.
    pub(crate) cert: &'static str,
    /// The file of its private key.
    pub(crate) key: &'static str,
}

/// The PEM files that the options name.
pub(crate) struct Files {
    pub(crate) names: &'static Names,
    /// None: the certificates that this machine trusts.
    pub(crate) ca: Option<PathBuf>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

/// Which checks a server's certificate must pass. That the server has its private key is always checked.
#[cfg_attr(not(feature = "postgres"), allow(dead_code))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checks {
    Nothing,
    /// The certificate is trusted; it may be for any host.
    Issuer,
    /// The certificate is trusted and is for the host of the connection.
    IssuerAndName,
}

impl Files {
    /// Reads the files. Done once per store, since a machine trusts hundreds of certificates.
    pub(crate) async fn read(self, checks: Checks) -> Result<ClientConfig> {
        let read = tokio::task::spawn_blocking(move || self.read_blocking(checks)).await;
        read.unwrap_or_else(|_| Err(Error::new(ErrorKind::Unavailable, "the async runtime is shutting down")))
    }

    fn read_blocking(self, checks: Checks) -> Result<ClientConfig> {
        // Not the process-wide default, which is the application's choice.
        let provider = Arc::new(ring::default_provider());
        let trusted = match checks {
            Checks::Nothing => None,
            _ => Some(Trusted::new(self.trusted()?, self.names, provider.clone())?),
        };
        let verifier = Verifier { trusted, checks, provider: provider.clone() };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::new(ErrorKind::Internal, "TLS can't be set up").with_source(error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let Names { cert: cert_name, key: key_name, .. } = self.names;
        match (&self.cert, &self.key) {
            (None, None) => Ok(builder.with_no_client_auth()),
            (Some(cert), Some(key)) => {
                let chain = certificates(cert, cert_name)?;
                let key = PrivateKeyDer::from_pem_slice(&contents(key, key_name)?).map_err(|_| {
                    invalid(format!(
                        "the file of `{key_name}` holds no private key (PEM, without a passphrase)"
                    ))
                })?;
                builder.with_client_auth_cert(chain, key).map_err(|error| {
                    invalid(format!(
                        "the private key of `{key_name}` does not belong to the certificate of `{cert_name}`"
                    ))
                    .with_source(error)
                })
            }
            _ => Err(invalid(format!("`{cert_name}` and `{key_name}` must be set together"))),
        }
    }

    fn trusted(&self) -> Result<Vec<CertificateDer<'static>>> {
        let name = self.names.ca;
        self.ca.as_ref().map_or_else(|| of_this_machine(name), |path| certificates(path, name))
    }
}

/// Reads the hundreds of certificates that this machine trusts. `name` is the option for a file of others.
pub(crate) fn of_this_machine(name: &str) -> Result<Vec<CertificateDer<'static>>> {
    let found = rustls_native_certs::load_native_certs().certs;
    if found.is_empty() {
        return Err(invalid(format!("this machine trusts no certificates: set `{name}` to a file of them")));
    }
    Ok(found)
}

/// The certificates of a file that can be read. Each is parsed by itself, so that a damaged one is skipped
/// alone.
fn certificates(path: &Path, name: &str) -> Result<Vec<CertificateDer<'static>>> {
    const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
    let pem = contents(path, name)?;
    let starts = pem.windows(BEGIN.len()).enumerate().filter(|(_, text)| *text == BEGIN);
    let found: Vec<_> =
        starts.filter_map(|(at, _)| CertificateDer::from_pem_slice(&pem[at..]).ok()).collect();
    if found.is_empty() {
        return Err(invalid(format!("the file of `{name}` holds no certificate (PEM)")));
    }
    Ok(found)
}

fn contents(path: &Path, name: &str) -> Result<Vec<u8>> {
    let unreadable = |error| invalid(format!("the file of `{name}` can't be read")).with_source(error);
    std::fs::read(path).map_err(unreadable)
}

/// The trusted certificates.
#[derive(Debug)]
struct Trusted {
    certificates: Vec<CertificateDer<'static>>,
    chains: Arc<WebPkiServerVerifier>,
}

impl Trusted {
    fn new(
        certificates: Vec<CertificateDer<'static>>,
        names: &Names,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        let (_, skipped) = roots.add_parsable_certificates(certificates.iter().cloned());
        if skipped > 0 {
            tracing::debug!(skipped, "skipped trusted certificates that can't be parsed");
        }
        let unusable = || invalid(format!("no certificate of `{}` can be used", names.ca));
        if roots.is_empty() {
            return Err(unusable());
        }
        let chains = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build();
        Ok(Self { certificates, chains: chains.map_err(|error| unusable().with_source(error))? })
    }
}

#[derive(Debug)]
struct Verifier {
    /// None: nothing is checked.
    trusted: Option<Trusted>,
    checks: Checks,
    provider: Arc<CryptoProvider>,
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
        let Some(trusted) = &self.trusted else { return Ok(ServerCertVerified::assertion()) };
        let mut result = trusted.chains.verify_server_cert(certificate, intermediates, name, ocsp, now);
        // webpki checks dates before the authority, so they are valid here. A certificate that is itself in
        // the trusted file needs no authority. A bad signature means that the trusted authority only has the
        // same name.
        if let Err(InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature | CertificateError::Other(_),
        )) = result
            && trusted.certificates.iter().any(|trusted| trusted == certificate)
        {
            let parsed = ParsedCertificate::try_from(certificate)?;
            result = verify_server_name(&parsed, name).map(|()| ServerCertVerified::assertion());
        }
        match result {
            // webpki checks the name last, so every other check has passed.
            Err(InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.checks == Checks::Issuer => Ok(ServerCertVerified::assertion()),
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
        if self.trusted.is_some() {
            return verify_tls12_signature(message, certificate, signature, algorithms);
        }
        let key = public_key(certificate).and_then(parts_of_key).ok_or(UNREADABLE)?;
        let offered = algorithms.mapping.iter().filter(|(scheme, _)| *scheme == signature.scheme);
        let algorithm = offered
            .flat_map(|(_, algorithms)| *algorithms)
            .find(|algorithm| algorithm.public_key_alg_id().as_ref() == key.algorithm)
            .ok_or(rustls::PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
        algorithm
            .verify_signature(key.bits, message, signature.signature())
            .map(|()| HandshakeSignatureValid::assertion())
            .map_err(|_| CertificateError::BadSignature.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        if self.trusted.is_some() {
            return verify_tls13_signature(message, certificate, signature, algorithms);
        }
        let key = SubjectPublicKeyInfoDer::from(public_key(certificate).ok_or(UNREADABLE)?);
        rustls::crypto::verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

const UNREADABLE: rustls::Error = rustls::Error::InvalidCertificate(CertificateError::BadEncoding);

/// The public key of a certificate, with its algorithm (SubjectPublicKeyInfo), for when the issuer is not
/// checked. webpki rejects X.509 version 1 and unknown critical extensions, which do not matter then.
fn public_key<'c>(certificate: &'c CertificateDer<'_>) -> Option<&'c [u8]> {
    const VERSION: u8 = 0xa0;
    let (certificate, _) = element(certificate)?;
    let (signed, _) = element(certificate.content)?;
    let (first, after) = element(signed.content)?;
    let mut rest = if first.tag == VERSION { after } else { signed.content };
    // The serial number, algorithm, issuer, dates and subject.
    for _ in 0..5 {
        rest = element(rest)?.1;
    }
    Some(element(rest)?.0.whole)
}

struct PublicKey<'c> {
    algorithm: &'c [u8],
    bits: &'c [u8],
}

fn parts_of_key(key: &[u8]) -> Option<PublicKey<'_>> {
    let (key, _) = element(key)?;
    let (algorithm, rest) = element(key.content)?;
    // The first byte counts the unused bits: none.
    let (_, bits) = element(rest)?.0.content.split_first()?;
    Some(PublicKey { algorithm: algorithm.content, bits })
}

/// A DER element.
struct Element<'d> {
    tag: u8,
    content: &'d [u8],
    whole: &'d [u8],
}

/// Splits off the first element.
fn element(der: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let (&[tag, length], rest) = der.split_first_chunk()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length - 0x80))?;
            (digits.iter().fold(0, |length, &digit| length << 8 | usize::from(digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((Element { tag, content, whole: &der[..der.len() - rest.len()] }, rest))
}

/// Whether a server presented an authority's certificate as its own.
pub(crate) fn is_authority(error: &rustls::Error) -> bool {
    is_refused_as(error, "CaUsedAsEndEntity")
}

/// Whether webpki refused a certificate for this reason, for which rustls has no error of its own.
fn is_refused_as(error: &rustls::Error, reason: &str) -> bool {
    matches!(error, rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(fault)))
        if fault.to_string() == reason)
}

/// Why the TLS handshake with a server failed, and what to do about it.
#[cold]
pub(crate) fn refusal(server: &str, error: &rustls::Error, names: &Names) -> Error {
    use CertificateError as Fault;
    let Names { ca, cert, key } = names;
    let why = match error {
        rustls::Error::InvalidCertificate(fault) => match fault {
            Fault::Expired | Fault::ExpiredContext { .. } => {
                "has expired: renew it, or set this machine's clock".to_owned()
            }
            Fault::NotValidYet | Fault::NotValidYetContext { .. } => {
                "is not valid yet: set this machine's clock, or make a new one".to_owned()
            }
            // BadSignature: the authority has the name of a trusted one, but another key.
            Fault::UnknownIssuer | Fault::BadSignature => {
                format!("is signed by an authority that is not trusted: put the authority's certificate into the file of `{ca}`")
            }
            Fault::NotValidForName | Fault::NotValidForNameContext { .. } => {
                "is not for this host: connect by a name that is in it, or make one with this name as its subjectAltName \
                 (the common name does not count)"
                    .to_owned()
            }
            Fault::InvalidPurpose | Fault::InvalidPurposeContext { .. } => {
                "is not for servers: make one with extendedKeyUsage=serverAuth".to_owned()
            }
            _ if is_authority(error) => {
                format!("is an authority's (CA:TRUE): put this certificate itself into the file of `{ca}`, or make one with basicConstraints=CA:FALSE")
            }
            // Such a certificate has neither host names nor a mark of authorities.
            _ if is_refused_as(error, "UnsupportedCertVersion") => {
                "is of X.509 version 1 or 2, which can't be checked: make one of version 3, with a subjectAltName (`openssl req -x509 -addext subjectAltName=DNS:HOST`)".to_owned()
            }
            _ => "can't be checked".to_owned(),
        },
        rustls::Error::AlertReceived(_) => {
            let message = format!("{server} refused TLS: it may require a client certificate (`{cert}` and `{key}`)");
            return Error::new(ErrorKind::Denied, message).with_source(error.clone());
        }
        _ => {
            return Error::new(ErrorKind::Denied, format!("{server} and this client can't agree on a version and cipher of TLS"))
                .with_source(error.clone());
        }
    };
    Error::new(ErrorKind::Denied, format!("the TLS certificate of {server} {why}")).with_source(error.clone())
}

#[cfg(test)]
mod tests {
    use rustls::{
        ClientConnection, ServerConfig, ServerConnection, SupportedProtocolVersion,
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
        version::{TLS12, TLS13},
    };
    use testkit::servers::certificates;

    use super::*;

    const NAMES: Names = Names { ca: "ca", cert: "cert", key: "key" };

    fn client() -> ClientConfig {
        let files = Files { names: &NAMES, ca: None, cert: None, key: None };
        files.read_blocking(Checks::Nothing).unwrap()
    }

    #[derive(Debug)]
    struct Only(Arc<CertifiedKey>);

    impl ResolvesServerCert for Only {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(self.0.clone())
        }
    }

    /// Connects to a server with this certificate and a key that need not belong to it.
    fn handshake(
        certificate: &CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
        version: &'static SupportedProtocolVersion,
    ) -> Result<(), rustls::Error> {
        let provider = Arc::new(ring::default_provider());
        let key = provider.key_provider.load_private_key(key).unwrap();
        let certified = Arc::new(CertifiedKey::new(vec![certificate.clone()], key));
        let server =
            ServerConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
        let server = server.with_no_client_auth().with_cert_resolver(Arc::new(Only(certified)));
        let mut server = ServerConnection::new(server.into()).unwrap();
        let mut client = ClientConnection::new(client().into(), "localhost".try_into().unwrap()).unwrap();
        for _ in 0..8 {
            let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
            client.write_tls(&mut to_server).unwrap();
            server.read_tls(&mut to_server.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            server.write_tls(&mut to_client).unwrap();
            client.read_tls(&mut to_client.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Ok(())
    }

    /// `Checks::Nothing` still checks that the server has the private key.
    #[test]
    fn a_server_must_have_the_key_of_its_certificate_whatever_its_version() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for (name, kind) in [
            ("rsa", "genrsa -out"),
            ("p256", "ecparam -genkey -name prime256v1 -noout -out"),
            ("p384", "ecparam -genkey -name secp384r1 -noout -out"),
            ("ed", "genpkey -algorithm ed25519 -out"),
        ] {
            let (own, other) = (format!("{name}.key"), format!("{name}-other.key"));
            certificates::openssl(folder, &format!("{kind} {own}"));
            certificates::openssl(folder, &format!("{kind} {other}"));
            certificates::old(folder, &own, "v1.crt");
            // A critical extension that webpki does not know.
            let extension = "-addext 1.2.3.4=critical,DER:0500";
            certificates::openssl(
                folder,
                &format!("req -x509 -key {own} -days 30 -subj /CN=localhost {extension} -out v3.crt"),
            );
            for certificate in ["v1.crt", "v3.crt"] {
                let certificate = CertificateDer::from_pem_file(folder.join(certificate)).unwrap();
                assert!(ParsedCertificate::try_from(&certificate).is_err(), "webpki can read it");
                let key = |name| PrivateKeyDer::from_pem_file(folder.join(name)).unwrap();
                for protocol in [&TLS12, &TLS13] {
                    handshake(&certificate, key(&own), protocol).unwrap();
                    let refused = handshake(&certificate, key(&other), protocol).unwrap_err();
                    assert_eq!(refused, CertificateError::BadSignature.into(), "{name}");
                }
            }
        }
    }

    #[test]
    fn truncated_and_damaged_certificates_do_not_panic() {
        let folder = tempfile::tempdir().unwrap();
        certificates::openssl(folder.path(), "genrsa -out a.key");
        certificates::old(folder.path(), "a.key", "a.crt");
        let whole = CertificateDer::from_pem_file(folder.path().join("a.crt")).unwrap();
        let key = public_key(&whole).and_then(parts_of_key).unwrap();
        assert!(key.bits.len() > 256 && !key.algorithm.is_empty());
        for length in 0..whole.len() {
            assert!(public_key(&CertificateDer::from(&whole[..length])).is_none());
        }
        for at in 0..whole.len() {
            for byte in [0, 0x80, 0x83, 0x84, 0xff] {
                let mut damaged = whole.to_vec();
                damaged[at] = byte;
                let _ =
                    public_key(&CertificateDer::from(damaged)).and_then(|key| parts_of_key(key).map(drop));
            }
        }
    }
}
