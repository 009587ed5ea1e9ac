//! Times as RFC 3339 text, between the years 1970 and 9999.

use std::time::{Duration, SystemTime};

use serde::Serializer;

use crate::{Error, ErrorKind, Result};

/// The last second of the year 9999, since 1970.
pub(crate) const LAST_SECOND: u64 = 253_402_300_799;

/// The last time that can be formatted.
fn last() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(LAST_SECOND, 999_999_999)
}

/// The nearest time that can be formatted.
fn clamped(time: SystemTime) -> SystemTime {
    time.clamp(SystemTime::UNIX_EPOCH, last())
}

/// The time this many milliseconds after 1970, if it can be formatted.
pub(crate) fn at_millis(millis: i64) -> Option<SystemTime> {
    let since = Duration::from_millis(millis.try_into().ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since).filter(|time| *time <= last())
}

/// The time of an export, in whole seconds.
pub(crate) fn created(time: SystemTime) -> Result<SystemTime> {
    if clamped(time) != time {
        let message = "the time of an export must be between the years 1970 and 9999";
        return Err(Error::new(ErrorKind::InvalidValue, message));
    }
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()))
}

/// Formats a time to the second. A time before 1970 or after 9999 is formatted as the first or last second
/// between them.
#[must_use]
pub fn rfc3339_seconds(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(clamped(time)).to_string()
}

/// Formats a time to the millisecond, otherwise as [`rfc3339_seconds`].
#[must_use]
pub fn rfc3339_millis(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(clamped(time)).to_string()
}

/// Serializes a time in RFC 3339, to the second.
pub(crate) fn seconds<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339_seconds(*time))
}

/// Serializes a time in RFC 3339, to the millisecond.
pub(crate) fn millis<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339_millis(*time))
}

/// Serializes a duration that was measured, in seconds.
pub(crate) fn as_seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

/// A duration in whole milliseconds.
pub(crate) fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Serializes a time that is left, in whole milliseconds.
pub(crate) fn as_millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(whole_millis(*duration))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_can_be_formatted() {
        let epoch = SystemTime::UNIX_EPOCH;
        let second = Duration::from_secs(1);
        for (time, seconds, millis) in [
            (epoch, "1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000Z"),
            (epoch - second, "1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000Z"),
            (last(), "9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999Z"),
            (last() + second, "9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999Z"),
            (epoch + Duration::from_secs(1 << 60), "9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!((&*rfc3339_seconds(time), &*rfc3339_millis(time)), (seconds, millis));
        }
    }
}
