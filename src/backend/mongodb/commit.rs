//! Commits, sent again while their outcome is unknown.

use mongodb::error::{TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT};
use tokio::time::Instant;

use super::{error, session::Session};
use crate::{
    Outcome, Result,
    backend::remote::{Backoff, Effect},
};

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
