//! Shared by the backends that talk to a server.

pub(crate) mod audit;
pub(crate) mod batch;
pub(crate) mod call;
pub(crate) mod current;
pub(crate) mod gate;
#[cfg(any(feature = "mongodb", feature = "postgres"))]
pub(crate) mod keyed;
#[cfg(any(feature = "mongodb", feature = "postgres"))]
pub(crate) mod listing;
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) mod pool;
pub(crate) mod queue;
#[cfg(any(feature = "mongodb", feature = "postgres"))]
pub(crate) mod sums;
#[cfg_attr(not(any(feature = "postgres", feature = "redis")), allow(dead_code))]
pub(crate) mod trust;

use std::{
    io,
    sync::atomic::{AtomicU32, Ordering},
};

pub(crate) use crate::layer::{Backoff, later};
use crate::{Error, ErrorKind, Outcome};

/// What `stats` reports about TLS when a local server needs none, and its warning when a remote connection
/// has none.
pub(crate) const ON_THIS_MACHINE: &str = "not needed: on this machine";
pub(crate) const NO_TLS: &str = "no TLS: credentials cross the network unencrypted";

/// Whether a request may change stored data.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    Read,
    Write,
}

impl Effect {
    /// The outcome of a request that was sent and has no reply.
    pub(crate) const fn when_lost(self) -> Outcome {
        match self {
            Self::Read => Outcome::NotApplied,
            Self::Write => Outcome::Unknown,
        }
    }
}

/// The error for a server that can't be reached, with the operating system's error code. No other text of
/// `cause` is quoted.
#[cold]
pub(crate) fn unreachable(server: &str, cause: Option<&io::Error>) -> Error {
    // The standard library has no `io::ErrorKind` for it.
    let is_unresolved = |cause: &io::Error| cause.to_string().starts_with("failed to lookup address");
    match cause.map(|cause| (cause.raw_os_error(), cause)) {
        Some((Some(number), _)) => Error::new(ErrorKind::Unavailable, format!("{server} can't be reached"))
            .with_code(format!("os error {number}"))
            .with_source(io::Error::from_raw_os_error(number)),
        Some((None, cause)) if is_unresolved(cause) => {
            Error::new(ErrorKind::Unavailable, format!("the name of {server} can't be resolved"))
        }
        _ => Error::new(ErrorKind::Unavailable, format!("{server} can't be reached")),
    }
}

/// The error of a plan that could not be applied or rolled back because of other changes until the deadline.
#[cold]
#[cfg(any(feature = "mongodb", feature = "redis"))]
pub(crate) fn busy() -> Error {
    Error::new(
        ErrorKind::Busy,
        "other plans or changes to the configuration were in the way until the deadline",
    )
}

#[cold]
pub(crate) fn deadline_passed() -> Error {
    Error::new(ErrorKind::Timeout, "the deadline passed before the request was sent")
}

#[cold]
pub(crate) fn connection_timeout(server: &str) -> Error {
    Error::new(ErrorKind::Timeout, format!("timed out waiting for a connection to {server}"))
}

#[cold]
pub(crate) fn reply_timeout(server: &str, effect: Effect) -> Error {
    Error::new(ErrorKind::Timeout, format!("timed out waiting for a reply from {server}"))
        .with_outcome(effect.when_lost())
}

/// Counts a call as waiting for a connection until it is dropped.
pub(crate) struct Waiting<'w>(&'w AtomicU32);

impl<'w> Waiting<'w> {
    pub(crate) fn begin(waiting: &'w AtomicU32) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
