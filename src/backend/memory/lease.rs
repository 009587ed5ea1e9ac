//! Leases: a map, by Tokio's clock, so that an application's test can pause it.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::Memory;
use crate::{
    Key, Result,
    capability::Leases,
    model::{Claim, Holder, Lease, LeaseState, check_rest, check_ttl, lost},
};

#[derive(Default)]
pub(super) struct LeaseMap {
    leases: BTreeMap<Key, Held>,
    /// The number of the last lease of any name.
    last_number: u64,
}

struct Held {
    /// None: it rests.
    holder: Option<Holder>,
    number: u64,
    ends: Instant,
}

impl Held {
    fn is(&self, lease: &Lease) -> bool {
        self.holder.as_ref() == Some(lease.holder()) && self.number == lease.number()
    }
}

impl LeaseMap {
    /// The leases that have not ended.
    fn current(&mut self, now: Instant) -> &mut BTreeMap<Key, Held> {
        self.leases.retain(|_, held| now < held.ends);
        &mut self.leases
    }
}

impl Leases for Memory {
    async fn claim_lease(&self, name: &Key, holder: &Holder, ttl: Duration) -> Result<Claim> {
        let (ttl, now) = (Duration::from_millis(check_ttl(ttl)?), Instant::now());
        self.lock(|store| {
            let current = store.leases.current(now).get(name);
            let number = match current {
                Some(held) if held.holder.as_ref() != Some(holder) => {
                    return Ok(Claim::Theirs { left: held.ends - now });
                }
                Some(held) => held.number,
                None => {
                    store.leases.last_number += 1;
                    store.leases.last_number
                }
            };
            let held = Held { holder: Some(holder.clone()), number, ends: now + ttl };
            store.leases.leases.insert(name.clone(), held);
            Ok(Claim::Yours(Lease::new(name.clone(), holder.clone(), number, now + ttl)))
        })
    }

    async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<Lease> {
        let (ttl, now) = (Duration::from_millis(check_ttl(ttl)?), Instant::now());
        self.lock(|store| {
            let held = store.leases.current(now).get_mut(lease.name()).filter(|held| held.is(lease));
            let held = held.ok_or_else(|| lost(lease.name()))?;
            held.ends = now + ttl;
            Ok(Lease::new(lease.name().clone(), lease.holder().clone(), held.number, held.ends))
        })
    }

    async fn release_lease(&self, lease: &Lease, rest: Duration) -> Result<()> {
        let (rest, now) = (Duration::from_millis(check_rest(rest)?), Instant::now());
        self.lock(|store| {
            if let Some(held) = store.leases.leases.get_mut(lease.name()).filter(|held| held.is(lease)) {
                (held.holder, held.ends) = (None, now + rest);
            }
            Ok(())
        })
    }

    async fn list_leases(&self) -> Result<Vec<LeaseState>> {
        let now = Instant::now();
        self.lock(|store| {
            let current = store.leases.current(now).iter();
            let states = current.map(|(name, held)| {
                LeaseState::new(name.clone(), held.holder.clone(), held.number, held.ends - now)
            });
            Ok(states.collect())
        })
    }
}
