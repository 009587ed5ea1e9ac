//! One absolute deadline, handed down from a layer to all that is inside: [`within`] and [`time_left`].

use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, timeout_at};

use crate::{Error, ErrorKind, Operation, Outcome, Result};

tokio::task_local! {
    /// When the innermost [`within`] ends.
    static UNTIL: Instant;
}

/// Runs what is inside for this time at most, or for what a `within` around it has left. What is inside and begins with
/// [`time_left`] is told of it, and ends a little earlier.
///
/// At the end the future is dropped, and the error is [`ErrorKind::Timeout`]. Its outcome is
/// [what is known of the operation when it is lost](Operation::when_lost).
///
/// The future is asked before the clock: what needs no waiting never comes too late. A task that it spawns is told of nothing:
/// ask for the time before.
pub fn within<T>(
    time: Duration,
    operation: Operation,
    future: impl Future<Output = Result<T>>,
) -> impl Future<Output = Result<T>> {
    let own = later(Instant::now(), time);
    let until = UNTIL.try_with(|outer| own.min(*outer)).unwrap_or(own);
    let when_lost = operation.when_lost;
    // Combinators: an `async` block would hold the future twice.
    timeout_at(until, UNTIL.scope(until, future))
        .map(move |ended| ended.unwrap_or_else(|_| Err(late(when_lost))))
}

/// How long something that begins now may take: a call of a backend that is given this time, a wait in a layer.
///
/// That is its own time, or what the layers around it have left, if that is less. It then is a twentieth less, but 100 ms at most,
/// so that what is inside ends first: it knows best whether anything was done.
///
/// A backend asks once, where the call begins, and before it spawns. The answer is the time itself where no layer has set a
/// deadline, and costs the look at a thread's own variable.
#[must_use]
pub fn time_left(own: Duration) -> Duration {
    let left = |until: &Instant| shortened(until.saturating_duration_since(Instant::now()));
    UNTIL.try_with(|until| own.min(left(until))).unwrap_or(own)
}

/// What is inside has so much of this time.
pub(super) fn shortened(time: Duration) -> Duration {
    time - (time / 20).min(Duration::from_millis(100))
}

/// A deadline that is too far away to be told is as good as one that is very far away.
pub(crate) fn later(now: Instant, duration: Duration) -> Instant {
    now.checked_add(duration).unwrap_or_else(|| now + Duration::from_secs(365 * 24 * 60 * 60))
}

#[cold]
fn late(when_lost: Outcome) -> Error {
    Error::new(ErrorKind::Timeout, "the operation did not end in time").with_outcome(when_lost)
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;
    use crate::OperationKind;

    const WRITE: Operation = Operation::new("write", OperationKind::Write);
    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn the_inner_one_has_what_the_outer_one_leaves() {
        assert_eq!(time_left(SECOND * 9), SECOND * 9);
        assert_eq!(time_left(Duration::MAX), Duration::MAX);
        let inside = async {
            sleep(SECOND).await;
            assert_eq!(time_left(SECOND), SECOND);
            assert_eq!(time_left(SECOND * 9), Duration::from_millis(3_900));
            within(SECOND * 2, WRITE, async {
                assert_eq!(time_left(SECOND * 9), Duration::from_millis(1_900));
                Ok(())
            })
            .await?;
            assert_eq!(time_left(SECOND * 9), Duration::from_millis(3_900), "the outer one's again");
            let elsewhere = tokio::spawn(async { time_left(SECOND * 9) }).await;
            assert_eq!(elsewhere.unwrap(), SECOND * 9, "a task is told of nothing");
            within(Duration::MAX, WRITE, async {
                assert_eq!(
                    time_left(SECOND * 9),
                    Duration::from_millis(3_900),
                    "never more than the outer one's"
                );
                sleep(SECOND * 9).await;
                Ok(())
            })
            .await
        };
        let begun = Instant::now();
        let error = within(SECOND * 5, WRITE, inside).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown));
        assert_eq!(begun.elapsed().as_secs(), 5);
        assert_eq!(time_left(SECOND * 9), SECOND * 9);
    }

    #[tokio::test(start_paused = true)]
    async fn other_calls_of_a_task_are_not_told() {
        let bound = within(SECOND, WRITE, async {
            sleep(SECOND / 2).await;
            Ok(time_left(SECOND * 9))
        });
        let free = async {
            sleep(SECOND / 4).await;
            time_left(SECOND * 9)
        };
        let (bound, free) = tokio::join!(bound, free);
        assert_eq!((bound.unwrap(), free), (Duration::from_millis(475), SECOND * 9));
    }
}
