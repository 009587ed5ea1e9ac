//! [`Leases`]: one of many processes does something, for a while.

use std::time::Duration;

use crate::{
    Backend, Key, Result, capability,
    model::{Claim, Holder, Lease, LeaseState},
};

/// Leases: rights that one holder at a time has, and that end by themselves.
///
/// A lease has a name of its own: that of a credential's lease can be the credential's, or any other. All
/// times are by the server's clock; `File` uses that of the machine.
///
/// A lease makes it rare that two processes do the same, and can't prevent it: a holder that is paused for
/// longer than its lease goes on without it. So protect what must be right by something else, too, for
/// example by [`Conditional`](crate::revision::Conditional), or by the lease's [number](Lease::number). On
/// `Redis`, a failover loses the leases that the new master did not have yet.
#[capability(wrapper = LeasesWrapper)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no leases",
    note = "backends with leases: `File`, `Memory`, `MongoDb`, `Postgres`, `Redis`; keep leases in one of these beside it"
)]
pub trait Leases: Backend {
    /// Claims the lease for this time.
    ///
    /// - [`Claim::Yours`] if no holder has it: it was never claimed, has ended or was released, and its rest
    ///   is over. Its number is greater than all earlier ones of this name.
    /// - The same holder again has the lease for this time from now on, with the same number. So a claim with
    ///   an [`Unknown`](crate::Outcome::Unknown) outcome can be repeated.
    /// - [`Claim::Theirs`], with the time that is left, if another holder has it or it rests. Nothing is
    ///   changed then.
    /// - [`InvalidValue`](crate::ErrorKind::InvalidValue) unless `ttl` is more than zero and at most
    ///   [`MAX_LEASE_TTL`](crate::lease::MAX_LEASE_TTL).
    #[operation(write, replayable)]
    fn claim_lease(
        &self,
        name: &Key,
        holder: &Holder,
        ttl: Duration,
    ) -> impl Future<Output = Result<Claim>> + Send;

    /// Makes the lease end this time from now, which may be earlier than before.
    ///
    /// - [`Conflict`](crate::ErrorKind::Conflict), not [retryable](crate::Error::is_retryable), if it has
    ///   ended or was released, even if no other holder has it.
    /// - [`InvalidValue`](crate::ErrorKind::InvalidValue) as for a claim.
    #[operation(write, replayable)]
    fn renew_lease(&self, lease: &Lease, ttl: Duration) -> impl Future<Output = Result<Lease>> + Send;

    /// Ends the lease. Then it rests: no holder can claim it for this time. A rest is a pause after a
    /// failure, or the rest of the day after a daily job.
    ///
    /// - If another holder has the lease, or it was released before, nothing is changed, and the result is
    ///   `Ok`.
    /// - [`InvalidValue`](crate::ErrorKind::InvalidValue) if the rest is longer than
    ///   [`MAX_LEASE_TTL`](crate::lease::MAX_LEASE_TTL).
    #[operation(write, replayable)]
    fn release_lease(&self, lease: &Lease, rest: Duration) -> impl Future<Output = Result<()>> + Send;

    /// Lists the leases that are held or rest, in the order of their names.
    ///
    /// - A lease that has ended or was released without a rest is not in the list.
    #[operation(read)]
    fn list_leases(&self) -> impl Future<Output = Result<Vec<LeaseState>>> + Send;
}
