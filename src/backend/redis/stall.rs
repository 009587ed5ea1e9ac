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
    /// The shortest time from a request to its reply.
    fastest: AtomicU64,
}

/// Progress is stored at most this often: storing invalidates the caches of all threads, and loading does
/// not.
const RESOLUTION: Duration = Duration::from_micros(500);

/// A reply that arrives within this time is no stall.
const MIN_STALL: Duration = Duration::from_millis(10);

/// A reply that takes less than this many times the time of the fastest reply is no stall either.
const STALL_FACTOR: u32 = 4;

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl StallDetector {
    /// Dialing took at least as long as a reply.
    pub(super) fn new(opened: Instant, dialing: Duration) -> Self {
        Self {
            opened,
            in_flight: AtomicUsize::new(0),
            progress: AtomicU64::new(0),
            abandoned_wait: AtomicU64::new(0),
            fastest: AtomicU64::new(micros(dialing)),
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

    /// The silence from which on the connection is stalled, for example by a large value.
    pub(super) fn threshold(&self) -> Duration {
        let fastest = Duration::from_micros(self.fastest.load(Ordering::Relaxed));
        fastest.saturating_mul(STALL_FACTOR).max(MIN_STALL)
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

    /// A reply to the request sent at `sent` arrived. Returns whether the connection was stalled before.
    pub(super) fn replied(&self, sent: Instant, now: Instant) -> bool {
        // Replies arrive in order: the requests of abandoned calls have been answered, too.
        if self.abandoned_wait.load(Ordering::Relaxed) > 0 {
            self.abandoned_wait.store(0, Ordering::Relaxed);
        }
        let trip = micros(now.saturating_duration_since(sent));
        if trip < self.fastest.load(Ordering::Relaxed) {
            self.fastest.store(trip, Ordering::Relaxed);
        }
        let silence = self.since_progress(now);
        if silence > RESOLUTION {
            self.progress.store(micros(self.age(now)), Ordering::Relaxed);
        }
        silence > self.threshold()
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

    const LOCAL: Duration = Duration::from_millis(1);

    fn detector(dialing: Duration) -> (StallDetector, impl Fn(u64) -> Instant) {
        let opened = Instant::now();
        (StallDetector::new(opened, dialing), move |millis| opened + Duration::from_millis(millis))
    }

    #[test]
    fn simultaneous_calls_after_idle_time_see_no_silence() {
        let (detector, at) = detector(LOCAL);
        detector.begin(at(0));
        assert!(!detector.replied(at(0), at(1)));
        detector.end();
        for _ in 0..64 {
            assert_eq!(detector.silence(at(4000)), Duration::ZERO);
        }
        for n in 0..64 {
            detector.begin(at(4000));
            assert_eq!((detector.in_flight(), detector.silence(at(4000))), (n + 1, Duration::ZERO));
        }
        assert!(!detector.replied(at(4000), at(4001)), "idle time is no stall");
    }

    #[test]
    fn an_abandoned_call_and_idle_time_are_no_silence() {
        let (detector, at) = detector(LOCAL);
        detector.begin(at(10));
        detector.abandon(at(10));
        detector.end();
        assert!(detector.silence(at(9000)) < detector.threshold());
        detector.begin(at(9000));
        assert!(detector.silence(at(9000)) < detector.threshold());
        assert!(!detector.replied(at(9000), at(9001)));
    }

    #[test]
    fn the_waits_of_abandoned_calls_add_up() {
        let (detector, at) = detector(LOCAL);
        for call in 0..4 {
            let begun = call * 1000;
            detector.begin(at(begun));
            assert_eq!(detector.silence(at(begun + 300)).as_millis() / 10, u128::from(call + 1) * 30);
            detector.abandon(at(begun + 300));
            detector.end();
        }
        assert!(detector.silence(at(60_000)) >= Duration::from_millis(1190));
        detector.begin(at(60_000));
        assert!(detector.replied(at(60_000), at(60_001)));
        detector.end();
        assert_eq!(detector.silence(at(60_002)), Duration::ZERO, "one reply ends the silence");
    }

    #[test]
    fn a_stall_is_longer_than_a_round_trip() {
        let (detector, at) = detector(Duration::from_millis(70));
        for call in 0..3 {
            detector.begin(at(call * 100));
            assert!(!detector.replied(at(call * 100), at(call * 100 + 30)), "a slow network is no stall");
            detector.end();
        }
        assert_eq!(detector.threshold(), Duration::from_millis(120));
        detector.begin(at(1000));
        assert!(detector.replied(at(1000), at(1130)));
    }
}
