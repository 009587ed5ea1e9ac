//! Writes the certificates that this machine trusts to a file: by itself, the driver trusts only Mozilla's.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::{Error, ErrorKind, Result, backend::remote::trust::of_this_machine};

/// A private temporary file of certificates, removed on drop.
pub(super) struct Roots(PathBuf);

impl Roots {
    /// Writes the readable certificates. They are hundreds from many files, so this runs on a thread for
    /// blocking work.
    pub(super) async fn of_this_machine() -> Result<Self> {
        let written = tokio::task::spawn_blocking(|| {
            let found = of_this_machine("tlsCAFile")?;
            Self::write(found.iter().map(AsRef::as_ref)).map_err(|error| {
                let failed = "the certificates that this machine trusts can't be written to a temporary file for the driver: set \
                              `tlsCAFile` to a file of certificates";
                Error::io(failed, error)
            })
        });
        let stopped = Error::new(ErrorKind::Unavailable, "the runtime is shutting down");
        written.await.unwrap_or(Err(stopped))
    }

    fn write<'c>(certificates: impl Iterator<Item = &'c [u8]>) -> io::Result<Self> {
        let path =
            std::env::temp_dir().join(format!("gateway-storage-roots-{:032x}.pem", fastrand::u128(..)));
        // Never opens an existing file, which may be another user's.
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&path)?;
        let roots = Self(path);
        let text: String = certificates
            .map(|der| {
                format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
            })
            .collect();
        file.write_all(text.as_bytes())?;
        Ok(roots)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Roots {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rustls::pki_types::{CertificateDer, pem::PemObject};

    use super::*;

    #[test]
    fn the_file_is_private_and_removed_on_drop() {
        let certificates: [&[u8]; 2] = [b"one", &[0xff; 1000]];
        let roots = Roots::write(certificates.into_iter()).unwrap();
        let path = roots.path().to_owned();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let read: Vec<_> = CertificateDer::pem_file_iter(&path).unwrap().map(|one| one.unwrap()).collect();
        assert!(read.iter().map(AsRef::as_ref).eq(certificates));
        drop(roots);
        assert!(!path.exists());
    }
}
