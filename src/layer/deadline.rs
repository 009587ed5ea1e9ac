//! Passes one deadline from a layer to everything inside it: [`within`] sets it, [`time_left`] reads it.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, timeout_at};

use crate::{Error, ErrorKind, Outcome, Result, layer::Operation};

tokio::task_local! {
    /// The deadline of the innermost [`within`].
    static UNTIL: Instant;
}

/// Runs the future for at most this time, or for the time that an outer `within` has left. Code inside that
/// calls [`time_left`] sees this deadline and ends a little earlier.
///
/// At the deadline the future is dropped, and the error is [`ErrorKind::Timeout`] with the outcome
/// [`Operation::when_lost`].
///
/// The future is polled before the clock is checked, so a future that is ready at once never times out. A
/// task that the future spawns does not see the deadline: call [`time_left`] before spawning.
pub fn within<T>(
    time: Duration,
    operation: Operation,
    future: impl Future<Output = Result<T>>,
) -> impl Future<Output = Result<T>> {
    let own = later(Instant::now(), time);
    let until = UNTIL.try_with(|outer| own.min(*outer)).unwrap_or(own);
    let when_lost = operation.when_lost;
    // Combinators, because an `async` block would store the future twice.
    timeout_at(until, UNTIL.scope(until, future))
        .map(move |ended| ended.unwrap_or_else(|_| Err(late(when_lost))))
}

/// How long a backend's call, or a wait in a layer, may take if it begins now.
///
/// Returns `own`, or the time left until the deadline of the layers around it, if that is less. That time is
/// shortened by a twentieth, at most by 100 ms, so that the inner call, which knows most, ends first.
///
/// A backend asks once, when a call begins and before it spawns a task. Without a deadline from a layer the
/// answer is `own`. It costs one read of a thread-local variable.
#[must_use]
pub fn time_left(own: Duration) -> Duration {
    let left = |until: &Instant| shortened(until.saturating_duration_since(Instant::now()));
    UNTIL.try_with(|until| own.min(left(until))).unwrap_or(own)
}

/// The part of this time that the inner call gets.
pub(super) fn shortened(time: Duration) -> Duration {
    time - (time / 20).min(Duration::from_millis(100))
}

/// Adds the duration. If the sum cannot be represented, returns a point in time a year from now.
pub(crate) fn later(now: Instant, duration: Duration) -> Instant {
    now.checked_add(duration).unwrap_or_else(|| now + Duration::from_secs(365 * 24 * 60 * 60))
}

#[cold]
fn late(when_lost: Outcome) -> Error {
    Error::new(ErrorKind::Timeout, "the operation timed out").with_outcome(when_lost)
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;
    use crate::layer::OperationKind;

    const WRITE: Operation = Operation::new("write", OperationKind::Write);
    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn an_inner_deadline_never_exceeds_the_outer_one() {
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
            assert_eq!(time_left(SECOND * 9), Duration::from_millis(3_900), "the outer deadline again");
            let elsewhere = tokio::spawn(async { time_left(SECOND * 9) }).await;
            assert_eq!(elsewhere.unwrap(), SECOND * 9, "a spawned task sees no deadline");
            within(Duration::MAX, WRITE, async {
                assert_eq!(
                    time_left(SECOND * 9),
                    Duration::from_millis(3_900),
                    "never more than the outer deadline"
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
    async fn other_futures_of_the_task_see_no_deadline() {
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
