//! [`Either`]: a backend that is one of two.

use std::{fmt, future::Future, path::PathBuf};

use futures_util::TryFutureExt;
use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Value};

/// The future or stream of an operation of [`Either`], for `#[capability]`.
#[doc(hidden)]
pub use futures_util::future::Either as Run;

use crate::{
    Error, ErrorKind, Open, Result,
    codec::{Location, from_paths, from_texts},
};

/// A backend that is one of two, decided at run time. It has exactly the capabilities that both have.
///
/// The rest of the program has one type, `Storage<Either<A, B>>`, and calls are dispatched by a branch:
/// nothing is boxed, and a call allocates nothing. More than two nest, which [`one_of!`](crate::one_of)
/// writes: `one_of!(File, Redis, Postgres)` is `Either<File, Either<Redis, Postgres>>`.
///
/// ```
/// use gateway_storage::{File, Memory, Result, Storage, one_of};
///
/// type Backend = one_of!(File, Memory);
///
/// async fn count(storage: &Storage<Backend>) -> Result<i64> {
///     storage.increment_usage("alice", "requests", 1).await
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<()> {
/// let url = "memory:"; // from the application's configuration
/// let storage = Storage::<Backend>::open(url).await?;
/// assert_eq!(count(&storage).await?, 1);
/// # Ok(()) }
/// ```
///
/// A capability that one of the two lacks does not compile, and the message names that one. For an operation
/// that only one has, match the backend: `match storage.backend() { Either::Right(memory) => .., _ => .. }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Either<A, B> {
    /// The first backend.
    Left(A),
    /// The second backend.
    Right(B),
}

/// The type of a backend that is one of several: [`Either`] of the first and the others.
///
/// ```
/// # use gateway_storage::{File, Memory, Storage, one_of};
/// type AnyStorage = Storage<one_of!(File, Memory)>;
/// ```
#[macro_export]
macro_rules! one_of {
    ($last:ty $(,)?) => { $last };
    ($first:ty, $($rest:ty),+ $(,)?) => { $crate::Either<$first, $crate::one_of!($($rest),+)> };
}

/// For `#[capability]`: the transaction of one backend becomes the transaction of [`Either`].
#[doc(hidden)]
pub fn map_ok<T, U>(
    run: impl Future<Output = Result<T>> + Send,
    side: impl FnOnce(T) -> U + Send,
) -> impl Future<Output = Result<U>> + Send {
    run.map_ok(side)
}

/// The options of [`Either`]: those of one of the two backends.
///
/// - A URL names the backend by its [scheme](Open::SCHEMES).
/// - A path is that of the first backend, if it is in a directory: `File` or `Git`.
/// - Deserialized from a string, it is read as a URL. From a map, the field `backend` names the backend
///   (`"file"`, `"redis"`), and the other fields are its options:
///
/// ```
/// # use gateway_storage::{File, Memory, Storage, one_of};
/// use gateway_storage::either::EitherOptions;
///
/// #[derive(serde::Deserialize)]
/// struct Settings {
///     storage: EitherOptions<File, Memory>,
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let settings: Settings = serde_json::from_str(r#"{ "storage": { "backend": "memory" } }"#)?;
/// let storage = Storage::<one_of!(File, Memory)>::open(settings.storage).await?;
/// # storage.close().await?;
/// let settings: Settings = serde_json::from_str(r#"{ "storage": "memory:" }"#)?;
/// # Ok(()) }
/// ```
pub enum EitherOptions<A: Open, B: Open> {
    /// Those of the first backend.
    Left(A::Options),
    /// Those of the second backend.
    Right(B::Options),
}

/// The most schemes that [`Either`] can have.
const MAX_SCHEMES: usize = 64;

const fn join(first: &[&'static str], second: &[&'static str]) -> ([&'static str; MAX_SCHEMES], usize) {
    let (mut joined, mut at) = ([""; MAX_SCHEMES], 0);
    while at < first.len() + second.len() {
        joined[at] = if at < first.len() { first[at] } else { second[at - first.len()] };
        at += 1;
    }
    (joined, at)
}

impl<A: Open, B: Open> Either<A, B> {
    const JOINED: &'static ([&'static str; MAX_SCHEMES], usize) = &join(A::SCHEMES, B::SCHEMES);
}

/// Opens the backend whose [scheme](Open::SCHEMES) the URL has; the first, if both have it.
impl<A: Open, B: Open> Open for Either<A, B> {
    type Options = EitherOptions<A, B>;

    const SCHEMES: &'static [&'static str] = Self::JOINED.0.split_at(Self::JOINED.1).0;

    async fn open(options: EitherOptions<A, B>) -> Result<Self> {
        match options {
            EitherOptions::Left(options) => A::open(options).await.map(Self::Left),
            EitherOptions::Right(options) => B::open(options).await.map(Self::Right),
        }
    }

    fn names() -> Vec<&'static str> {
        let mut names = A::names();
        names.extend(B::names().into_iter().filter(|name| !A::names().contains(name)));
        names
    }

    fn options_of(name: &str, fields: Map<String, Value>) -> Result<EitherOptions<A, B>> {
        if A::names().contains(&name) {
            A::options_of(name, fields).map(EitherOptions::Left)
        } else if B::names().contains(&name) {
            B::options_of(name, fields).map(EitherOptions::Right)
        } else {
            let message = format!("`backend` must be one of {}", Self::names().join(", "));
            Err(Error::new(ErrorKind::InvalidValue, message))
        }
    }
}

impl<A: Open, B: Open> TryFrom<&str> for EitherOptions<A, B> {
    type Error = Error;

    fn try_from(url: &str) -> Result<Self> {
        let location = Location::parse(url, Either::<A, B>::SCHEMES)?;
        if A::SCHEMES.contains(&location.scheme) {
            A::Options::try_from(url).map(Self::Left)
        } else {
            B::Options::try_from(url).map(Self::Right)
        }
    }
}

from_texts!(EitherOptions<A, B>, A: Open, B: Open);
from_paths!(EitherOptions<A, B>, A: Open<Options: From<PathBuf>>, B: Open);

impl<A: Open<Options: From<PathBuf>>, B: Open> EitherOptions<A, B> {
    fn new(path: impl Into<PathBuf>) -> Self {
        Self::Left(path.into().into())
    }
}

impl<'de, A: Open, B: Open> Deserialize<'de> for EitherOptions<A, B> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let options = match Value::deserialize(deserializer)? {
            Value::String(url) => Self::try_from(url.as_str()),
            Value::Object(mut fields) => match fields.remove("backend") {
                Some(Value::String(name)) => Either::<A, B>::options_of(&name, fields),
                _ => return Err(de::Error::custom("the field `backend` must name the backend")),
            },
            _ => return Err(de::Error::custom("the options of a backend must be a URL or a map")),
        };
        options.map_err(de::Error::custom)
    }
}

impl<A: Open<Options: Clone>, B: Open<Options: Clone>> Clone for EitherOptions<A, B> {
    fn clone(&self) -> Self {
        match self {
            Self::Left(options) => Self::Left(options.clone()),
            Self::Right(options) => Self::Right(options.clone()),
        }
    }
}

impl<A: Open<Options: fmt::Debug>, B: Open<Options: fmt::Debug>> fmt::Debug for EitherOptions<A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Left(options) => options.fmt(f),
            Self::Right(options) => options.fmt(f),
        }
    }
}
