//! What backends whose server is elsewhere have in common.

pub(crate) mod audit;
pub(crate) mod batch;
pub(crate) mod gate;
#[cfg_attr(not(any(feature = "postgres", feature = "redis")), allow(dead_code))]
pub(crate) mod trust;

use std::{
    io,
    sync::atomic::{AtomicU32, Ordering},
};

pub(crate) use crate::layer::later;
use crate::{Error, ErrorKind, Outcome};

/// What the statistics say of TLS where there is none and none is needed; and what an operator is told where one is.
pub(crate) const ON_THIS_MACHINE: &str = "not needed: on this machine";
pub(crate) const NO_TLS: &str = "no TLS: whoever is on the way can read every credential";

/// Whether a request may change something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    Read,
    Write,
}

impl Effect {
    /// What is known of a request that was sent and has no answer.
    pub(crate) const fn when_lost(self) -> Outcome {
        match self {
            Self::Read => Outcome::NotApplied,
            Self::Write => Outcome::Unknown,
        }
    }
}

/// A server, named so, that can't be reached: why, as far as the system says it. Its own texts are not quoted.
#[cold]
pub(crate) fn unreachable(server: &str, cause: Option<&io::Error>) -> Error {
    // The standard library has no kind for it.
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

/// One who waits for a connection, until it is dropped.
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
