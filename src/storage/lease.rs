//! Leases: claims, waiting for one, and keeping one.

use std::{borrow::Borrow, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use crate::{
    Error, ErrorKind, IntoKey, Result, Storage,
    capability::Leases,
    layer::jittered,
    model::{Claim, Holder, Lease, LeaseState, lost},
};

/// The longest pause between two claims while another holder has the lease.
const CLAIM_PAUSE: Duration = Duration::from_millis(150);

/// A lease is renewed after this part of its time. After an error there is time for more attempts.
const RENEW_PART: u32 = 3;

/// The pause before a failed renewal is repeated, as a part of the lease's time.
const RETRY_PART: u32 = 30;

/// Leases. See [`Leases`].
impl<B> Storage<B> {
    /// Claims a lease for this time. See [`Leases::claim_lease`].
    ///
    /// ```
    /// # use gateway_storage::{Memory, Storage, lease::{Claim, Holder}};
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
    /// let storage = Storage::<Memory>::open("memory:").await?;
    /// let day = Duration::from_secs(24 * 60 * 60);
    /// // On one of many replicas, once a day:
    /// match storage.claim_lease("report", &Holder::random(), Duration::from_secs(60)).await? {
    ///     Claim::Yours(lease) => {
    ///         // .. write the report ..
    ///         storage.release_lease(&lease, day).await?;
    ///     }
    ///     Claim::Theirs { left } => println!("done, or being done; again in {left:?}"),
    /// }
    /// # Ok(()) }
    /// ```
    pub fn claim_lease(
        &self,
        name: impl IntoKey,
        holder: &Holder,
        ttl: Duration,
    ) -> impl Future<Output = Result<Claim>> + Send
    where
        B: Leases,
    {
        async move { self.backend().claim_lease(name.into_key()?.borrow(), holder, ttl).await }
    }

    /// Renews a lease. See [`Leases::renew_lease`].
    pub async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<Lease>
    where
        B: Leases,
    {
        self.backend().renew_lease(lease, ttl).await
    }

    /// Ends a lease, which then rests for this time. See [`Leases::release_lease`].
    pub async fn release_lease(&self, lease: &Lease, rest: Duration) -> Result<()>
    where
        B: Leases,
    {
        self.backend().release_lease(lease, rest).await
    }

    /// Lists the leases that are held or rest. See [`Leases::list_leases`].
    pub async fn list_leases(&self) -> Result<Vec<LeaseState>>
    where
        B: Leases,
    {
        self.backend().list_leases().await
    }

    /// Claims a lease until it is the caller's, at most for `wait`. Waiting callers have no order. Returns
    /// the last answer.
    ///
    /// # Cancellation
    ///
    /// A caller that is dropped may have got the lease, which then ends after `ttl`.
    pub fn wait_for_lease(
        &self,
        name: impl IntoKey,
        holder: &Holder,
        ttl: Duration,
        wait: Duration,
    ) -> impl Future<Output = Result<Claim>> + Send
    where
        B: Leases,
    {
        async move {
            let (name, begin) = (name.into_key()?, Instant::now());
            loop {
                let claim = self.backend().claim_lease(name.borrow(), holder, ttl).await?;
                let Claim::Theirs { left } = claim else { return Ok(claim) };
                let rest = wait.saturating_sub(begin.elapsed());
                if rest.is_zero() {
                    return Ok(claim);
                }
                // It may be released before its time is over.
                sleep(left.min(rest).min(jittered(CLAIM_PAUSE))).await;
            }
        }
    }

    /// Renews a lease each third of its time, and returns once it is lost, with the reason. Run it beside
    /// what the lease protects, and drop it at the end:
    ///
    /// ```
    /// # use gateway_storage::{Error, Memory, Result, Storage, lease::{Claim, Holder}};
    /// # use std::time::Duration;
    /// # async fn work() -> Result<()> { Ok(()) }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<()> {
    /// let storage = Storage::<Memory>::open("memory:").await?;
    /// let (ttl, wait) = (Duration::from_secs(30), Duration::from_secs(60));
    /// let claim = storage.wait_for_lease("migration", &Holder::random(), ttl, wait).await?;
    /// if let Claim::Yours(lease) = claim {
    ///     tokio::select! {
    ///         done = work() => done?,
    ///         lost = storage.keep_lease(&lease, ttl) => return Err(lost),
    ///     }
    ///     storage.release_lease(&lease, Duration::ZERO).await?;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// A renewal that fails because of the server or the network is repeated until the lease has ended.
    pub fn keep_lease(&self, lease: &Lease, ttl: Duration) -> impl Future<Output = Error> + Send
    where
        B: Leases,
    {
        async move {
            let mut kept = lease.clone();
            let mut pause = ttl.min(kept.time_left()) / RENEW_PART;
            loop {
                sleep(pause).await;
                let left = kept.time_left();
                let renewed = timeout(left, self.backend().renew_lease(&kept, ttl)).await;
                match renewed.unwrap_or_else(|_| Err(lost(lease.name()))) {
                    Ok(renewed) => {
                        pause = ttl.min(renewed.time_left()) / RENEW_PART;
                        kept = renewed;
                    }
                    Err(error) if is_final(error.kind()) || kept.time_left().is_zero() => return error,
                    Err(_) => pause = (ttl / RETRY_PART).min(kept.time_left()),
                }
            }
        }
    }
}

/// Whether a repeated renewal would fail again.
fn is_final(kind: ErrorKind) -> bool {
    !matches!(kind, ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Busy)
}
