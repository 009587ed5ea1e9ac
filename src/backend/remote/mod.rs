//! What backends whose server is elsewhere have in common.

pub(crate) mod audit;
pub(crate) mod batch;
pub(crate) mod gate;

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use crate::Outcome;

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

/// A deadline that is too far away to be told is as good as one that is very far away.
pub(crate) fn later(now: Instant, duration: Duration) -> Instant {
    now.checked_add(duration).unwrap_or_else(|| now + Duration::from_secs(365 * 24 * 60 * 60))
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
