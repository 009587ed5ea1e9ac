//! What is known of the replies of one connection.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// Whether a connection brings replies, and how fast. Times are in microseconds since it was opened.
pub(super) struct Pulse {
    opened: Instant,
    /// How many calls wait. Who only looks is none of them.
    in_flight: AtomicUsize,
    /// About when a reply last came, or the first of those in flight was sent.
    progress: AtomicU64,
    /// How long calls that were given up had waited since the last reply, if it owes one. Time in which none waited does not
    /// count: a call that was dropped may never have been sent.
    owed: AtomicU64,
    /// The least time from a request to its reply.
    quickest: AtomicU64,
}

/// Progress is not noted more often than this: a note is seen by all threads, which costs more than reading one.
const GRAIN: Duration = Duration::from_micros(500);

/// A reply that comes within this time was never in the way of others.
const LEAST_STALL: Duration = Duration::from_millis(10);

/// Nor was one that took less than so many times the quickest.
const ROUND_TRIPS: u32 = 4;

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Pulse {
    /// Opening took at least as long as a reply.
    pub(super) fn new(opened: Instant, dialed: Duration) -> Self {
        Self {
            opened,
            in_flight: AtomicUsize::new(0),
            progress: AtomicU64::new(0),
            owed: AtomicU64::new(0),
            quickest: AtomicU64::new(micros(dialed)),
        }
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.opened)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// How long it has brought no reply, if it owes one.
    pub(super) fn silence(&self, now: Instant) -> Duration {
        match self.in_flight() {
            0 => Duration::from_micros(self.owed.load(Ordering::Relaxed)),
            _ => self.since_progress(now),
        }
    }

    /// A silence of this length means that it does not keep up: a wide value is in the way.
    pub(super) fn stall(&self) -> Duration {
        let quickest = Duration::from_micros(self.quickest.load(Ordering::Relaxed));
        quickest.saturating_mul(ROUND_TRIPS).max(LEAST_STALL)
    }

    fn since_progress(&self, now: Instant) -> Duration {
        self.age(now).saturating_sub(Duration::from_micros(self.progress.load(Ordering::Relaxed)))
    }

    /// A call begins to wait. If no other does, the silence goes on from where it was.
    pub(super) fn begin(&self, now: Instant) {
        let owed = Duration::from_micros(self.owed.load(Ordering::Relaxed));
        // Noted before the call counts: who sees it in flight sees when its wait began.
        if self.in_flight() == 0 && self.since_progress(now) > owed + GRAIN {
            self.progress.store(micros(self.age(now).saturating_sub(owed)), Ordering::Relaxed);
        }
        self.in_flight.fetch_add(1, Ordering::AcqRel);
    }

    /// A reply to what was sent then came. Says whether it was a long time coming.
    pub(super) fn replied(&self, sent: Instant, now: Instant) -> bool {
        // Replies come in order: what was given up before is answered, too.
        if self.owed.load(Ordering::Relaxed) > 0 {
            self.owed.store(0, Ordering::Relaxed);
        }
        let trip = micros(now.saturating_duration_since(sent));
        if trip < self.quickest.load(Ordering::Relaxed) {
            self.quickest.store(trip, Ordering::Relaxed);
        }
        let silence = self.since_progress(now);
        if silence > GRAIN {
            self.progress.store(micros(self.age(now)), Ordering::Relaxed);
        }
        silence > self.stall()
    }

    /// A call is given up without a reply.
    pub(super) fn give_up(&self, now: Instant) {
        self.owed.store(micros(self.since_progress(now)).max(1), Ordering::Relaxed);
    }

    /// A call waits no more.
    pub(super) fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: Duration = Duration::from_millis(1);

    fn pulse(dialed: Duration) -> (Pulse, impl Fn(u64) -> Instant) {
        let opened = Instant::now();
        (Pulse::new(opened, dialed), move |millis| opened + Duration::from_millis(millis))
    }

    #[test]
    fn calls_that_come_at_once_after_a_quiet_time_see_no_silence() {
        let (pulse, at) = pulse(LOCAL);
        pulse.begin(at(0));
        assert!(!pulse.replied(at(0), at(1)));
        pulse.end();
        for _ in 0..64 {
            assert_eq!(pulse.silence(at(4000)), Duration::ZERO);
        }
        for n in 0..64 {
            pulse.begin(at(4000));
            assert_eq!((pulse.in_flight(), pulse.silence(at(4000))), (n + 1, Duration::ZERO));
        }
        assert!(!pulse.replied(at(4000), at(4001)), "the quiet time is no stall");
    }

    #[test]
    fn a_dropped_call_and_a_quiet_time_are_no_silence() {
        let (pulse, at) = pulse(LOCAL);
        pulse.begin(at(10));
        pulse.give_up(at(10));
        pulse.end();
        assert!(pulse.silence(at(9000)) < pulse.stall());
        pulse.begin(at(9000));
        assert!(pulse.silence(at(9000)) < pulse.stall());
        assert!(!pulse.replied(at(9000), at(9001)));
    }

    #[test]
    fn short_calls_that_wait_in_vain_add_up() {
        let (pulse, at) = pulse(LOCAL);
        for call in 0..4 {
            let begun = call * 1000;
            pulse.begin(at(begun));
            assert_eq!(pulse.silence(at(begun + 300)).as_millis() / 10, u128::from(call + 1) * 30);
            pulse.give_up(at(begun + 300));
            pulse.end();
        }
        assert!(pulse.silence(at(60_000)) >= Duration::from_millis(1190));
        pulse.begin(at(60_000));
        assert!(pulse.replied(at(60_000), at(60_001)));
        pulse.end();
        assert_eq!(pulse.silence(at(60_002)), Duration::ZERO, "one reply settles all");
    }

    #[test]
    fn a_stall_is_longer_than_round_trips_are() {
        let (pulse, at) = pulse(Duration::from_millis(70));
        for call in 0..3 {
            pulse.begin(at(call * 100));
            assert!(!pulse.replied(at(call * 100), at(call * 100 + 30)), "a slow network is no stall");
            pulse.end();
        }
        assert_eq!(pulse.stall(), Duration::from_millis(120));
        pulse.begin(at(1000));
        assert!(pulse.replied(at(1000), at(1130)));
    }
}
