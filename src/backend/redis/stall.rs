//! Detects stalls: a connection whose replies stop coming.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// Records when replies arrive on one connection. Times are in microseconds since it was opened.
pub(super) struct StallDetector {
    opened: Instant,
    /// The calls that wait for a reply.
    in_flight: AtomicUsize,
    /// Approximately when the last reply arrived, or when the first request in flight was sent.
    progress: AtomicU64,
    /// How long abandoned calls had waited since the last reply, if a reply is still missing. Time in which
    /// no call waited does not count: the request of an abandoned call may never have been sent.
    abandoned_wait: AtomicU64,
}

/// Progress is stored at most this often: storing invalidates the caches of all threads, and loading does
/// not.
const RESOLUTION: Duration = Duration::from_micros(500);

/// A connection on which a reply is missing for this long is avoided while another one has no such stall.
pub(super) const STALL: Duration = Duration::from_millis(10);

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl StallDetector {
    pub(super) fn new(opened: Instant) -> Self {
        Self {
            opened,
            in_flight: AtomicUsize::new(0),
            progress: AtomicU64::new(0),
            abandoned_wait: AtomicU64::new(0),
        }
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.opened)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// How long no reply has arrived, if one is missing.
    pub(super) fn silence(&self, now: Instant) -> Duration {
        match self.in_flight() {
            0 => Duration::from_micros(self.abandoned_wait.load(Ordering::Relaxed)),
            _ => self.since_progress(now),
        }
    }

    fn since_progress(&self, now: Instant) -> Duration {
        self.age(now).saturating_sub(Duration::from_micros(self.progress.load(Ordering::Relaxed)))
    }

    /// A call begins to wait. If it is the only one, the silence continues from that of the abandoned calls.
    pub(super) fn begin(&self, now: Instant) {
        let abandoned = Duration::from_micros(self.abandoned_wait.load(Ordering::Relaxed));
        // Before the call is counted: a thread that sees it in flight also sees when its wait began.
        if self.in_flight() == 0 && self.since_progress(now) > abandoned + RESOLUTION {
            self.progress.store(micros(self.age(now).saturating_sub(abandoned)), Ordering::Relaxed);
        }
        self.in_flight.fetch_add(1, Ordering::AcqRel);
    }

    /// A reply arrived. Replies arrive in order: the requests of abandoned calls have been answered, too.
    pub(super) fn replied(&self, now: Instant) {
        if self.abandoned_wait.load(Ordering::Relaxed) > 0 {
            self.abandoned_wait.store(0, Ordering::Relaxed);
        }
        if self.since_progress(now) > RESOLUTION {
            self.progress.store(micros(self.age(now)), Ordering::Relaxed);
        }
    }

    /// A call was abandoned before its reply arrived.
    pub(super) fn abandon(&self, now: Instant) {
        self.abandoned_wait.store(micros(self.since_progress(now)).max(1), Ordering::Relaxed);
    }

    /// A call no longer waits.
    pub(super) fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detector() -> (StallDetector, impl Fn(u64) -> Instant) {
        let opened = Instant::now();
        (StallDetector::new(opened), move |millis| opened + Duration::from_millis(millis))
    }

    #[test]
    fn simultaneous_calls_after_idle_time_see_no_silence() {
        let (detector, at) = detector();
        detector.begin(at(0));
        detector.replied(at(1));
        detector.end();
        for _ in 0..64 {
            assert_eq!(detector.silence(at(4000)), Duration::ZERO);
        }
        for n in 0..64 {
            detector.begin(at(4000));
            assert_eq!((detector.in_flight(), detector.silence(at(4000))), (n + 1, Duration::ZERO));
        }
        assert!(detector.silence(at(4000 + 15)) > STALL);
        detector.replied(at(4000 + 15));
        assert!(detector.silence(at(4000 + 16)) < STALL, "a reply ends the stall");
    }

    #[test]
    fn an_abandoned_call_and_idle_time_are_no_silence() {
        let (detector, at) = detector();
        detector.begin(at(10));
        detector.abandon(at(10));
        detector.end();
        assert!(detector.silence(at(9000)) < STALL);
        detector.begin(at(9000));
        assert!(detector.silence(at(9000)) < STALL);
    }

    #[test]
    fn the_waits_of_abandoned_calls_add_up() {
        let (detector, at) = detector();
        for call in 0..4 {
            let begun = call * 1000;
            detector.begin(at(begun));
            assert_eq!(detector.silence(at(begun + 300)).as_millis() / 10, u128::from(call + 1) * 30);
            detector.abandon(at(begun + 300));
            detector.end();
        }
        assert!(detector.silence(at(60_000)) >= Duration::from_millis(1190));
        detector.begin(at(60_000));
        detector.replied(at(60_001));
        detector.end();
        assert_eq!(detector.silence(at(60_002)), Duration::ZERO, "one reply ends the silence");
    }
}
