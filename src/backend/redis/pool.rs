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
    connection::{Connection, InFlight, Settings},
    target::Target,
};
use crate::{Error, ErrorKind, PoolStats, Result, backend::remote::Waiting};

/// A few connections that all calls share.
///
/// Pipelining on one connection is fastest, so calls share the first connection that is not stalled. When a
/// reply takes long (behind a large value), calls are spread for a second, each to the connection with the
/// fewest calls in flight, and while all connections are stalled one more is opened. After a minute without a
/// stall these are closed. A call that finds a dead connection starts a new attempt to open it, and waits for
/// it only if there is no other connection.
pub(super) struct Pool {
    settings: Arc<Settings>,
    target: Arc<Target>,
    /// A connection whose reply is missing for longer than this is closed.
    pub(super) reply_timeout: Duration,
    is_exclusive: bool,
    created: Instant,
    /// Milliseconds since `created`.
    spread_until: AtomicU64,
    slots: ArcSwap<Vec<Arc<Slot>>>,
    /// How many of the slots are in use, and how many always are.
    active: AtomicUsize,
    min: usize,
    /// The end of the last stall, in milliseconds since `created`.
    last_stall: AtomicU64,
    waiting: AtomicU32,
}

/// How calls use the connections of a pool.
#[derive(PartialEq)]
pub(super) enum Sharing {
    /// Many calls pipeline their requests on one connection.
    Shared,
    /// One call per connection, until all connections are in use.
    Exclusive,
}

/// How long calls are spread over all connections after a stall.
const SPREAD_MILLIS: u64 = 1000;

/// The time without a stall after which the connections that were opened for stalls are closed.
const SHRINK_MILLIS: u64 = 60_000;

#[derive(Default)]
struct Slot {
    connection: ArcSwapOption<Connection>,
    dial: Mutex<Dial>,
}

#[derive(Default)]
struct Dial {
    attempt: Option<Attempt>,
    failed: Option<Instant>,
}

/// An attempt to connect, shared by the calls that wait for it. It continues when none of them does any more.
type Attempt = Shared<BoxFuture<'static, Result<()>>>;

/// The pause after a failed attempt. A call that needs a connection waits for the rest of it.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

impl Slot {
    /// The connection, if it is alive.
    fn live(&self) -> Option<Arc<Connection>> {
        self.connection.load_full().filter(|connection| !connection.is_dead())
    }

    /// How many calls use the connection, or wait for it to open.
    fn load(&self) -> usize {
        match self.live() {
            Some(connection) => connection.stalls().in_flight(),
            None => {
                let attempt = self.dial().attempt.as_ref().and_then(Shared::strong_count);
                // One of the handles is the slot's own.
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
        options: &RedisOptions,
        max: u32,
        sharing: Sharing,
    ) -> Result<Self> {
        let slots = slots(&[], max)?;
        let min = (options.min_idle as usize).clamp(1, slots.len());
        Ok(Self {
            settings,
            target: Arc::new(target),
            reply_timeout: options.reply_timeout(),
            is_exclusive: sharing == Sharing::Exclusive,
            created: Instant::now(),
            spread_until: AtomicU64::new(0),
            active: AtomicUsize::new(min),
            min,
            last_stall: AtomicU64::new(0),
            slots: ArcSwap::from_pointee(slots),
            waiting: AtomicU32::new(0),
        })
    }

    /// An open connection, if there is one. Starts to open the connections that are missing.
    pub(super) fn ready(&self, now: Instant) -> Option<InFlight> {
        let slots = self.slots.load();
        let mut active = self.active.load(Ordering::Relaxed).min(slots.len());
        if active > self.min && self.can_shrink(now) {
            active = self.shrink(&slots);
        }
        let spread = self.is_spreading(now);
        let mut least_loaded: Option<Arc<Connection>> = None;
        // Whether all connections are open and stalled. Only then is one more opened.
        let mut all_stalled = true;
        for slot in &slots[..active] {
            let Some(connection) = slot.live() else {
                all_stalled = false;
                self.dial_in_background(slot, now);
                continue;
            };
            let silence = connection.stalls().silence(now);
            if silence > self.reply_timeout {
                all_stalled = false;
                connection.retire();
                self.dial_in_background(slot, now);
                continue;
            }
            let in_flight = connection.stalls().in_flight();
            let is_stalled = silence >= connection.stalls().threshold();
            if !is_stalled && (in_flight == 0 || !spread) {
                return Some(connection.begin(now));
            }
            all_stalled &= is_stalled;
            if least_loaded.as_ref().is_none_or(|least| in_flight < least.stalls().in_flight()) {
                least_loaded = Some(connection);
            }
        }
        if active < slots.len() && (self.is_exclusive || all_stalled) {
            self.grow(active, now);
        }
        // `connection` counts the calls that wait for a connection to open, too.
        if self.is_exclusive {
            return None;
        }
        least_loaded.map(|connection| connection.begin(now))
    }

    fn age(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.created).as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether calls avoid connections that are in use, instead of pipelining on one.
    fn is_spreading(&self, now: Instant) -> bool {
        let age = self.age(now);
        self.is_exclusive || age < self.spread_until.load(Ordering::Relaxed)
    }

    /// A reply took long: other calls on its connection may have waited for it.
    #[cold]
    pub(super) fn note_stall(&self, now: Instant) {
        self.spread_until.store(self.age(now) + SPREAD_MILLIS, Ordering::Relaxed);
        self.last_stall.store(self.age(now), Ordering::Relaxed);
    }

    /// Whether the last stall is long ago. Exclusive calls can need any number of connections at any time.
    fn can_shrink(&self, now: Instant) -> bool {
        !self.is_exclusive
            && self.age(now).saturating_sub(self.last_stall.load(Ordering::Relaxed)) > SHRINK_MILLIS
    }

    /// Gives up all connections but the minimum. They close when their last call ends.
    #[cold]
    fn shrink(&self, slots: &[Arc<Slot>]) -> usize {
        self.active.store(self.min, Ordering::Relaxed);
        let min = self.min.min(slots.len());
        slots[min..].iter().for_each(|slot| slot.connection.store(None));
        min
    }

    #[cold]
    fn grow(&self, active: usize, now: Instant) {
        self.last_stall.store(self.age(now), Ordering::Relaxed);
        let _ = self.active.compare_exchange(active, active + 1, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Waits until a connection is open, or none can be opened.
    pub(super) async fn connection(&self) -> Result<InFlight> {
        let _waiting = Waiting::begin(&self.waiting);
        loop {
            let slots = self.candidates();
            if slots.is_empty() {
                return Err(Error::closed());
            }
            select_ok(slots.iter().map(|slot| self.dial(slot))).await?;
            if let Some(connection) = slots.iter().find_map(|slot| slot.live()) {
                return Ok(connection.begin(Instant::now()));
            }
        }
    }

    /// The slots to wait for: any, or in an exclusive pool the one with the lowest load.
    fn candidates(&self) -> Vec<Arc<Slot>> {
        let slots = self.slots.load();
        let active = self.active.load(Ordering::Relaxed).min(slots.len());
        let slots = &slots[..active];
        if !self.is_exclusive {
            return slots.to_vec();
        }
        slots.iter().min_by_key(|slot| slot.load()).cloned().into_iter().collect()
    }

    fn dial(&self, slot: &Arc<Slot>) -> Attempt {
        let mut dial = slot.dial();
        if let Some(attempt) = &dial.attempt {
            return attempt.clone();
        }
        if slot.live().is_some() {
            return std::future::ready(Ok(())).boxed().shared();
        }
        let (settings, target, slot) = (self.settings.clone(), self.target.clone(), slot.clone());
        let failed = dial.failed;
        let task = tokio::spawn(async move {
            let _end = EndAttempt(&slot);
            // Without a pause a server that refuses connections would be dialed as often as calls are made.
            if let Some(failed) = failed {
                tokio::time::sleep_until(failed + RETRY_PAUSE).await;
            }
            let opened = target.open(&settings).await;
            slot.dial().failed = opened.is_err().then(Instant::now);
            slot.connection.store(Some(Arc::new(opened?)));
            Ok(())
        });
        let joined = |ended: Result<_, _>| ended.unwrap_or_else(|_| Err(interrupted()));
        let attempt = task.map(joined).boxed().shared();
        dial.attempt = Some(attempt.clone());
        attempt
    }

    /// Opens a connection that no call waits for.
    fn dial_in_background(&self, slot: &Arc<Slot>, now: Instant) {
        let failed = slot.dial().failed;
        if failed.is_none_or(|failed| now.saturating_duration_since(failed) > RETRY_PAUSE) {
            drop(self.dial(slot));
        }
    }

    /// Starts to open the minimum number of connections.
    pub(super) fn warm(&self) {
        let slots = self.slots.load();
        for slot in slots.iter().take(self.active.load(Ordering::Relaxed)) {
            drop(self.dial(slot));
        }
    }

    pub(super) fn resize(&self, max: u32) -> Result<()> {
        let slots = slots(&self.slots.load(), max)?;
        self.slots.store(Arc::new(slots));
        Ok(())
    }

    /// Calls in progress finish; later ones find the pool closed.
    pub(super) fn close(&self) {
        self.slots.store(Arc::default());
    }

    pub(super) fn stats(&self) -> PoolStats {
        let slots = self.slots.load();
        let live: Vec<_> = slots.iter().filter_map(|slot| slot.live()).collect();
        let idle = live.iter().filter(|connection| connection.stalls().in_flight() == 0).count();
        PoolStats {
            max: count(slots.len()),
            open: count(live.len()),
            idle: count(idle),
            waiting: self.waiting.load(Ordering::Relaxed),
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// `max` slots, the first of them with the present connections.
fn slots(present: &[Arc<Slot>], max: u32) -> Result<Vec<Arc<Slot>>> {
    if max == 0 || max > MAX_CONNECTIONS {
        return Err(Error::new(ErrorKind::InvalidValue, "a pool must have 1 to 1024 connections"));
    }
    let fresh = std::iter::repeat_with(Arc::default);
    Ok(present.iter().cloned().chain(fresh).take(max as usize).collect())
}

/// Calls share connections, so that a larger number is a mistake.
const MAX_CONNECTIONS: u32 = 1024;

#[cold]
fn interrupted() -> Error {
    Error::new(ErrorKind::Unavailable, "the runtime shut down while a connection was being opened")
}

/// Ends an attempt when it is dropped.
struct EndAttempt<'s>(&'s Slot);

impl Drop for EndAttempt<'_> {
    fn drop(&mut self) {
        self.0.dial().attempt = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shrinks_after_a_minute_without_a_stall() {
        // Without a server: the test checks how many connections the pool would use.
        let options = RedisOptions::new("127.0.0.1:1");
        let settings = Arc::new(Settings::new(&options).await.unwrap());
        let pool = |sharing| {
            let addr = super::super::address::Address::parse(&options.addr, 1).unwrap();
            Pool::new(settings.clone(), Target::Server(addr), &options, 10, sharing).unwrap()
        };
        let (shared, exclusive) = (pool(Sharing::Shared), pool(Sharing::Exclusive));
        let at = |millis| shared.created.max(exclusive.created) + Duration::from_millis(millis);
        let active_at = |pool: &Pool, millis| {
            drop(pool.ready(at(millis)));
            pool.active.load(Ordering::Relaxed)
        };
        for active in 2..6 {
            shared.grow(active, at(1000));
            exclusive.grow(active, at(1000));
        }
        shared.note_stall(at(30_000));
        assert_eq!([active_at(&shared, 61_500), active_at(&shared, 89_000)], [6, 6]);
        assert_eq!(active_at(&shared, 91_000), 2);
        assert!(active_at(&exclusive, 91_000) >= 6);
    }
}
