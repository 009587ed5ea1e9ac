//! Pauses between the attempts of one call.

use std::time::Duration;

use tokio::time::Instant;

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Growing, jittered pauses between attempts, until a deadline.
pub(crate) struct Backoff {
    next: Duration,
    deadline: Instant,
}

impl Backoff {
    pub(crate) fn until(deadline: Instant) -> Self {
        Self { next: FIRST_PAUSE, deadline }
    }

    /// Returns false, without a pause, if the deadline leaves no time for another attempt.
    pub(crate) async fn pause(&mut self) -> bool {
        let end = Instant::now() + jittered(self.next);
        if end >= self.deadline {
            return false;
        }
        tokio::time::sleep_until(end).await;
        self.next = LONGEST_PAUSE.min(self.next * 2);
        true
    }
}

/// A random time between half of the pause and the whole.
pub(crate) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}
