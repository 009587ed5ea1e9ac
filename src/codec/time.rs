//! Times as text, as RFC 3339 has them: of the years 1970 to 9999.

use std::time::{Duration, SystemTime};

use crate::{Error, ErrorKind, Result};

/// The last second that can be written, since 1970.
pub(crate) const LAST_SECOND: u64 = 253_402_300_799;

/// The last time that can be written.
fn last() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(LAST_SECOND, 999_999_999)
}

/// The nearest time that can be written.
fn clamped(time: SystemTime) -> SystemTime {
    time.clamp(SystemTime::UNIX_EPOCH, last())
}

/// A time that can be written: these milliseconds after 1970.
pub(super) fn at_millis(millis: i64) -> Option<SystemTime> {
    let since = Duration::from_millis(millis.try_into().ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since).filter(|time| *time <= last())
}

/// When an export was made, to the second.
pub(crate) fn created(time: SystemTime) -> Result<SystemTime> {
    if clamped(time) != time {
        let message = "an export is of a time between the years 1970 and 9999";
        return Err(Error::new(ErrorKind::InvalidValue, message));
    }
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()))
}

/// A time to the second. One before 1970, or after 9999, is written as the first, or the last, that there is.
#[must_use]
pub fn rfc3339_seconds(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(clamped(time)).to_string()
}

/// A time to the millisecond; else as [`rfc3339_seconds`].
#[must_use]
pub fn rfc3339_millis(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(clamped(time)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_a_text() {
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
