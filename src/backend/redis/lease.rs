//! Leases: one script, which compares and writes by the server's clock.

use std::{result::Result as StdResult, time::Duration};

use redis::{Cmd, Value, cmd};
use tokio::time::Instant;

use super::{Redis, error, layout::Space, many::in_chunks, reply};
use crate::{
    Error, ErrorKind, Key, Result,
    backend::remote::Effect,
    capability::Leases,
    model::{Claim, Holder, Lease, LeaseState, check_rest, check_ttl, lost},
};

/// Reads, claims, renews or releases a lease.
///
/// KEYS: the lease. ARGV: the operation, the holder, the time in milliseconds, and the number of the lease.
/// The value is the number, the end in microseconds since 1970, and the holder, which is empty while the
/// lease rests. The key expires an hour after the end: until then numbers grow even if the clock is set back.
///
/// The reply is the number. If the operation changes nothing it is the time that is left, as a status, so
/// that WAIT does not turn it into an unconfirmed write. An error would be counted as one by the server, for
/// each claim of a caller that waits.
const LEASE: &str = "local operation, holder, millis, expected = unpack(ARGV) \
    local time = redis.call('TIME') \
    local now, number, ends, by = time[1] * 1000000 + time[2], 0, 0, '' \
    local stored = redis.call('GET', KEYS[1]) \
    if stored then \
        number, ends, by = string.match(stored, '^(%d+) (%d+) ([!-~]*)$') \
        number, ends = tonumber(number), tonumber(ends) \
        if not number or math.max(number, ends) >= 2^53 then \
            return redis.error_reply('CORRUPT the value is not that of a lease') \
        end \
    end \
    local left = math.max(ends - now, 0) \
    local is_refused = by ~= holder \
    if operation == 'read' then \
        return left > 0 and {number, left, by} \
    elseif operation == 'claim' then \
        is_refused = is_refused and left > 0 \
        if left == 0 then number = math.max(number + 1, now) end \
    else \
        is_refused = is_refused or number ~= tonumber(expected) or operation == 'renew' and left == 0 \
        if operation == 'release' then holder = '' end \
    end \
    if is_refused then return redis.status_reply(string.format('%.0f', left)) end \
    local value = string.format('%.0f %.0f %s', number, now + millis * 1000, holder) \
    redis.call('SET', KEYS[1], value, 'PX', millis + 3600000) \
    return number";

#[cold]
fn corrupt(name: &Key) -> Error {
    Error::new(ErrorKind::Corrupt, "a stored lease can't be read").with_key(name)
}

#[cold]
fn of_lease(error: Error, name: &Key) -> Error {
    if error.code() == Some("CORRUPT") { corrupt(name) } else { error.with_key(name) }
}

impl Redis {
    fn lease(&self, operation: &str, name: &Key) -> Cmd {
        let name = self.layout.name(Space::Lease, name);
        cmd("EVAL").arg(LEASE).arg(1).arg(name).arg(operation).take()
    }

    /// Writes a lease, and returns its number; or the time that is left if nothing was written.
    async fn write_lease(&self, name: &Key, eval: &Cmd) -> Result<StdResult<u64, Duration>> {
        let reply = self.call()?.send(Effect::Write, eval).await.map_err(|error| of_lease(error, name))?;
        let written = match reply {
            Value::Int(number) => u64::try_from(number).ok().map(Ok),
            Value::SimpleString(left) => left.parse().ok().map(|left| Err(Duration::from_micros(left))),
            _ => None,
        };
        written.ok_or_else(|| error::unexpected_reply(Effect::Write).with_key(name))
    }
}

impl Leases for Redis {
    async fn claim_lease(&self, name: &Key, holder: &Holder, ttl: Duration) -> Result<Claim> {
        let (millis, now) = (check_ttl(ttl)?, Instant::now());
        let eval = self.lease("claim", name).arg(holder.as_str()).arg(millis).take();
        let ends = now + Duration::from_millis(millis);
        Ok(match self.write_lease(name, &eval).await? {
            Ok(number) => Claim::Yours(Lease::new(name.clone(), holder.clone(), number, ends)),
            Err(left) => Claim::Theirs { left },
        })
    }

    async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<Lease> {
        let (name, holder) = (lease.name(), lease.holder());
        let (millis, now) = (check_ttl(ttl)?, Instant::now());
        let eval = self.lease("renew", name).arg(holder.as_str()).arg(millis).arg(lease.number()).take();
        let ends = now + Duration::from_millis(millis);
        match self.write_lease(name, &eval).await? {
            Ok(number) => Ok(Lease::new(name.clone(), holder.clone(), number, ends)),
            Err(_) => Err(lost(name)),
        }
    }

    async fn release_lease(&self, lease: &Lease, rest: Duration) -> Result<()> {
        let (name, millis) = (lease.name(), check_rest(rest)?);
        let mut eval = self.lease("release", name);
        eval.arg(lease.holder().as_str()).arg(millis).arg(lease.number());
        self.write_lease(name, &eval).await.map(drop)
    }

    /// Scans the whole database.
    async fn list_leases(&self) -> Result<Vec<LeaseState>> {
        let call = self.call()?;
        let names = self.scan(&call, Space::Lease).await?;
        let states = |chunk: &[Key]| {
            call.send_all(Effect::Read, chunk.iter().map(|name| self.lease("read", name)).collect())
        };
        let replies = in_chunks(&names, |_| 0, states).await;
        let states = names.into_iter().zip(replies).map(|(name, reply)| {
            let reply = reply.map_err(|error| of_lease(error, &name))?;
            state(name, reply)
        });
        states.filter_map(Result::transpose).collect()
    }
}

/// The reply to a read: none if the lease has ended.
fn state(name: Key, reply: Value) -> Result<Option<LeaseState>> {
    if reply == Value::Nil {
        return Ok(None);
    }
    let unexpected = || error::unexpected_reply(Effect::Read);
    let [number, left, holder]: [Value; 3] = reply::list(reply)?.try_into().map_err(|_| unexpected())?;
    let number = u64::try_from(reply::number(number)?).map_err(|_| unexpected())?;
    let left = u64::try_from(reply::number(left)?).map_err(|_| unexpected())?;
    let holder = match &*reply::bytes(holder)?.ok_or_else(unexpected)? {
        [] => None,
        text => Some(std::str::from_utf8(text).ok().and_then(|text| text.parse().ok())),
    };
    let holder = holder.map(|holder| holder.ok_or_else(|| corrupt(&name))).transpose()?;
    Ok(Some(LeaseState::new(name, holder, number, Duration::from_micros(left))))
}
