//! Leases: one row each. A claim, a renewal and a release are one statement.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::Instant;
use tokio_postgres::Row;

use super::{
    Postgres,
    server::Call,
    statement::{Parameter, Reply, Sql, column, key},
};
use crate::{
    Error, ErrorKind, Key, Result,
    backend::remote::{Backoff, Effect},
    capability::Leases,
    model::{Claim, Holder, Lease, LeaseState, check_rest, check_ttl, lost},
};

/// The first claim of a handle, and then one of this many, also forgets leases that ended an hour ago.
const CLAIMS_PER_CLEANUP: u32 = 64;

/// The number of ended leases that it forgets at most: more than were claimed since the last time.
const MAX_FORGOTTEN: i64 = 1000;

/// A number of milliseconds that was checked.
fn millis(millis: u64) -> Parameter<'static> {
    Parameter::Number(i64::try_from(millis).unwrap_or(i64::MAX))
}

/// Runs a statement. Also returns the instant before it was sent.
async fn run(call: &Call<'_>, statement: Sql, parameters: &[Parameter<'_>]) -> Result<(Reply, Instant)> {
    let mut connection = call.connection().await?;
    let sent_at = Instant::now();
    let reply = call.run_on(&mut connection, Effect::Write, statement, parameters).await?;
    Ok((reply, sent_at))
}

impl Postgres {
    /// Changes the row of this lease. None: it has another holder or number, or does not meet the statement's
    /// condition.
    async fn change(&self, lease: &Lease, statement: Sql, time: u64) -> Result<Option<Instant>> {
        // No stored number is larger.
        let Ok(number) = i64::try_from(lease.number()) else { return Ok(None) };
        let (name, holder) = (lease.name(), lease.holder());
        let parameters = [
            Parameter::Text(name.as_str()),
            Parameter::Text(holder.as_str()),
            Parameter::Number(number),
            millis(time),
        ];
        let changed = run(&self.call()?, statement, &parameters).await;
        let (reply, sent_at) = changed.map_err(|error| error.with_key(name))?;
        Ok((reply.count > 0).then_some(sent_at))
    }
}

async fn claim(call: &Call<'_>, name: &Key, holder: &Holder, ttl: u64) -> Result<Claim> {
    let (claims, mut backoff) = (&call.server.claims, Backoff::until(call.deadline));
    loop {
        let cleans_up = claims.load(Ordering::Relaxed).is_multiple_of(CLAIMS_PER_CLEANUP);
        let parameters = [
            Parameter::Text(name.as_str()),
            Parameter::Text(holder.as_str()),
            millis(ttl),
            Parameter::Number(if cleans_up { MAX_FORGOTTEN } else { 0 }),
        ];
        let (reply, sent_at) =
            run(call, Sql::ClaimLease, &parameters).await.map_err(|error| match error.code() {
                // The next number is out of range.
                Some("22003") => corrupt(),
                _ => error,
            })?;
        if let Some(row) = reply.rows.first() {
            if column::<Option<f64>>(row, 1)?.is_some() {
                return Ok(Claim::Theirs { left: left(row, 1)? });
            }
            claims.fetch_add(1, Ordering::Relaxed);
            let (number, ends) = (number(row, 0)?, sent_at + Duration::from_millis(ttl));
            return Ok(Claim::Yours(Lease::new(name.clone(), holder.clone(), number, ends)));
        }
        // Another caller claimed it at the same time. The next statement sees that claim.
        if !backoff.pause().await {
            return Err(Error::new(
                ErrorKind::Busy,
                "other claims of the lease were in the way until the deadline",
            ));
        }
    }
}

impl Leases for Postgres {
    async fn claim_lease(&self, name: &Key, holder: &Holder, ttl: Duration) -> Result<Claim> {
        let (ttl, call) = (check_ttl(ttl)?, self.call()?);
        claim(&call, name, holder, ttl).await.map_err(|error| error.with_key(name))
    }

    async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<Lease> {
        let ttl = check_ttl(ttl)?;
        let renewed = self.change(lease, Sql::RenewLease, ttl).await?;
        let sent_at = renewed.ok_or_else(|| lost(lease.name()))?;
        let ends = sent_at + Duration::from_millis(ttl);
        Ok(Lease::new(lease.name().clone(), lease.holder().clone(), lease.number(), ends))
    }

    async fn release_lease(&self, lease: &Lease, rest: Duration) -> Result<()> {
        self.change(lease, Sql::ReleaseLease, check_rest(rest)?).await.map(drop)
    }

    async fn list_leases(&self) -> Result<Vec<LeaseState>> {
        let reply = self.call()?.run(Effect::Read, Sql::ListLeases, &[]).await?;
        reply.rows.iter().map(state).collect()
    }
}

fn state(row: &Row) -> Result<LeaseState> {
    let name = key(row, 0)?;
    let state = || {
        let holder = column::<Option<&str>>(row, 1)?.map(str::parse).transpose().map_err(|_| corrupt())?;
        Ok(LeaseState::new(name.clone(), holder, number(row, 2)?, left(row, 3)?))
    };
    state().map_err(|error: Error| error.with_key(&name))
}

fn number(row: &Row, at: usize) -> Result<u64> {
    column::<Option<i64>>(row, at)?.and_then(|number| number.try_into().ok()).ok_or_else(corrupt)
}

/// The time that is left. It was computed a little after it was found to be positive.
fn left(row: &Row, at: usize) -> Result<Duration> {
    Duration::try_from_secs_f64(column::<f64>(row, at)?.max(0.0)).map_err(|_| corrupt())
}

/// A row of another program.
#[cold]
fn corrupt() -> Error {
    Error::new(ErrorKind::Corrupt, "the stored lease can't be read")
}
