//! The connections to one server.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};

use super::connection::{Connection, Lease, Settings, Target};
use crate::{Error, ErrorKind, PoolStats, Result};

/// A few connections that all calls share: each call takes the less busy of the next two.
///
/// A dead one is opened again by the next call that comes by; the call waits for it only if there is no other. More
/// than the least number are opened when the connections that there are get [`BUSY`].
pub(super) struct Pool {
    settings: Arc<Settings>,
    target: Arc<Target>,
    slots: ArcSwap<Vec<Arc<Slot>>>,
    /// How many of the slots are in use.
    width: AtomicUsize,
    next: AtomicUsize,
    waiting: AtomicUsize,
}

/// As many calls that wait on one connection show that it does not keep up.
const BUSY: usize = 128;

#[derive(Default)]
struct Slot {
    open: ArcSwapOption<Connection>,
    dialing: Mutex<Option<Dialing>>,
}

/// One attempt to connect, for everyone who waits for it. It goes on when nobody does.
type Dialing = Shared<BoxFuture<'static, Result<Arc<Connection>>>>;

impl Slot {
    fn living(&self) -> Option<Arc<Connection>> {
        self.open.load_full().filter(|connection| !connection.is_dead())
    }

    fn dialing(&self) -> MutexGuard<'_, Option<Dialing>> {
        self.dialing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    pub(super) fn new(settings: Arc<Settings>, target: Target, min: u32, max: u32) -> Result<Self> {
        let slots = slots(&[], max)?;
        Ok(Self {
            settings,
            target: Arc::new(target),
            width: AtomicUsize::new((min as usize).clamp(1, slots.len())),
            slots: ArcSwap::from_pointee(slots),
            next: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
        })
    }

    /// A connection, if one is open. Others that should be are opened meanwhile.
    pub(super) fn ready(&self) -> Option<Lease> {
        let slots = self.slots.load();
        let width = self.width.load(Ordering::Relaxed).min(slots.len());
        if width == 0 {
            return None;
        }
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        let (one, other) = (&slots[at % width], &slots[(at + 1) % width]);
        let connection = match (one.living(), other.living()) {
            (Some(one), Some(other)) => {
                let calmer = if other.in_flight() < one.in_flight() { other } else { one };
                if calmer.in_flight() >= BUSY && width < slots.len() {
                    self.widen(width);
                }
                calmer
            }
            (Some(connection), None) => {
                drop(self.dial(other));
                connection
            }
            (None, Some(connection)) => {
                drop(self.dial(one));
                connection
            }
            (None, None) => return None,
        };
        Some(connection.lease())
    }

    #[cold]
    fn widen(&self, width: usize) {
        let _ = self.width.compare_exchange(width, width + 1, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// A connection; waits until one is open, or can't be opened.
    pub(super) async fn connection(&self) -> Result<Lease> {
        let slot = {
            let slots = self.slots.load();
            let width = self.width.load(Ordering::Relaxed).min(slots.len());
            if width == 0 {
                return Err(Error::closed());
            }
            slots[self.next.fetch_add(1, Ordering::Relaxed) % width].clone()
        };
        let _waiting = Waiting::begin(&self.waiting);
        Ok(self.dial(&slot).await?.lease())
    }

    fn dial(&self, slot: &Arc<Slot>) -> Dialing {
        let mut dialing = slot.dialing();
        if let Some(under_way) = dialing.as_ref().filter(|dialing| dialing.peek().is_none()) {
            return under_way.clone();
        }
        if let Some(connection) = slot.living() {
            return std::future::ready(Ok(connection)).boxed().shared();
        }
        let (settings, target, open) = (self.settings.clone(), self.target.clone(), slot.clone());
        let attempt = tokio::spawn(async move {
            let connection = Arc::new(settings.open(&target).await?);
            open.open.store(Some(connection.clone()));
            Ok(connection)
        });
        let ended = |ended: Result<_, _>| ended.unwrap_or_else(|_| Err(interrupted()));
        let attempt = attempt.map(ended).boxed().shared();
        *dialing = Some(attempt.clone());
        attempt
    }

    /// Opens the least number of connections.
    pub(super) fn warm(&self) {
        let slots = self.slots.load();
        for slot in slots.iter().take(self.width.load(Ordering::Relaxed)) {
            if slot.living().is_none() {
                drop(self.dial(slot));
            }
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
        let idle = living.iter().filter(|connection| connection.in_flight() == 0).count();
        PoolStats {
            max: count(slots.len()),
            open: count(living.len()),
            idle: count(idle),
            waiting: count(self.waiting.load(Ordering::Relaxed)),
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

/// Counts a call that waits for a connection, however its wait ends.
struct Waiting<'n>(&'n AtomicUsize);

impl<'n> Waiting<'n> {
    fn begin(waiting: &'n AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
