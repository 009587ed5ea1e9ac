//! [`Lease`] and [`Holder`]: the right to do something alone for a while.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    str::FromStr,
    time::Duration,
};

use serde::{Serialize, Serializer};
use tokio::time::Instant;

use super::time;
use crate::{Error, ErrorKind, Key, Result};

/// The longest time to live of a lease, and the longest rest after one: 31 days.
pub const MAX_LEASE_TTL: Duration = Duration::from_secs(31 * 24 * 60 * 60);

/// The longest text of a [`Holder`], in bytes.
pub const MAX_HOLDER_BYTES: usize = 128;

/// Names one attempt to get a lease: 1 to 128 printable characters of ASCII.
///
/// Make a new one for each attempt, and send the same one when a claim is repeated. So a claim whose reply
/// was lost is found again, and no other task of the process takes the lease for its own. It is not a secret:
/// [`list_leases`](crate::lease::Leases::list_leases) shows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Holder(String);

impl Holder {
    /// A new name: 32 random hexadecimal digits.
    #[must_use]
    pub fn random() -> Self {
        // Each `RandomState` has its own keys, which the system's random numbers begin.
        let [high, low] = [(); 2].map(|()| RandomState::new().hash_one(()));
        Self(format!("{high:016x}{low:016x}"))
    }

    /// A new name that begins with a label, for example that of the host, and a slash.
    ///
    /// # Errors
    ///
    /// [`InvalidValue`](ErrorKind::InvalidValue) if the label is too long or has other characters than
    /// printable ones of ASCII.
    pub fn labelled(label: &str) -> Result<Self> {
        format!("{label}/{}", Self::random()).parse()
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Holder {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if (1..=MAX_HOLDER_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(Self(text.to_owned()));
        }
        let message = "the holder of a lease must be 1 to 128 printable characters of ASCII, without spaces";
        Err(Error::new(ErrorKind::InvalidValue, message))
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A lease that was claimed, and may have ended since. As JSON it is a [`LeaseState`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    name: Key,
    holder: Holder,
    number: u64,
    ends: Instant,
}

impl Lease {
    /// A lease that ends then, for a backend. `ends` is counted from before the claim was sent.
    #[must_use]
    pub const fn new(name: Key, holder: Holder, number: u64, ends: Instant) -> Self {
        Self { name, holder, number, ends }
    }

    /// The same lease under another name, for a backend that stores it under that name.
    #[must_use]
    pub fn with_name(self, name: &Key) -> Self {
        Self { name: name.clone(), ..self }
    }

    /// What is leased.
    #[must_use]
    pub const fn name(&self) -> &Key {
        &self.name
    }

    /// The attempt that holds it.
    #[must_use]
    pub const fn holder(&self) -> &Holder {
        &self.holder
    }

    /// The number of this lease, which is greater than that of each earlier lease of the same name. A
    /// resource that remembers the greatest number can refuse a holder whose lease has ended.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// The time that it is held at least, by the clock of this process. Zero: it may be another's now.
    ///
    /// A process that is suspended does not notice: ask again after each pause.
    #[must_use]
    pub fn time_left(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }
}

impl Serialize for Lease {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let holder = Some(self.holder.clone());
        LeaseState::new(self.name.clone(), holder, self.number, self.time_left()).serialize(serializer)
    }
}

/// The result of a claim. As JSON it is `{ "yours": {..} }` or `{ "theirs": { "left_ms": 250 } }`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Claim {
    /// The lease is the caller's.
    Yours(Lease),
    /// It is another holder's, or it rests.
    Theirs {
        /// The time after which it can be claimed, unless it is renewed.
        #[serde(rename = "left_ms", serialize_with = "time::as_millis")]
        left: Duration,
    },
}

/// A lease as the store has it. As JSON it is
/// `{ "name": "nightly", "holder": "web-1/..", "number": 7, "left_ms": 250 }`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LeaseState {
    /// What is leased.
    pub name: Key,
    /// The attempt that holds it. None: it was released, and rests.
    pub holder: Option<Holder>,
    /// See [`Lease::number`].
    pub number: u64,
    /// The time after which it can be claimed.
    #[serde(rename = "left_ms", serialize_with = "time::as_millis")]
    pub left: Duration,
}

impl LeaseState {
    /// A lease, for a backend.
    #[must_use]
    pub const fn new(name: Key, holder: Option<Holder>, number: u64, left: Duration) -> Self {
        Self { name, holder, number, left }
    }
}

/// Checks a time to live, and returns it in milliseconds, rounded up.
pub(crate) fn check_ttl(ttl: Duration) -> Result<u64> {
    if ttl.is_zero() {
        return Err(Error::new(ErrorKind::InvalidValue, "a lease's time to live must be more than zero"));
    }
    check_rest(ttl)
}

/// Checks a rest, and returns it in milliseconds, rounded up.
pub(crate) fn check_rest(rest: Duration) -> Result<u64> {
    if rest > MAX_LEASE_TTL {
        let message = "the time to live of a lease and the rest after it must be at most 31 days";
        return Err(Error::new(ErrorKind::InvalidValue, message));
    }
    Ok(u64::try_from(rest.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX))
}

/// The error of a renewal that came too late: [`Conflict`](ErrorKind::Conflict), which is not retryable.
#[cold]
pub(crate) fn lost(name: &Key) -> Error {
    let message = "the lease has ended, so another process may have it: stop what it protects";
    Error::new(ErrorKind::Conflict, message).with_retryable(false).with_key(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_are_printable_and_differ() {
        let labelled = Holder::labelled("web-1:77").unwrap();
        assert!(
            labelled.as_str().starts_with("web-1:77/") && labelled != Holder::labelled("web-1:77").unwrap()
        );
        assert_eq!(Holder::random().as_str().len(), 32);
        assert_eq!(labelled.to_string().parse::<Holder>().unwrap(), labelled);
        for wrong in ["", "a b", "é", "a\n", &"x".repeat(129)] {
            assert_eq!(wrong.parse::<Holder>().unwrap_err().kind(), ErrorKind::InvalidValue, "{wrong:?}");
        }
        assert!(Holder::labelled(&"x".repeat(96)).is_err() && Holder::labelled(&"x".repeat(95)).is_ok());
    }

    #[test]
    fn times_are_limited_and_rounded_up() {
        assert_eq!(check_ttl(Duration::from_nanos(1)).unwrap(), 1);
        assert_eq!(check_rest(Duration::ZERO).unwrap(), 0);
        assert!(check_ttl(Duration::ZERO).is_err() && check_ttl(MAX_LEASE_TTL).is_ok());
        assert!(check_rest(MAX_LEASE_TTL + Duration::from_millis(1)).is_err());
    }
}
