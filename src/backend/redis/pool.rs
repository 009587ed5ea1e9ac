//! The connections to one server.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, select_ok},
};
use tokio::time::Instant;

use super::{
    RedisOptions,
    connection::{Connection, Lease, Settings, Target},
};
use crate::{Error, ErrorKind, PoolStats, Result, backend::remote::Waiting};

/// A few connections that all calls share: each takes the first that keeps up.
///
/// Requests that go out together cost the least, so that more connections are no faster. They are for when one is in the
/// way of the others: when a reply was a long time coming (behind a wide value), calls are spread for a while, each to the
/// connection on which the fewest wait, and as long as none keeps up another is opened; after a minute without a stall these
/// are closed. A dead one is opened again by the next call that comes by;
/// the call waits for it only if there is no other.
pub(super) struct Pool {
    settings: Arc<Settings>,
    target: Arc<Target>,
    /// A connection that owes a reply for longer than this is given up.
    patience: Duration,
    /// One call a connection, while there are some.
    alone: bool,
    made: Instant,
    /// In milliseconds since it was made.
    spread_until: AtomicU64,
    slots: ArcSwap<Vec<Arc<Slot>>>,
    /// How many of the slots are in use, and at least are.
    width: AtomicUsize,
    least: usize,
    /// When all connections last kept up again, in milliseconds since it was made.
    calm_since: AtomicU64,
    waiting: AtomicU32,
}

/// How long calls are spread over all connections after that was seen.
const SPREAD_MILLIS: u64 = 1000;

/// How long all connections keep up before those that were opened for a stall are closed.
const CALM_MILLIS: u64 = 60_000;

#[derive(Default)]
struct Slot {
    open: ArcSwapOption<Connection>,
    dial: Mutex<Dial>,
}

#[derive(Default)]
struct Dial {
    under_way: Option<Dialing>,
    failed: Option<Instant>,
}

/// One attempt to connect, for everyone who waits for it. It goes on when nobody does.
type Dialing = Shared<BoxFuture<'static, Result<()>>>;

/// How long after a failure no connection is opened. A call that needs one waits for the rest of that.
const PAUSE: Duration = Duration::from_millis(100);

impl Slot {
    /// Its connection, if that lives.
    fn living(&self) -> Option<Arc<Connection>> {
        self.open.load_full().filter(|connection| !connection.is_dead())
    }

    /// How many calls wait on its connection, or for it.
    fn load(&self) -> usize {
        match self.living() {
            Some(connection) => connection.pulse().in_flight(),
            // The slot has one itself.
            None => {
                let attempt = self.dial().under_way.as_ref().and_then(Shared::strong_count);
                attempt.map_or(0, |handles| handles.saturating_sub(1).max(1))
            }
        }
    }

    fn dial(&self) -> MutexGuard<'_, Dial> {
        self.dial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    pub(super) fn new(
        settings: Arc<Settings>,
        target: Target,
        config: &RedisOptions,
        max: u32,
        alone: bool,
    ) -> Result<Self> {
        let slots = slots(&[], max)?;
        let least = (config.min_idle as usize).clamp(1, slots.len());
        Ok(Self {
            settings,
            target: Arc::new(target),
            patience: config.patience(),
            alone,
            made: Instant::now(),
            spread_until: AtomicU64::new(0),
            width: AtomicUsize::new(least),
            least,
            calm_since: AtomicU64::new(0),
            slots: ArcSwap::from_pointee(slots),
            waiting: AtomicU32::new(0),
        })
    }

    /// A connection, if one is open. Others that should be are opened meanwhile.
    pub(super) fn ready(&self, now: Instant) -> Option<Lease> {
        let slots = self.slots.load();
        let mut width = self.width.load(Ordering::Relaxed).min(slots.len());
        if width > self.least && self.is_calm(now) {
            width = self.narrow(&slots);
        }
        let spread = self.spreads(now);
        let mut calmest: Option<Arc<Connection>> = None;
        // Whether all are open, and none keeps up. One more is opened at a time.
        let mut is_late = true;
        for slot in &slots[..width] {
            let Some(connection) = slot.living() else {
                is_late = false;
                self.dial_meanwhile(slot, now);
                continue;
            };
            let silence = connection.pulse().silence(now);
            if silence > self.patience {
                is_late = false;
                connection.abandon();
                self.dial_meanwhile(slot, now);
                continue;
            }
            let in_flight = connection.pulse().in_flight();
            let keeps_up = silence < connection.pulse().stall();
            if keeps_up && (in_flight == 0 || !spread) {
                return Some(connection.lease(now));
            }
            is_late &= !keeps_up;
            if calmest.as_ref().is_none_or(|calmest| in_flight < calmest.pulse().in_flight()) {
                calmest = Some(connection);
            }
        }
        if width < slots.len() && (self.alone || is_late) {
            self.widen(width, now);
        }
        // Which has the fewest is seen there, also of those that are being opened.
        if self.alone {
            return None;
        }
        calmest.map(|connection| connection.lease(now))
    }

    fn age(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.made).as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether calls keep out of each other's way rather than go out together.
    fn spreads(&self, now: Instant) -> bool {
        let since = self.age(now);
        self.alone || since < self.spread_until.load(Ordering::Relaxed)
    }

    /// A reply was a long time coming: something may be in the way of others on its connection.
    #[cold]
    pub(super) fn note_stall(&self, now: Instant) {
        self.spread_until.store(self.age(now) + SPREAD_MILLIS, Ordering::Relaxed);
        self.calm_since.store(self.age(now), Ordering::Relaxed);
    }

    /// Whether all connections kept up for so long that fewer will do. For calls that are alone any number can be needed again
    /// at once.
    fn is_calm(&self, now: Instant) -> bool {
        !self.alone && self.age(now).saturating_sub(self.calm_since.load(Ordering::Relaxed)) > CALM_MILLIS
    }

    /// Gives up those that are more than the least. They close when the last call over them is done.
    #[cold]
    fn narrow(&self, slots: &[Arc<Slot>]) -> usize {
        self.width.store(self.least, Ordering::Relaxed);
        let least = self.least.min(slots.len());
        slots[least..].iter().for_each(|slot| slot.open.store(None));
        least
    }

    #[cold]
    fn widen(&self, width: usize, now: Instant) {
        self.calm_since.store(self.age(now), Ordering::Relaxed);
        let _ = self.width.compare_exchange(width, width + 1, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// A connection; waits until one is open, or none can be opened.
    pub(super) async fn connection(&self) -> Result<Lease> {
        let _waiting = Waiting::begin(&self.waiting);
        loop {
            let slots = self.wanted();
            if slots.is_empty() {
                return Err(Error::closed());
            }
            select_ok(slots.iter().map(|slot| self.dial(slot))).await?;
            if let Some(connection) = slots.iter().find_map(|slot| slot.living()) {
                return Ok(connection.lease(Instant::now()));
            }
        }
    }

    /// The slots to wait for: any, or for a call that wants to be alone the one for which the fewest wait.
    fn wanted(&self) -> Vec<Arc<Slot>> {
        let slots = self.slots.load();
        let width = self.width.load(Ordering::Relaxed).min(slots.len());
        let slots = &slots[..width];
        if !self.alone {
            return slots.to_vec();
        }
        slots.iter().min_by_key(|slot| slot.load()).cloned().into_iter().collect()
    }

    fn dial(&self, slot: &Arc<Slot>) -> Dialing {
        let mut dial = slot.dial();
        if let Some(under_way) = &dial.under_way {
            return under_way.clone();
        }
        if slot.living().is_some() {
            return std::future::ready(Ok(())).boxed().shared();
        }
        let (settings, target, slot) = (self.settings.clone(), self.target.clone(), slot.clone());
        let failed = dial.failed;
        let attempt = tokio::spawn(async move {
            let _ended = Ended(&slot);
            // A server that refuses is not sent connections as fast as calls come.
            if let Some(failed) = failed {
                tokio::time::sleep_until(failed + PAUSE).await;
            }
            let opened = settings.open(&target).await;
            slot.dial().failed = opened.is_err().then(Instant::now);
            slot.open.store(Some(Arc::new(opened?)));
            Ok(())
        });
        let ended = |ended: Result<_, _>| ended.unwrap_or_else(|_| Err(interrupted()));
        let attempt = attempt.map(ended).boxed().shared();
        dial.under_way = Some(attempt.clone());
        attempt
    }

    /// Opens a connection that nobody waits for.
    fn dial_meanwhile(&self, slot: &Arc<Slot>, now: Instant) {
        let failed = slot.dial().failed;
        if failed.is_none_or(|failed| now.saturating_duration_since(failed) > PAUSE) {
            drop(self.dial(slot));
        }
    }

    /// Opens the least number of connections.
    pub(super) fn warm(&self) {
        let slots = self.slots.load();
        for slot in slots.iter().take(self.width.load(Ordering::Relaxed)) {
            drop(self.dial(slot));
        }
    }

    pub(super) fn resize(&self, max: u32) -> Result<()> {
        let slots = slots(&self.slots.load(), max)?;
        self.slots.store(Arc::new(slots));
        Ok(())
    }

    /// Calls under way finish; later ones find it closed.
    pub(super) fn close(&self) {
        self.slots.store(Arc::default());
    }

    pub(super) fn stats(&self) -> PoolStats {
        let slots = self.slots.load();
        let living: Vec<_> = slots.iter().filter_map(|slot| slot.living()).collect();
        let idle = living.iter().filter(|connection| connection.pulse().in_flight() == 0).count();
        PoolStats {
            max: count(slots.len()),
            open: count(living.len()),
            idle: count(idle),
            waiting: self.waiting.load(Ordering::Relaxed),
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// As many slots, the first of them with the connections that there are.
fn slots(present: &[Arc<Slot>], max: u32) -> Result<Vec<Arc<Slot>>> {
    if max == 0 || max > MAX_CONNECTIONS {
        return Err(Error::new(ErrorKind::InvalidValue, "a pool has 1 to 1024 connections"));
    }
    let fresh = std::iter::repeat_with(Arc::default);
    Ok(present.iter().cloned().chain(fresh).take(max as usize).collect())
}

/// More would only be a mistake: they are shared.
const MAX_CONNECTIONS: u32 = 1024;

#[cold]
fn interrupted() -> Error {
    Error::new(ErrorKind::Unavailable, "the runtime shut down while a connection was opened")
}

/// The end of an attempt, however it comes.
struct Ended<'s>(&'s Slot);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.dial().under_way = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn is_narrow_again_after_a_calm_minute() {
        // No server is there: what counts is how many connections it would use.
        let config = RedisOptions::new("127.0.0.1:1");
        let settings = Arc::new(Settings::new(&config).await.unwrap());
        let pool = |alone| {
            let addr = super::super::connection::Address::parse(&config.addr, 1).unwrap();
            Pool::new(settings.clone(), Target::Server(addr), &config, 10, alone).unwrap()
        };
        let (pool, alone) = (pool(false), pool(true));
        let at = |millis| pool.made.max(alone.made) + Duration::from_millis(millis);
        let width_at = |pool: &Pool, millis| {
            drop(pool.ready(at(millis)));
            pool.width.load(Ordering::Relaxed)
        };
        for width in 2..6 {
            pool.widen(width, at(1000));
            alone.widen(width, at(1000));
        }
        pool.note_stall(at(30_000));
        assert_eq!([width_at(&pool, 61_500), width_at(&pool, 89_000)], [6, 6]);
        assert_eq!(width_at(&pool, 91_000), 2);
        assert!(width_at(&alone, 91_000) >= 6);
    }
}
