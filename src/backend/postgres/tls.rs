//! What `sslmode` asks of TLS.

use rustls::ClientConfig;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::options::{PostgresOptions, SslMode, SslNegotiation};
use crate::{
    Error, ErrorKind, Result,
    backend::remote::trust::{Checks, Files, Names},
};

pub(super) const NAMES: Names = Names { ca: "sslrootcert", cert: "sslcert", key: "sslkey" };

/// What each new connection is secured with.
pub(super) async fn connector(config: &PostgresOptions) -> Result<MakeRustlsConnect> {
    settings(config).await.map(MakeRustlsConnect::new)
}

async fn settings(config: &PostgresOptions) -> Result<ClientConfig> {
    if config.sslmode == SslMode::VerifyCa && config.sslrootcert.is_none() {
        return Err(Error::new(
            ErrorKind::InvalidValue,
            "`verify-ca` needs `sslrootcert`: without it, any public certificate would do",
        ));
    }
    if config.trusts_system() && config.sslmode != SslMode::VerifyFull {
        return Err(Error::new(
            ErrorKind::InvalidValue,
            "`sslrootcert=system` needs `sslmode=verify-full`: any public certificate would do otherwise",
        ));
    }
    let checks = match config.sslmode {
        SslMode::VerifyFull => Checks::IssuerAndName,
        SslMode::VerifyCa => Checks::Issuer,
        SslMode::Require if config.sslrootcert.is_some() => Checks::Issuer,
        SslMode::Require | SslMode::Disable | SslMode::Allow | SslMode::Prefer => Checks::Nothing,
    };
    let files = Files {
        names: &NAMES,
        ca: config.sslrootcert.clone().filter(|_| !config.trusts_system()),
        cert: config.sslcert.clone(),
        key: config.sslkey.clone(),
    };
    let mut tls = files.read(checks).await?;
    if config.sslnegotiation == SslNegotiation::Direct {
        if matches!(config.sslmode, SslMode::Disable | SslMode::Allow | SslMode::Prefer) {
            return Err(Error::new(
                ErrorKind::InvalidValue,
                "`sslnegotiation=direct` needs `sslmode=require` or more: there is no way back to none",
            ));
        }
        // A server that is spoken to so wants it.
        tls.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(tls)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server of version 17 closes a connection that begins with TLS and does not say so.
    #[tokio::test]
    async fn direct_tls_says_what_it_is_for() {
        let config = |url: &str| PostgresOptions::try_from(url).unwrap();
        let direct =
            settings(&config("postgres://h/db?sslmode=require&sslnegotiation=direct")).await.unwrap();
        assert_eq!(direct.alpn_protocols, [b"postgresql"]);
        let asked = settings(&config("postgres://h/db?sslmode=require")).await.unwrap();
        assert!(asked.alpn_protocols.is_empty());
    }
}
