//! The connections to one server that all calls share.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::{
    FutureExt,
    future::{self, BoxFuture, select_ok},
};
use tokio::time::Instant;

use super::{
    RedisOptions,
    connection::{Connection, InFlight, Settings},
    stall::STALL,
    target::Target,
};
use crate::{
    Error, ErrorKind, PoolStats, Result,
    backend::remote::{Waiting, pool::RETRY_PAUSE},
};

/// A few connections that all calls share.
///
/// Pipelining on one connection is fastest, so calls use the first connection that is not stalled. A call
/// that finds a dead connection starts a new attempt to open it, and waits for it only if there is no other
/// connection.
pub(super) struct Shared {
    settings: Arc<Settings>,
    target: Arc<Target>,
    /// A connection whose reply is missing for longer than this is closed.
    reply_timeout: Duration,
    /// Empty once it is closed.
    slots: ArcSwap<Vec<Arc<Slot>>>,
    waiting: AtomicU32,
}

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
type Attempt = future::Shared<BoxFuture<'static, Result<()>>>;

impl Slot {
    /// The connection, if it is alive.
    fn live(&self) -> Option<Arc<Connection>> {
        self.connection.load_full().filter(|connection| !connection.is_dead())
    }

    fn dial(&self) -> MutexGuard<'_, Dial> {
        self.dial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    pub(super) fn new(settings: Arc<Settings>, target: Arc<Target>, options: &RedisOptions) -> Self {
        let slots = std::iter::repeat_with(Arc::default).take(options.min_idle.max(1) as usize);
        Self {
            settings,
            target,
            reply_timeout: options.reply_timeout(),
            slots: ArcSwap::from_pointee(slots.collect()),
            waiting: AtomicU32::new(0),
        }
    }

    /// An open connection, if there is one. Starts to open the connections that are missing.
    pub(super) fn ready(&self, now: Instant) -> Option<InFlight> {
        let slots = self.slots.load();
        let mut stalled: Option<Arc<Connection>> = None;
        for slot in slots.iter() {
            let Some(connection) = slot.live() else {
                self.dial_in_background(slot, now);
                continue;
            };
            let silence = connection.stalls().silence(now);
            if silence > self.reply_timeout {
                connection.retire();
                self.dial_in_background(slot, now);
            } else if silence < STALL {
                return Some(connection.begin(now));
            } else {
                stalled.get_or_insert(connection);
            }
        }
        stalled.map(|connection| connection.begin(now))
    }

    /// Waits until a connection is open, or none can be opened.
    pub(super) async fn connection(&self) -> Result<InFlight> {
        let _waiting = Waiting::begin(&self.waiting);
        loop {
            let slots = self.slots.load_full();
            if slots.is_empty() {
                return Err(Error::closed());
            }
            select_ok(slots.iter().map(|slot| self.dial(slot))).await?;
            if let Some(connection) = slots.iter().find_map(|slot| slot.live()) {
                return Ok(connection.begin(Instant::now()));
            }
        }
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
            if let Some(failed) = failed {
                tokio::time::sleep_until(failed + RETRY_PAUSE).await;
            }
            let opened = target.open_shared(&settings).await;
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

    /// Starts to open the connections.
    pub(super) fn warm(&self) {
        self.slots.load().iter().for_each(|slot| drop(self.dial(slot)));
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
