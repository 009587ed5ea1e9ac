//! TLS, as `sslmode` and the other TLS options require it.

use rustls::ClientConfig;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::options::{PostgresOptions, SslMode, SslNegotiation};
use crate::{
    Result,
    backend::remote::trust::{Checks, Files, Names},
    codec::invalid,
};

pub(super) const NAMES: Names = Names { ca: "sslrootcert", cert: "sslcert", key: "sslkey" };

/// The TLS setup of new connections.
pub(super) async fn connector(options: &PostgresOptions) -> Result<MakeRustlsConnect> {
    settings(options).await.map(MakeRustlsConnect::new)
}

async fn settings(options: &PostgresOptions) -> Result<ClientConfig> {
    if options.sslmode == SslMode::VerifyCa && options.sslrootcert.is_none() {
        return Err(invalid("`verify-ca` needs `sslrootcert`: without it, any public certificate would do"));
    }
    if options.trusts_system() && options.sslmode != SslMode::VerifyFull {
        return Err(invalid(
            "`sslrootcert=system` needs `sslmode=verify-full`: any public certificate would do otherwise",
        ));
    }
    let checks = match options.sslmode {
        SslMode::VerifyFull => Checks::IssuerAndName,
        SslMode::VerifyCa => Checks::Issuer,
        SslMode::Require if options.sslrootcert.is_some() => Checks::Issuer,
        SslMode::Require | SslMode::Disable | SslMode::Allow | SslMode::Prefer => Checks::Nothing,
    };
    let files = Files {
        names: &NAMES,
        ca: options.sslrootcert.clone().filter(|_| !options.trusts_system()),
        cert: options.sslcert.clone(),
        key: options.sslkey.clone(),
    };
    let mut tls = files.read(checks).await?;
    if options.sslnegotiation == SslNegotiation::Direct {
        if matches!(options.sslmode, SslMode::Disable | SslMode::Allow | SslMode::Prefer) {
            return Err(invalid(
                "`sslnegotiation=direct` needs `sslmode=require` or stronger: it can't fall back to no TLS",
            ));
        }
        // Servers require it for direct TLS.
        tls.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(tls)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PostgreSQL 17 closes a direct TLS connection without ALPN.
    #[tokio::test]
    async fn direct_tls_negotiates_the_protocol() {
        let options = |url: &str| PostgresOptions::try_from(url).unwrap();
        let direct =
            settings(&options("postgres://h/db?sslmode=require&sslnegotiation=direct")).await.unwrap();
        assert_eq!(direct.alpn_protocols, [b"postgresql"]);
        let requested = settings(&options("postgres://h/db?sslmode=require")).await.unwrap();
        assert!(requested.alpn_protocols.is_empty());
    }
}
