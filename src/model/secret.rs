//! [`Secret`]: a password or token, or where to read it from, which is never printed.

use std::{error::Error as StdError, fmt, path::Path, sync::Arc};

use futures_core::future::BoxFuture;
use serde::{Deserialize, Deserializer};

use super::without_mark;
use crate::{Error, ErrorKind, Result};

/// The most bytes of a secret that is read from a file or the environment: 64 KiB.
pub const MAX_SECRET_BYTES: usize = 64 * 1024;

/// A password or token, or where to read it from.
///
/// A backend reads it for each new connection, so a password that changes while the store is open is used
/// from the next connection on. Open connections stay open.
///
/// | made by | as JSON | as a URL option | read |
/// |---|---|---|---|
/// | [`Secret::from("..")`](Secret::from) | `"password": ".."` | `password=..` | |
/// | [`Secret::file`] | `"password": { "file": "/run/secrets/db" }` | `password_file=/run/secrets/db` | for each connection |
/// | [`Secret::env`] | `"password": { "env": "DB_PASSWORD" }` | `password_env=DB_PASSWORD` | for each connection |
/// | [`Secret::call`] | | | for each connection |
///
/// `Debug` prints where a secret comes from, never the secret itself. Cheap to clone.
///
/// ```
/// # use gateway_storage::Secret;
/// let secret: Secret = serde_json::from_str(r#"{ "file": "/run/secrets/db" }"#).unwrap();
/// assert_eq!(secret, Secret::file("/run/secrets/db"));
/// assert_eq!(format!("{:?}", Secret::from("hunter2")), "Secret(text)");
/// ```
#[derive(Clone)]
pub struct Secret(Source);

#[derive(Clone)]
enum Source {
    Text(Arc<str>),
    File(Arc<Path>),
    Env(Arc<str>),
    Call(Arc<Call>),
}

type Call = dyn Fn() -> BoxFuture<'static, Result<String, Box<dyn StdError + Send + Sync>>> + Send + Sync;

impl Secret {
    /// Reads the secret from a file, such as a mounted Kubernetes or Docker secret.
    ///
    /// The file is UTF-8 with at most [`MAX_SECRET_BYTES`]. A byte order mark at its start and line breaks at
    /// its end are not part of the secret.
    pub fn file(path: impl AsRef<Path>) -> Self {
        Self(Source::File(path.as_ref().into()))
    }

    /// Reads the secret from an environment variable of this process. Line breaks at its end are not part of
    /// the secret.
    pub fn env(name: impl AsRef<str>) -> Self {
        Self(Source::Env(name.as_ref().into()))
    }

    /// Calls a function for the secret, such as one that signs a token for a cloud's IAM.
    ///
    /// It is called for each new connection, several times at once when a pool opens, and its time counts
    /// towards the connect timeout: cache a token while it is valid. If it fails, the connection is not
    /// opened, and the call that needed it fails as [`Unavailable`](ErrorKind::Unavailable) with the error as
    /// its [`source`](StdError::source), so that error must not contain the secret.
    ///
    /// ```
    /// # use gateway_storage::Secret;
    /// # async fn sign() -> std::io::Result<String> { Ok(String::new()) }
    /// let token = Secret::call(|| async { sign().await });
    /// ```
    pub fn call<F, T, E>(token: F) -> Self
    where
        F: Fn() -> T + Send + Sync + 'static,
        T: Future<Output = Result<String, E>> + Send + 'static,
        E: Into<Box<dyn StdError + Send + Sync>>,
    {
        Self(Source::Call(Arc::new(move || {
            let token = token();
            Box::pin(async move { token.await.map_err(Into::into) })
        })))
    }

    /// Reads the current secret.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](ErrorKind::Unavailable) if the file or the variable can't be read, is empty or too
    /// large, or the function failed.
    pub async fn reveal(&self) -> Result<String> {
        match &self.0 {
            Source::Text(text) => Ok(text.to_string()),
            Source::File(path) => {
                let file = Arc::clone(path);
                let read = tokio::task::spawn_blocking(move || read(&file)).await;
                let stopped = |_| Err(std::io::Error::other("the runtime is shutting down"));
                let bytes = read.unwrap_or_else(stopped).map_err(|error| {
                    unavailable(format!("the secret in the file {} can't be read", path.display()))
                        .with_source(error)
                })?;
                let text = std::str::from_utf8(without_mark(&bytes)).ok();
                usable(text, || format!("the file {}", path.display()))
            }
            Source::Env(name) => {
                let text = std::env::var(&**name).ok();
                usable(text.as_deref(), || format!("the environment variable {name}"))
            }
            Source::Call(token) => token().await.map_err(|error| {
                unavailable("the function that supplies the secret failed").with_source(CallbackError(error))
            }),
        }
    }
}

/// Reads at most one byte more than a secret may have.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;

    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_SECRET_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Checks a text, and removes the line breaks at its end.
fn usable(text: Option<&str>, source: impl FnOnce() -> String) -> Result<String> {
    let text = text.map(|text| text.trim_end_matches(['\r', '\n']));
    match text {
        Some(text) if !text.is_empty() && text.len() <= MAX_SECRET_BYTES => Ok(text.to_owned()),
        Some("") => Err(unavailable(format!("{} holds no secret: it is empty", source()))),
        Some(_) => Err(unavailable(format!("{} has more than {MAX_SECRET_BYTES} bytes", source()))),
        None => Err(unavailable(format!("{} is not set, or is not UTF-8", source()))),
    }
}

#[cold]
fn unavailable(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Unavailable, message)
}

/// The error of the application's function, as a source.
#[derive(Debug)]
struct CallbackError(Box<dyn StdError + Send + Sync>);

impl fmt::Display for CallbackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for CallbackError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(Source::Text(text.into()))
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Source::Text(text.into()))
    }
}

/// Functions are compared by identity.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Source::Text(one), Source::Text(two)) => one == two,
            (Source::File(one), Source::File(two)) => one == two,
            (Source::Env(one), Source::Env(two)) => one == two,
            (Source::Call(one), Source::Call(two)) => Arc::ptr_eq(one, two),
            _ => false,
        }
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Text(_) => f.write_str("Secret(text)"),
            Source::File(path) => write!(f, "Secret(file {})", path.display()),
            Source::Env(name) => write!(f, "Secret(env {name})"),
            Source::Call(_) => f.write_str("Secret(function)"),
        }
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            deny_unknown_fields,
            expecting = "a secret is a string, { \"file\": PATH } or { \"env\": NAME }"
        )]
        enum Form {
            Text(String),
            File { file: Box<Path> },
            Env { env: String },
        }
        Ok(match Form::deserialize(deserializer)? {
            Form::Text(text) => text.into(),
            Form::File { file } => Self::file(file),
            Form::Env { env } => Self::env(env),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn revealed(secret: &Secret) -> Result<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(secret.reveal())
    }

    #[test]
    fn each_read_returns_the_current_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let secret = Secret::file(&path);
        for (written, read) in
            [("one\n", "one"), ("\u{feff}two\r\n", "two"), (" in spaces ", " in spaces "), ("ü\n\n", "ü")]
        {
            std::fs::write(&path, written).unwrap();
            assert_eq!(revealed(&secret).unwrap(), read);
        }
        assert_eq!(revealed(&Secret::from("line\n")).unwrap(), "line\n", "a text is not trimmed");
        assert!(revealed(&Secret::env("PATH")).is_ok());

        let calls = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let secret = Secret::call(move || {
            let call = calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            async move { Ok::<_, io::Error>(format!("token {call}")) }
        });
        assert_eq!(revealed(&secret).unwrap(), "token 0");
        assert_eq!(revealed(&secret).unwrap(), "token 1");
    }

    #[test]
    fn errors_say_why_without_the_secret() {
        let folder = tempfile::tempdir().unwrap();
        let error_of = |bytes: &[u8]| {
            let path = folder.path().join("password");
            std::fs::write(&path, bytes).unwrap();
            revealed(&Secret::file(path)).unwrap_err()
        };
        let large = "ecret".repeat(MAX_SECRET_BYTES);
        let unset = revealed(&Secret::env("GATEWAY_STORAGE_IS_NOT_SET")).unwrap_err();
        let failed =
            revealed(&Secret::call(|| async { Err::<String, _>(io::Error::other("no role")) })).unwrap_err();
        let missing = revealed(&Secret::file(folder.path().join("missing"))).unwrap_err();
        for (error, message) in [
            (error_of(b"\n"), "holds no secret: it is empty"),
            (error_of(large.as_bytes()), "has more than 65536 bytes"),
            (error_of(b"ecret\xff"), "not UTF-8"),
            (unset, "the environment variable GATEWAY_STORAGE_IS_NOT_SET is not set"),
            (failed, "the function that supplies the secret failed"),
            (missing, "can't be read"),
        ] {
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert!(error.to_string().contains(message), "{error}");
            assert!(!format!("{error:?}").contains("ecretecret"));
        }
    }

    #[test]
    fn json_forms() {
        let read = |text| serde_json::from_str::<Secret>(text);
        assert_eq!(read(r#""hunter2""#).unwrap(), Secret::from("hunter2"));
        assert_eq!(read(r#"{"env":"A"}"#).unwrap(), Secret::env("A"));
        for wrong in [r#"{"env":"hunter2","file":"b"}"#, r#"{"hunter2":"b"}"#, "[\"hunter2\"]", "{}"] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains("{ \"file\": PATH }") && !error.contains("hunter2"), "{error}");
        }
        for secret in [Secret::from("hunter2"), Secret::call(|| async { Ok::<_, io::Error>(String::new()) })]
        {
            assert!(!format!("{secret:?}").contains("hunter2"));
            assert_eq!(secret, secret.clone());
        }
        assert_ne!(Secret::env("a"), Secret::from("a"));
    }
}
