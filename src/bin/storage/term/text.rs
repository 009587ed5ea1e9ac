//! Numbers, statistics and names as text.

use std::time::{Duration, UNIX_EPOCH};

use gateway_storage::{StorageStats, adopt::Remark, rfc3339_seconds};
use serde_json::Value;

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 key`, `1,234 keys`.
pub(crate) fn several(number: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// The time that is left of something, rounded up: `450ms`, `29s`, `23h 59m`.
pub(crate) fn time_left(left: Duration) -> String {
    let millis = left.as_nanos().div_ceil(1_000_000);
    let unit = match millis {
        0..1_000 => 1,
        1_000..3_600_000 => 1_000,
        _ => 60_000,
    };
    let rounded = u64::try_from(millis.div_ceil(unit) * unit).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(rounded)).to_string()
}

/// The counts, as rows.
pub(crate) fn counts(stats: &StorageStats) -> Vec<(String, String)> {
    let mut rows = vec![
        ("credentials".into(), stats.credential_count.to_string()),
        ("configs".into(), stats.config_count.to_string()),
        ("usage records".into(), stats.usage_record_count.to_string()),
    ];
    rows.extend(stats.connection_count.map(|count| ("connections".into(), count.to_string())));
    rows.extend(stats.total_size.map(|bytes| ("size".into(), size(bytes))));
    rows.extend(stats.last_backup.map(|when| ("last backup".into(), rfc3339_seconds(when))));
    rows
}

/// A detail as a row: `format_version` is "format version".
pub(crate) fn row(name: &str, value: &Value) -> (String, String) {
    let text = match (name, value.as_u64()) {
        // Redis reports no limit as 0.
        ("maxmemory", Some(0)) => "no limit".to_owned(),
        ("maxmemory" | "used_memory", Some(bytes)) => size(bytes),
        // Up to the year 9999; a larger number is shown unchanged.
        ("rdb_last_save_time", Some(seconds @ ..=253_402_300_799)) => {
            rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds))
        }
        _ => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
    };
    (if name == "tls" { "TLS".into() } else { name.replace('_', " ") }, text)
}

/// A number of bytes as text.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let (mut shown, mut unit) = (bytes as f64, "bytes");
    for next in units {
        if shown < 1024.0 {
            break;
        }
        (shown, unit) = (shown / 1024.0, next);
    }
    if unit == "bytes" { format!("{bytes} bytes") } else { format!("{shown:.1} {unit}") }
}

/// Escapes DEL and the C1 control characters, which terminals interpret, as JSON escapes the C0 characters.
pub(crate) fn printable(json: &str) -> String {
    json.chars().fold(String::with_capacity(json.len()), |mut text, character| {
        match character {
            '\u{7f}'..='\u{9f}' => text.push_str(&format!("\\u{:04x}", u32::from(character))),
            _ => text.push(character),
        }
        text
    })
}

/// A remark in one line. Control characters in the location are escaped, because terminals interpret them.
pub(crate) fn described(remark: &Remark) -> String {
    let place =
        remark.place.chars().fold(String::with_capacity(remark.place.len()), |mut text, character| {
            match character.is_control() {
                true => text.extend(character.escape_default()),
                false => text.push(character),
            }
            text
        });
    format!("{place}: {}", remark.reason)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn digits_are_grouped() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn the_time_left_is_rounded_up() {
        for (nanos, wanted) in [
            (0, "0s"),
            (449_000_001, "450ms"),
            (999_000_001, "1s"),
            (28_000_000_001, "29s"),
            (59 * 60_000_000_000 + 1, "59m 1s"),
            (3_600_000_000_001, "1h 1m"),
        ] {
            assert_eq!(time_left(Duration::from_nanos(nanos)), wanted);
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        let json = json!({ "a": "\u{9b}2J\u{7f}\u{1b}团" }).to_string();
        let text = printable(&json);
        assert_eq!(text, r#"{"a":"\u009b2J\u007f\u001b团"}"#);
        assert_eq!(
            serde_json::from_str::<Value>(&text).unwrap(),
            serde_json::from_str::<Value>(&json).unwrap()
        );
    }
}
