//! Commits, sent again while their outcome is unknown, and the pauses between attempts.

use std::time::Duration;

use mongodb::error::{TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT};
use tokio::time::Instant;

use super::{error, session::Session};
use crate::{Outcome, Result, backend::remote::Effect};

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Growing, jittered pauses between attempts, until a deadline.
pub(super) struct Backoff {
    next: Duration,
    deadline: Instant,
}

impl Backoff {
    pub(super) fn until(deadline: Instant) -> Self {
        Self { next: FIRST_PAUSE, deadline }
    }

    /// Returns false, without a pause, if the deadline leaves no time for another attempt.
    pub(super) async fn pause(&mut self) -> bool {
        let end = Instant::now() + self.next.mul_f64(0.5 + fastrand::f64() / 2.0);
        if end >= self.deadline {
            return false;
        }
        tokio::time::sleep_until(end).await;
        self.next = LONGEST_PAUSE.min(self.next * 2);
        true
    }
}

/// Commits a transaction, and sends the commit again while its outcome is unknown.
pub(super) async fn commit(mut session: Session, deadline: Instant) -> Result<()> {
    let mut backoff = Backoff::until(deadline);
    let result = loop {
        let Err(error) = session.driver().commit_transaction().await else { break Ok(()) };
        if !error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT) {
            // Only this label guarantees that nothing was applied.
            let is_aborted = error.contains_label(TRANSIENT_TRANSACTION_ERROR);
            break Err(if is_aborted {
                error::of_statement(&error)
            } else {
                error::of_request(&error, Effect::Write)
            });
        }
        if !backoff.pause().await {
            break Err(error::of_request(&error, Effect::Write).with_outcome(Outcome::Unknown));
        }
    };
    session.end();
    result
}
