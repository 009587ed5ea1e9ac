//! The connections to one server that all calls share.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::{
    FutureExt,
    future::{self, BoxFuture, select_ok},
};
use tokio::time::{Instant, sleep_until};

use super::{
    RedisOptions,
    connection::{Connection, InFlight, Place, STALL, Settings},
    target::Target,
};
use crate::{
    Error, PoolStats, Result,
    backend::remote::{Waiting, pool::RETRY_PAUSE},
};

/// A few connections that all calls share.
///
/// Pipelining on one connection is fastest, so calls use the first connection that is not stalled. A call
/// that finds a dead connection starts a new attempt to open it, and waits for it only if there is no other
/// connection.
pub(super) struct Shared {
    pub(super) settings: Arc<Settings>,
    pub(super) target: Arc<Target>,
    /// Empty once it is closed.
    slots: ArcSwap<Vec<Slot>>,
    waiting: AtomicU32,
}

/// The latest attempt to open a connection.
type Slot = ArcSwapOption<Attempt>;

/// An attempt to connect, shared by the calls that wait for it. It continues when none of them does any more.
/// An error has the time of the failure.
type Attempt = future::Shared<BoxFuture<'static, std::result::Result<Arc<Connection>, (Error, Instant)>>>;

/// The connection, if it is alive.
fn live(slot: &Slot) -> Option<Arc<Connection>> {
    let attempt = slot.load();
    attempt.as_ref()?.peek()?.as_ref().ok().filter(|connection| !connection.is_dead()).cloned()
}

impl Shared {
    pub(super) fn new(settings: &Arc<Settings>, target: &Arc<Target>, options: &RedisOptions) -> Self {
        let slots = std::iter::repeat_with(Slot::default).take(options.min_idle.max(1) as usize);
        let slots = ArcSwap::from_pointee(slots.collect());
        Self { settings: settings.clone(), target: target.clone(), slots, waiting: AtomicU32::new(0) }
    }

    /// An open connection, if there is one. Starts to open the connections that are missing.
    pub(super) fn ready(&self, now: Instant) -> Option<InFlight> {
        let mut stalled = None;
        for slot in self.slots.load().iter() {
            match live(slot) {
                Some(connection) if connection.silence(now) < STALL => return Some(connection.begin(now)),
                Some(connection) => drop(stalled.get_or_insert(connection)),
                None => drop(self.dial(slot)),
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
            let opened = select_ok(slots.iter().map(|slot| self.dial(slot))).await;
            let (connection, _) = opened.map_err(|(error, _)| error)?;
            if !connection.is_dead() {
                return Ok(connection.begin(Instant::now()));
            }
        }
    }

    /// The latest attempt, or a new one if that failed or its connection is dead.
    fn dial(&self, slot: &Slot) -> Attempt {
        let latest = slot.load_full();
        let failed = match latest.as_deref().map(|attempt| (attempt, attempt.peek())) {
            Some((attempt, None)) => return attempt.clone(),
            Some((attempt, Some(Ok(connection)))) if !connection.is_dead() => return attempt.clone(),
            Some((_, Some(Err((_, failed))))) => Some(*failed),
            _ => None,
        };
        let (settings, target) = (self.settings.clone(), self.target.clone());
        let attempt = async move {
            if let Some(failed) = failed {
                sleep_until(failed + RETRY_PAUSE).await;
            }
            let opened = target.open(&settings, true).await;
            opened
                .map(|opened| Arc::new(Connection::new(opened, settings.reply_timeout)))
                .map_err(|error| (error, Instant::now()))
        };
        let attempt = attempt.boxed().shared();
        slot.compare_and_swap(&latest, Some(Arc::new(attempt.clone())));
        // Another call may have been faster.
        let attempt = slot.load_full().map_or(attempt, |attempt| Attempt::clone(&attempt));
        tokio::spawn(attempt.clone());
        attempt
    }

    /// Starts to open the connections.
    pub(super) fn warm(&self) {
        self.slots.load().iter().for_each(|slot| drop(self.dial(slot)));
    }

    /// Gives up the connections that lead elsewhere. Calls in progress finish.
    pub(super) fn leave_others(&self, place: &Place) {
        let slots = self.slots.load();
        let others = slots.iter().filter_map(live).filter(|connection| !connection.leads_to(place));
        others.for_each(|connection| connection.retire());
    }

    /// Calls in progress finish; later ones find the pool closed.
    pub(super) fn close(&self) {
        self.slots.store(Arc::default());
    }

    pub(super) fn stats(&self) -> PoolStats {
        let slots = self.slots.load();
        let live: Vec<_> = slots.iter().filter_map(live).collect();
        PoolStats {
            max: slots.len() as u32,
            open: live.len() as u32,
            idle: live.iter().filter(|connection| connection.is_idle()).count() as u32,
            waiting: self.waiting.load(Ordering::Relaxed),
        }
    }
}
