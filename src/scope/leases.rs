//! Leases in a scope.

use std::time::Duration;

use super::Scope;
use crate::{
    Key, Result,
    capability::Leases,
    model::{Claim, Holder, Lease, LeaseState},
    wrap::LeasesWrapper,
};

#[deny(clippy::missing_trait_methods)]
impl<B: Leases> LeasesWrapper<B> for Scope {
    async fn claim_lease(&self, inner: &B, name: &Key, holder: &Holder, ttl: Duration) -> Result<Claim> {
        Ok(match self.result(inner.claim_lease(&self.outer(name)?, holder, ttl).await)? {
            Claim::Yours(lease) => Claim::Yours(lease.with_name(name)),
            theirs @ Claim::Theirs { .. } => theirs,
        })
    }

    async fn renew_lease(&self, inner: &B, lease: &Lease, ttl: Duration) -> Result<Lease> {
        let outer = lease.clone().with_name(&self.outer(lease.name())?);
        let renewed = self.result(inner.renew_lease(&outer, ttl).await)?;
        Ok(renewed.with_name(lease.name()))
    }

    async fn release_lease(&self, inner: &B, lease: &Lease, rest: Duration) -> Result<()> {
        let outer = lease.clone().with_name(&self.outer(lease.name())?);
        self.result(inner.release_lease(&outer, rest).await)
    }

    async fn list_leases(&self, inner: &B) -> Result<Vec<LeaseState>> {
        let all = self.result(inner.list_leases().await)?;
        let own = |lease: LeaseState| Some(LeaseState { name: self.inner(&lease.name)?, ..lease });
        Ok(all.into_iter().filter_map(own).collect())
    }
}
