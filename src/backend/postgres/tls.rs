//! What `sslmode` asks of TLS.

use tokio_postgres_rustls::MakeRustlsConnect;

use super::options::{PostgresConfig, SslMode};
use crate::{
    Error, ErrorKind, Result,
    backend::remote::trust::{Checks, Files, Names},
};

pub(super) const NAMES: Names = Names { ca: "sslrootcert", cert: "sslcert", key: "sslkey" };

/// What each new connection is secured with.
pub(super) async fn connector(config: &PostgresConfig) -> Result<MakeRustlsConnect> {
    if config.sslmode == SslMode::VerifyCa && config.sslrootcert.is_none() {
        return Err(Error::new(
            ErrorKind::InvalidValue,
            "`verify-ca` needs `sslrootcert`: without it, any public certificate would do",
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
        ca: config.sslrootcert.clone(),
        cert: config.sslcert.clone(),
        key: config.sslkey.clone(),
    };
    Ok(MakeRustlsConnect::new(files.read(checks).await?))
}
