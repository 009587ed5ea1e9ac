//! Leases.

use std::{collections::BTreeMap, time::Duration};

use gateway_storage::{
    Error, ErrorKind, Key, Result,
    lease::{Claim, Holder, Lease, LeaseState, Leases, MAX_LEASE_TTL},
};
use tokio::time::Instant;

use super::Own;

#[derive(Default)]
pub(super) struct LeaseMap {
    held: BTreeMap<Key, Held>,
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
    /// The leases that are held or rest.
    fn current(&mut self, now: Instant) -> &mut BTreeMap<Key, Held> {
        self.held.retain(|_, held| now < held.ends);
        &mut self.held
    }
}

fn check_time(time: Duration, shortest: Duration) -> Result<()> {
    if (shortest..=MAX_LEASE_TTL).contains(&time) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidValue, "the time of a lease is zero or too long"))
}

const A_MOMENT: Duration = Duration::from_nanos(1);

impl Leases for Own {
    async fn claim_lease(&self, name: &Key, holder: &Holder, ttl: Duration) -> Result<Claim> {
        check_time(ttl, A_MOMENT)?;
        let (now, mut store) = (Instant::now(), self.lock()?);
        let leases = &mut store.leases;
        let number = match leases.current(now).get(name) {
            Some(held) if held.holder.as_ref() != Some(holder) => {
                return Ok(Claim::Theirs { left: held.ends - now });
            }
            Some(held) => held.number,
            None => leases.last_number + 1,
        };
        leases.last_number = leases.last_number.max(number);
        leases.held.insert(name.clone(), Held { holder: Some(holder.clone()), number, ends: now + ttl });
        Ok(Claim::Yours(Lease::new(name.clone(), holder.clone(), number, now + ttl)))
    }

    async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<Lease> {
        check_time(ttl, A_MOMENT)?;
        let (now, mut store) = (Instant::now(), self.lock()?);
        let held = store.leases.current(now).get_mut(lease.name()).filter(|held| held.is(lease));
        let held = held.ok_or_else(|| {
            let error = Error::new(ErrorKind::Conflict, "the lease has ended");
            error.with_retryable(false).with_key(lease.name())
        })?;
        held.ends = now + ttl;
        Ok(Lease::new(lease.name().clone(), lease.holder().clone(), held.number, held.ends))
    }

    async fn release_lease(&self, lease: &Lease, rest: Duration) -> Result<()> {
        check_time(rest, Duration::ZERO)?;
        let (now, mut store) = (Instant::now(), self.lock()?);
        if let Some(held) = store.leases.current(now).get_mut(lease.name()).filter(|held| held.is(lease)) {
            (held.holder, held.ends) = (None, now + rest);
        }
        Ok(())
    }

    async fn list_leases(&self) -> Result<Vec<LeaseState>> {
        let (now, mut store) = (Instant::now(), self.lock()?);
        let leases = store.leases.current(now).iter();
        let states = leases.map(|(name, held)| {
            LeaseState::new(name.clone(), held.holder.clone(), held.number, held.ends - now)
        });
        Ok(states.collect())
    }
}
