//! The stored form of plans: their records, and the audit.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    ConfigValue, Error, ErrorKind, Key, Result,
    model::{parse_any, time::at_millis},
    plan::{AuditEntry, AuditStatus, PayloadHash, PlanAction, PlanRefusal},
};

/// The record of an applied plan, kept under the plan's key until it expires.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanRecord {
    /// The hash of the plan.
    pub payload: PayloadHash,
    /// The number of its mutations.
    pub mutations: usize,
    /// The stage from the caller's options.
    pub stage: Option<String>,
    /// When it was applied, in milliseconds since 1970, by the store's clock.
    pub applied: i64,
    /// When the record expires, in the same unit.
    pub expires: i64,
    /// Whether the plan was rolled back.
    pub is_rolled_back: bool,
    /// The changes, sorted by key.
    pub changes: Vec<PlanChange>,
}

/// One config value before and after a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanChange {
    /// The key of the config value.
    pub key: Key,
    /// The value before the plan.
    pub before: Option<ConfigValue>,
    /// The value after it.
    pub after: Option<ConfigValue>,
}

/// The JSON form of a record. `before` or `after` is absent where there is no value:
///
/// ```text
/// {"payload":"7ec6..","mutations":1,"stage":"canary","applied":1,"expires":2,"rolled_back":false,
///  "changes":[{"key":"retries","before":2,"after":3}]}
/// ```
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored<'r> {
    payload: PayloadHash,
    mutations: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stage: Option<Cow<'r, str>>,
    applied: i64,
    expires: i64,
    rolled_back: bool,
    changes: Vec<StoredChange<'r>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredChange<'r> {
    key: Cow<'r, Key>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    before: Option<Cow<'r, Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    after: Option<Cow<'r, Value>>,
}

/// Makes `null` a value, different from a field that is absent.
fn present<'de, 'r, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Cow<'r, Value>>, D::Error> {
    Value::deserialize(deserializer).map(|value| Some(Cow::Owned(value)))
}

const NEVER: &str = "strings, numbers and values can be serialized";

fn stored_changes(changes: &[PlanChange]) -> Vec<StoredChange<'_>> {
    changes
        .iter()
        .map(|PlanChange { key, before, after }| StoredChange {
            key: Cow::Borrowed(key),
            before: before.as_ref().map(|value| Cow::Borrowed(value.value())),
            after: after.as_ref().map(|value| Cow::Borrowed(value.value())),
        })
        .collect()
}

fn read_changes(changes: Vec<StoredChange<'_>>) -> Result<Vec<PlanChange>> {
    let value =
        |value: Option<Cow<'_, Value>>| value.map(|value| ConfigValue::new(value.into_owned())).transpose();
    changes
        .into_iter()
        .map(|change| {
            Ok(PlanChange {
                key: change.key.into_owned(),
                before: value(change.before)?,
                after: value(change.after)?,
            })
        })
        .collect::<Result<_>>()
        .map_err(|why| corrupt().with_source(why))
}

/// Encodes a record as JSON, which [`decode_plan`] reads back equal.
pub fn encode_plan(record: &PlanRecord) -> Vec<u8> {
    let stored = Stored {
        payload: record.payload,
        mutations: record.mutations,
        stage: record.stage.as_deref().map(Cow::Borrowed),
        applied: record.applied,
        expires: record.expires,
        rolled_back: record.is_rolled_back,
        changes: stored_changes(&record.changes),
    };
    serde_json::to_vec(&stored).expect(NEVER)
}

/// Decodes the output of [`encode_plan`]. Other bytes are `Corrupt`.
pub fn decode_plan(bytes: &[u8]) -> Result<PlanRecord> {
    let stored: Stored<'_> = parse_any(bytes).map_err(|why| corrupt().with_source(why))?;
    Ok(PlanRecord {
        payload: stored.payload,
        mutations: stored.mutations,
        stage: stored.stage.map(Cow::into_owned),
        applied: stored.applied,
        expires: stored.expires,
        is_rolled_back: stored.rolled_back,
        changes: read_changes(stored.changes)?,
    })
}

/// Encodes only the changes of a record, for a store that has columns for the other fields.
pub fn encode_changes(changes: &[PlanChange]) -> Vec<u8> {
    serde_json::to_vec(&stored_changes(changes)).expect(NEVER)
}

/// Decodes the output of [`encode_changes`]. Other bytes are `Corrupt`.
pub fn decode_changes(bytes: &[u8]) -> Result<Vec<PlanChange>> {
    read_changes(parse_any(bytes).map_err(|why| corrupt().with_source(why))?)
}

/// The JSON form of an audit entry.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredEntry<'e> {
    key: Cow<'e, Key>,
    action: PlanAction,
    status: AuditStatus,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stage: Option<Cow<'e, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<Cow<'e, str>>,
    finished: i64,
    micros: i64,
    mutations: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload: Option<PayloadHash>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<PlanRefusal>,
}

/// Encodes an audit entry as JSON, which [`decode_audit`] reads back equal.
pub fn encode_audit(entry: &AuditEntry) -> Vec<u8> {
    let stored = StoredEntry {
        key: Cow::Borrowed(&entry.key),
        action: entry.action,
        status: entry.status,
        stage: entry.stage.as_deref().map(Cow::Borrowed),
        source: entry.source.as_deref().map(Cow::Borrowed),
        finished: to_millis(entry.finished),
        micros: to_micros(entry.duration),
        mutations: entry.mutations,
        payload: entry.payload_hash,
        error: entry.error,
    };
    serde_json::to_vec(&stored).expect(NEVER)
}

/// Decodes the output of [`encode_audit`], for the backend with this label. Other bytes are `Corrupt`.
pub fn decode_audit(backend: &'static str, bytes: &[u8]) -> Result<AuditEntry> {
    let stored: StoredEntry<'_> = serde_json::from_slice(bytes).map_err(|_| corrupt())?;
    let (started, finished, duration) = times(stored.finished, stored.micros)?;
    Ok(AuditEntry {
        backend,
        key: stored.key.into_owned(),
        action: stored.action,
        status: stored.status,
        stage: stored.stage.map(Cow::into_owned),
        source: stored.source.map(Cow::into_owned),
        started,
        finished,
        duration,
        mutations: stored.mutations,
        payload_hash: stored.payload,
        error: stored.error,
    })
}

/// Converts a time to milliseconds since 1970.
pub fn to_millis(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Converts a duration to microseconds.
pub fn to_micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// The start, the end and the duration of an attempt, given its stored end in milliseconds since 1970 and its
/// duration in microseconds. Both times must be between the years 1970 and 9999; otherwise the error is
/// `Corrupt`.
pub fn times(finished: i64, micros: i64) -> Result<(SystemTime, SystemTime, Duration)> {
    let wrong = |_| corrupt();
    let duration = Duration::from_micros(micros.try_into().map_err(wrong)?);
    let finished = at_millis(finished).ok_or_else(corrupt)?;
    let started = finished.checked_sub(duration).filter(|started| *started >= SystemTime::UNIX_EPOCH);
    Ok((started.ok_or_else(corrupt)?, finished, duration))
}

#[cold]
pub(crate) fn corrupt() -> Error {
    Error::new(ErrorKind::Corrupt, "the stored data of a plan can't be read")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn value(value: Value) -> Option<ConfigValue> {
        Some(ConfigValue::new(value).unwrap())
    }

    #[test]
    fn a_record_is_read_back_equal() {
        let change = |name, before, after| PlanChange { key: Key::new(name).unwrap(), before, after };
        let record = PlanRecord {
            payload: PayloadHash([7; 32]),
            mutations: 3,
            stage: Some("canary".into()),
            applied: 1,
            expires: i64::MAX,
            is_rolled_back: true,
            changes: vec![
                change("a", None, value(Value::Null)),
                change("b", value(json!(u64::MAX)), None),
                change("c", None, None),
                change("d", value(json!({ "": -0.5 })), value(json!("\u{0}"))),
            ],
        };
        let encoded = encode_plan(&record);
        assert_eq!(decode_plan(&encoded).unwrap(), record);
        assert_eq!(decode_changes(&encode_changes(&record.changes)).unwrap(), record.changes);
        for damaged in [&encoded[1..], &encoded[..encoded.len() - 1], b"{}", b""] {
            assert_eq!(decode_plan(damaged).unwrap_err().kind(), ErrorKind::Corrupt);
        }
        let large = r#"[{"key":"a","before":18446744073709551617}]"#;
        assert_eq!(decode_changes(large.as_bytes()).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn impossible_times_are_corrupt() {
        assert!(times(0, 0).is_ok() && times(253_402_300_799_999, 1).is_ok() && times(1, 1000).is_ok());
        for (finished, micros) in [
            (253_402_300_800_000, 1),
            (i64::MAX, 1),
            (-1, 0),
            (1, -1),
            (1, 1001),
            (1_700_000_000_000, i64::MAX),
        ] {
            assert_eq!(
                times(finished, micros).unwrap_err().kind(),
                ErrorKind::Corrupt,
                "{finished} {micros}"
            );
        }
    }

    #[test]
    fn an_audit_entry_is_read_back_equal() {
        let (started, finished, duration) = times(1_700_000_000_123, 1_500).unwrap();
        let entry = AuditEntry {
            backend: "file",
            key: Key::new("k").unwrap(),
            action: PlanAction::Rollback,
            status: AuditStatus::Failed,
            stage: None,
            source: Some("me".into()),
            started,
            finished,
            duration,
            mutations: 0,
            payload_hash: None,
            error: Some(PlanRefusal::NotFound),
        };
        let encoded = encode_audit(&entry);
        assert_eq!(decode_audit("file", &encoded).unwrap(), entry);
        assert_eq!(decode_audit("file", &encoded[1..]).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
