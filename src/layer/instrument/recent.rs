//! Performance of the last minute.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use crate::{Performance, layer::OperationKind};

/// A minute of slots and two more, so that no slot is cleared while it may still be written or read.
const SLOTS: u64 = 8;
const SLOT: Duration = Duration::from_secs(10);
const SHOWN: u64 = 6;

/// Counts without a lock. A count may go to the neighbouring slot, and none is lost.
pub(super) struct Recent {
    begun: Instant,
    /// The wall-clock time of [`begun`](Recent::begun).
    begun_at: SystemTime,
    /// The number of the current slot, which only grows.
    current: AtomicU64,
    advancing: Mutex<()>,
    slots: [Slot; SLOTS as usize],
    /// When an operation was last timed, in nanoseconds since `begun`. 0 is never.
    last: AtomicU64,
}

#[derive(Default)]
struct Slot {
    calls: AtomicU64,
    errors: AtomicU64,
    reads: Latency,
    writes: Latency,
}

#[derive(Default)]
struct Latency {
    count: AtomicU64,
    nanos: AtomicU64,
}

impl Latency {
    fn add(&self, elapsed: Duration) {
        self.count.fetch_add(1, Relaxed);
        self.nanos.fetch_add(elapsed.as_nanos() as u64, Relaxed);
    }

    fn clear(&self) {
        self.count.store(0, Relaxed);
        self.nanos.store(0, Relaxed);
    }
}

impl Recent {
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            begun_at: SystemTime::now(),
            current: AtomicU64::new(0),
            advancing: Mutex::new(()),
            slots: Default::default(),
            last: AtomicU64::new(0),
        }
    }

    fn slot(&self) -> &Slot {
        &self.slots[(self.current.load(Relaxed) % SLOTS) as usize]
    }

    /// Counts one operation. Returns the number of operations before it in this slot.
    #[inline]
    pub(super) fn count(&self) -> u64 {
        self.slot().calls.fetch_add(1, Relaxed)
    }

    /// Counts an error.
    #[cold]
    pub(super) fn fail(&self) {
        // Without a subscriber or recorder few calls are timed, and only those advance the slot.
        let before = self.current.load(Relaxed);
        if self.advance(Instant::now()) != before {
            self.slot().calls.fetch_add(1, Relaxed);
        }
        self.slot().errors.fetch_add(1, Relaxed);
    }

    /// Adds a timed operation that ended at `now`.
    pub(super) fn measure(&self, now: Instant, kind: OperationKind, elapsed: Duration) {
        self.advance(now);
        self.last.store(now.duration_since(self.begun).as_nanos() as u64, Relaxed);
        match kind {
            OperationKind::Read => self.slot().reads.add(elapsed),
            OperationKind::Write => self.slot().writes.add(elapsed),
            OperationKind::Control => {}
        }
    }

    /// Advances to the slot of this time, and returns the current slot's number.
    fn advance(&self, now: Instant) -> u64 {
        let number = now.duration_since(self.begun).as_secs() / SLOT.as_secs();
        // A thread that arrives while another thread advances counts in the old slot.
        if self.current.load(Relaxed) < number
            && let Ok(_advancing) = self.advancing.try_lock()
        {
            let before = self.current.load(Relaxed);
            for passed in (before + 1..=number).rev().take(SLOTS as usize) {
                let Slot { calls, errors, reads, writes } = &self.slots[(passed % SLOTS) as usize];
                calls.store(0, Relaxed);
                errors.store(0, Relaxed);
                reads.clear();
                writes.clear();
            }
            self.current.store(number.max(before), Relaxed);
        }
        self.current.load(Relaxed)
    }

    pub(super) fn performance(&self) -> Performance {
        self.performance_at(Instant::now())
    }

    fn performance_at(&self, now: Instant) -> Performance {
        let current = self.advance(now);
        let shown = || {
            let first = (current + 1).saturating_sub(SHOWN);
            (first..=current).map(|number| &self.slots[(number % SLOTS) as usize])
        };
        let sum = |of: fn(&Slot) -> &AtomicU64| shown().map(|slot| of(slot).load(Relaxed)).sum::<u64>();
        let average =
            |nanos: u64, count: u64| (count > 0).then(|| Duration::from_nanos(nanos / count.max(1)));
        let since = SLOT * u32::try_from((current + 1).saturating_sub(SHOWN)).unwrap_or(u32::MAX);
        let covered = now.duration_since(self.begun).saturating_sub(since).as_secs_f64();
        let (calls, errors, last) =
            (sum(|slot| &slot.calls), sum(|slot| &slot.errors), self.last.load(Relaxed));
        Performance {
            average_read_latency: average(sum(|slot| &slot.reads.nanos), sum(|slot| &slot.reads.count)),
            average_write_latency: average(sum(|slot| &slot.writes.nanos), sum(|slot| &slot.writes.count)),
            operations_per_second: if covered > 0.0 { calls as f64 / covered } else { 0.0 },
            error_rate: if calls > 0 { errors as f64 / calls as f64 } else { 0.0 },
            last_measurement: (last > 0).then(|| self.begun_at + Duration::from_nanos(last)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_the_last_minute_and_no_more() {
        let recent = Recent::new();
        let at = |seconds| recent.begun + Duration::from_secs(seconds);
        assert_eq!(recent.performance_at(at(0)).last_measurement, None);
        for second in 0..100 {
            // Ten operations per second: reads take 1 ms until second 90, then 3 ms.
            let latency = Duration::from_millis(if second < 90 { 1 } else { 3 });
            for _ in 0..9 {
                recent.count();
                recent.measure(at(second), OperationKind::Read, latency);
            }
            recent.count();
            recent.measure(at(second), OperationKind::Write, Duration::from_millis(7));
            recent.fail();
        }
        let shown = recent.performance_at(at(100));
        assert_eq!(shown.average_write_latency, Some(Duration::from_millis(7)));
        let read = shown.average_read_latency.unwrap();
        assert!((Duration::from_micros(1200)..Duration::from_micros(1600)).contains(&read), "{read:?}");
        assert!((9.0..12.5).contains(&shown.operations_per_second), "{}", shown.operations_per_second);
        assert!((0.09..0.11).contains(&shown.error_rate), "{}", shown.error_rate);
        assert_eq!(shown.last_measurement, Some(recent.begun_at + Duration::from_secs(99)));

        let later = recent.performance_at(at(1_000));
        assert_eq!(
            (later.average_read_latency, later.operations_per_second, later.error_rate),
            (None, 0.0, 0.0)
        );
        assert_eq!(later.last_measurement, shown.last_measurement);
        assert_eq!(recent.count(), 0, "a new slot: its first call is timed");
    }

    #[test]
    fn no_count_is_lost() {
        let recent = Recent::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..10_000 {
                        recent.count();
                        recent.measure(
                            recent.begun + Duration::from_millis(5 * n),
                            OperationKind::Read,
                            SLOT,
                        );
                    }
                });
            }
        });
        let shown = recent.performance_at(recent.begun + Duration::from_secs(50));
        assert!(
            (shown.operations_per_second * 50.0 - 40_000.0).abs() < 0.5,
            "{}",
            shown.operations_per_second * 50.0
        );
    }
}
