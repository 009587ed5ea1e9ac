//! `Leases` for `Broken`, with its faults.

use std::{sync::PoisonError, time::Duration};

use gateway_storage::{
    Error, ErrorKind, Key, Result,
    lease::{Claim, Holder, Lease, LeaseState, Leases, MAX_LEASE_TTL},
};
use tokio::time::Instant;

use super::{Broken, Fault::*};

/// The same lease with another number.
fn numbered(lease: &Lease, number: u64) -> Lease {
    let ends = Instant::now() + lease.time_left();
    Lease::new(lease.name().clone(), lease.holder().clone(), number, ends)
}

impl Broken {
    /// The last lease of this name, as its holder got it.
    fn last_lease(&self, name: &Key) -> Option<Lease> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn was_last(&self, lease: &Lease) -> bool {
        let last = self.last_lease(lease.name());
        last.is_some_and(|last| last.holder() == lease.holder() && last.number() == lease.number())
    }

    fn note_lease(&self, lease: &Lease) {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        leases.insert(lease.name().clone(), lease.clone());
    }

    async fn state_of(&self, name: &Key) -> Result<Option<LeaseState>> {
        Ok(self.memory.list_leases().await?.into_iter().find(|state| state.name == *name))
    }

    /// The lease that the store has, for a holder that this backend does not look at.
    async fn current(&self, lease: &Lease) -> Result<Lease> {
        let state = self.state_of(lease.name()).await?;
        let current = state.and_then(|state| {
            let is_own = state.holder.as_ref() == Some(lease.holder());
            let holder = state.holder.filter(|_| is_own || self.has(ReleaseIsBlind))?;
            Some(Lease::new(state.name, holder, state.number, Instant::now() + state.left))
        });
        Ok(current.unwrap_or_else(|| lease.clone()))
    }

    fn time(&self, ttl: Duration) -> Duration {
        match self.fault {
            ZeroIsALease => ttl.max(Duration::from_millis(1)),
            TooLongIsALease => ttl.min(MAX_LEASE_TTL),
            LeaseNeverEnds if !ttl.is_zero() && ttl < Duration::from_millis(200) => Duration::from_secs(3600),
            LeaseEndsEarly => ttl / 2,
            _ => ttl,
        }
    }

    /// The lease as its holder gets it, which had asked for this time.
    fn answered(&self, lease: Lease, ttl: Duration) -> Lease {
        match self.fault {
            NumberIsOne => numbered(&lease, 1),
            LeaseEndsEarly | LeaseNeverEnds => {
                Lease::new(lease.name().clone(), lease.holder().clone(), lease.number(), Instant::now() + ttl)
            }
            _ => lease,
        }
    }
}

impl Leases for Broken {
    async fn claim_lease(&self, name: &Key, holder: &Holder, ttl: Duration) -> Result<Claim> {
        let now = self.time(ttl);
        let state = self.state_of(name).await?;
        if self.has(ClaimIsRacy) {
            tokio::task::yield_now().await;
        }
        let last = self.last_lease(name);
        let last = last.as_ref().map(Lease::holder);
        match (self.fault, &state) {
            (ClaimForgetsHolder, Some(state)) => return Ok(Claim::Theirs { left: state.left }),
            (ClaimKeepsEnd, Some(state)) if state.holder.as_ref() == Some(holder) => {
                let ends = Instant::now() + ttl;
                return Ok(Claim::Yours(Lease::new(name.clone(), holder.clone(), state.number, ends)));
            }
            (RestIsForOthers, Some(state)) if state.holder.is_none() && last == Some(holder) => {
                let ends = Instant::now() + ttl;
                let lease = Lease::new(name.clone(), holder.clone(), state.number + 1, ends);
                return Ok(Claim::Yours(lease));
            }
            _ => {}
        }
        match self.memory.claim_lease(name, holder, now).await? {
            Claim::Yours(lease) => {
                let lease = match &state {
                    Some(state) if self.has(ClaimRenumbers) && state.holder.is_some() => {
                        numbered(&lease, state.number + 1)
                    }
                    _ => self.answered(lease, ttl),
                };
                self.note_lease(&lease);
                Ok(Claim::Yours(lease))
            }
            Claim::Theirs { left } => match self.fault {
                LeaseHasManyHolders => {
                    Ok(Claim::Yours(Lease::new(name.clone(), holder.clone(), 1, Instant::now() + ttl)))
                }
                ClaimIsRacy if state.is_none() => {
                    Ok(Claim::Yours(Lease::new(name.clone(), holder.clone(), 1, Instant::now() + ttl)))
                }
                LeftIsNothing => Ok(Claim::Theirs { left: Duration::ZERO }),
                _ => Ok(Claim::Theirs { left }),
            },
        }
    }

    async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<Lease> {
        let time = self.time(ttl);
        let mut asked = match self.fault {
            RenewIgnoresNumber => self.current(lease).await?,
            _ => lease.clone(),
        };
        if self.has(NumberIsOne) {
            asked = self.current(lease).await?;
        }
        let state = self.state_of(lease.name()).await?;
        let time = match state {
            Some(state) if self.has(RenewOnlyExtends) => time.max(state.left),
            _ => time,
        };
        match self.memory.renew_lease(&asked, time).await {
            Ok(renewed) if self.has(RenewRenumbers) => Ok(numbered(&renewed, renewed.number() + 1)),
            Ok(renewed) => Ok(self.answered(renewed, ttl)),
            Err(error) if error.kind() == ErrorKind::Conflict => match self.fault {
                LostIsRetryable => Err(error.with_retryable(true)),
                RenewClaims => match self.memory.claim_lease(lease.name(), lease.holder(), ttl).await? {
                    Claim::Yours(lease) => Ok(lease),
                    Claim::Theirs { .. } => Err(error),
                },
                _ => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    async fn release_lease(&self, lease: &Lease, rest: Duration) -> Result<()> {
        let state = self.state_of(lease.name()).await?;
        let rest = if self.has(NeverRests) { Duration::ZERO } else { rest };
        let is_released = state.as_ref().is_none_or(|state| state.holder.is_none());
        match self.fault {
            SecondReleaseFails if is_released => Err(Error::new(ErrorKind::Conflict, "not yours")),
            SecondReleaseRests if state.is_none() && self.was_last(lease) => {
                self.memory.claim_lease(lease.name(), lease.holder(), Duration::from_secs(1)).await?;
                let claimed = self.state_of(lease.name()).await?;
                let number = claimed.map_or(0, |state| state.number);
                self.memory.release_lease(&numbered(lease, number), rest).await
            }
            ReleaseIsBlind | ReleaseIgnoresNumber | NumberIsOne => {
                self.memory.release_lease(&self.current(lease).await?, rest).await
            }
            _ => self.memory.release_lease(lease, rest).await,
        }
    }

    async fn list_leases(&self) -> Result<Vec<LeaseState>> {
        let mut states = self.memory.list_leases().await?;
        match self.fault {
            ListOmitsRests => states.retain(|state| state.holder.is_some()),
            ListNamesRests => {
                for state in &mut states {
                    if state.holder.is_none() {
                        state.holder = self.last_lease(&state.name).map(|lease| lease.holder().clone());
                    }
                }
            }
            LeasesAreUnsorted => states.reverse(),
            NumberIsOne => states.iter_mut().for_each(|state| state.number = 1),
            _ => {}
        }
        Ok(states)
    }
}
