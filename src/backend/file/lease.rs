//! Leases: records of a table of their own, by the clock of the machine, which all processes on it share.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::{File, draft::Draft, held::Held};
use crate::{
    Key, Result,
    capability::Leases,
    model::{Claim, Holder, Lease, LeaseState, check_rest, check_ttl, lost},
};

/// How long an ended lease is remembered, in microseconds. Meanwhile a clock that is set back does not make
/// the numbers smaller.
const LEASE_MEMORY: u64 = 60 * 60 * 1_000_000;

/// The time in microseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// What a claim leads to, apart from the times of the caller's process.
enum Claimed {
    Number(u64),
    Left(Duration),
}

/// Claims the lease for this time in microseconds.
fn claim(draft: &mut Draft<'_>, name: &Key, holder: &Holder, ttl: u64, now: u64) -> Result<Claimed> {
    let number = match draft.lease(name)? {
        Some(held) if now < held.ends && held.holder.as_ref() != Some(holder) => {
            return Ok(Claimed::Left(Duration::from_micros(held.ends - now)));
        }
        Some(held) if now < held.ends => held.number,
        stored => now.max(stored.map_or(0, |held| held.number.saturating_add(1))),
    };
    draft.remove_leases(now.saturating_sub(LEASE_MEMORY), now)?;
    draft.put_lease(name, &Held { holder: Some(holder.clone()), number, ends: now.saturating_add(ttl) })?;
    Ok(Claimed::Number(number))
}

impl Leases for File {
    async fn claim_lease(&self, name: &Key, holder: &Holder, ttl: Duration) -> Result<Claim> {
        let (millis, begin) = (check_ttl(ttl)?, Instant::now());
        let claimed = {
            let (name, holder) = (name.clone(), holder.clone());
            self.write(move |draft| claim(draft, &name, &holder, millis * 1000, now())).await
        };
        Ok(match claimed.map_err(|error| error.with_key(name))? {
            Claimed::Left(left) => Claim::Theirs { left },
            Claimed::Number(number) => {
                let ends = begin + Duration::from_millis(millis);
                Claim::Yours(Lease::new(name.clone(), holder.clone(), number, ends))
            }
        })
    }

    async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<Lease> {
        let (millis, begin) = (check_ttl(ttl)?, Instant::now());
        let renewed = {
            let lease = lease.clone();
            self.write(move |draft| {
                let (name, now) = (lease.name(), now());
                let held = draft.lease(name)?.filter(|held| now < held.ends && held.is(&lease));
                let held = held.ok_or_else(|| lost(name))?;
                draft.put_lease(name, &Held { ends: now.saturating_add(millis * 1000), ..held })
            })
            .await
        };
        renewed.map_err(|error| error.with_key(lease.name()))?;
        let ends = begin + Duration::from_millis(millis);
        Ok(Lease::new(lease.name().clone(), lease.holder().clone(), lease.number(), ends))
    }

    async fn release_lease(&self, lease: &Lease, rest: Duration) -> Result<()> {
        let millis = check_rest(rest)?;
        let released = {
            let lease = lease.clone();
            self.write(move |draft| match draft.lease(lease.name())?.filter(|held| held.is(&lease)) {
                Some(held) => {
                    let ends = now().saturating_add(millis * 1000);
                    draft.put_lease(lease.name(), &Held { holder: None, ends, ..held })
                }
                None => Ok(()),
            })
            .await
        };
        released.map_err(|error| error.with_key(lease.name()))
    }

    async fn list_leases(&self) -> Result<Vec<LeaseState>> {
        self.read(|snapshot| {
            let now = now();
            let leases = snapshot.leases()?.into_iter().flatten().filter_map(|stored| match stored {
                // One that can't be read has ended.
                Ok(stored) => Held::decode(stored.raw_name(), stored.value()).ok().map(Ok),
                Err(error) => Some(Err(error)),
            });
            let held = leases.filter(|lease| !matches!(lease, Ok((_, held)) if held.ends <= now));
            let states = held.map(|lease| {
                let (name, held) = lease?;
                Ok(LeaseState::new(name, held.holder, held.number, Duration::from_micros(held.ends - now)))
            });
            states.collect()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{draft::Memory, engine::tests::Disk},
        *,
    };

    fn key(name: &str) -> Key {
        Key::new(name).unwrap()
    }

    #[test]
    fn numbers_grow_while_the_lease_is_remembered() {
        let engine = Disk::default().store();
        let transaction = engine.begin().unwrap();
        let mut memory = Memory::default();
        let mut draft = Draft::new(&transaction, &mut memory, false).unwrap();
        let (holder, begin, second) = (Holder::random(), 1_000 * LEASE_MEMORY, 1_000_000);
        let claimed =
            |draft: &mut Draft<'_>, name: &str, now| match claim(draft, &key(name), &holder, second, now)
                .unwrap()
            {
                Claimed::Number(number) => (number, draft.lease_count()),
                Claimed::Left(left) => panic!("held for {left:?}"),
            };
        assert_eq!(claimed(&mut draft, "a", begin), (begin, 1));
        assert_eq!(claimed(&mut draft, "a", begin + second), (begin + second, 1));
        assert_eq!(claimed(&mut draft, "b", begin + LEASE_MEMORY), (begin + LEASE_MEMORY, 2));
        let later = begin + 2 * LEASE_MEMORY + 2 * second;
        assert_eq!(claimed(&mut draft, "c", later), (later, 1), "leases that ended an hour ago are removed");
        // It was released after the clock had been set back.
        draft.put_lease(&key("c"), &Held { holder: None, number: later, ends: begin }).unwrap();
        assert_eq!(claimed(&mut draft, "c", begin).0, later + 1);
    }
}
