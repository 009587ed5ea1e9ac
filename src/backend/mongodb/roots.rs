//! Writes the certificates that this machine trusts to a file: by itself, the driver trusts only Mozilla's.

use std::io::{self, Write};

use base64::{Engine, engine::general_purpose::STANDARD};
use tempfile::{Builder, TempPath};

use crate::{Error, ErrorKind, Result, backend::remote::trust::of_this_machine};

/// Writes the readable certificates to a private temporary file, which is removed when the result is dropped.
/// They are hundreds from many files, so this runs on a thread for blocking work.
pub(super) async fn roots_of_this_machine() -> Result<TempPath> {
    let written = tokio::task::spawn_blocking(|| {
        let found = of_this_machine("tlsCAFile")?;
        write(found.iter().map(AsRef::as_ref)).map_err(|error| {
            let failed = "the certificates that this machine trusts can't be written to a temporary file for the driver: set \
                          `tlsCAFile` to a file of certificates";
            Error::io(failed, error)
        })
    });
    let stopped = Error::new(ErrorKind::Unavailable, "the runtime is shutting down");
    written.await.unwrap_or(Err(stopped))
}

fn write<'c>(certificates: impl Iterator<Item = &'c [u8]>) -> io::Result<TempPath> {
    let mut file = Builder::new().prefix("gateway-storage-roots-").suffix(".pem").tempfile()?;
    let text: String = certificates
        .map(|der| {
            format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
        })
        .collect();
    file.write_all(text.as_bytes())?;
    Ok(file.into_temp_path())
}

#[cfg(all(test, unix))]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use rustls::pki_types::{CertificateDer, pem::PemObject};

    use super::*;

    #[test]
    fn the_file_is_private_and_removed_on_drop() {
        let certificates: [&[u8]; 2] = [b"one", &[0xff; 1000]];
        let roots = write(certificates.into_iter()).unwrap();
        let path = roots.to_path_buf();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let read: Vec<_> = CertificateDer::pem_file_iter(&path).unwrap().map(|one| one.unwrap()).collect();
        assert!(read.iter().map(AsRef::as_ref).eq(certificates));
        drop(roots);
        assert!(!path.exists());
    }
}
