//! One call of an operation.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::{
    deadline_passed,
    gate::{Entry, Gate},
    later,
};
use crate::{Error, Result, layer::time_left};

/// A call of an operation. It has a deadline, and closing the store waits for it.
pub(crate) struct Call<'s, S> {
    pub(crate) server: &'s S,
    pub(crate) deadline: Instant,
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    request_timeout: Duration,
    _entry: Entry<'s>,
}

impl<'s, S> Call<'s, S> {
    pub(crate) fn begin(server: &'s S, calls: &'s Gate, deadline: Duration) -> Result<Self> {
        let (_entry, request_timeout) = (calls.enter()?, time_left(deadline));
        Ok(Self { server, deadline: later(Instant::now(), request_timeout), request_timeout, _entry })
    }

    /// A call without a deadline as a whole; each of its requests has one.
    #[cfg(feature = "redis")]
    pub(crate) fn begin_long(server: &'s S, calls: &'s Gate, request_timeout: Duration) -> Result<Self> {
        let (_entry, deadline) = (calls.enter()?, later(Instant::now(), Duration::MAX));
        Ok(Self { server, deadline, request_timeout, _entry })
    }

    /// When a request that begins now must have ended.
    #[cfg(feature = "redis")]
    pub(crate) fn request_deadline(&self, now: Instant) -> Instant {
        self.deadline.min(later(now, self.request_timeout))
    }

    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Waits for a step of the call until the deadline. Once that has passed, no step begins.
    pub(crate) async fn wait<T>(
        &self,
        step: impl Future<Output = Result<T>>,
        late: impl FnOnce() -> Error,
    ) -> Result<T> {
        if self.is_over() {
            return Err(deadline_passed());
        }
        timeout_at(self.deadline, step).await.unwrap_or_else(|_| Err(late()))
    }
}
