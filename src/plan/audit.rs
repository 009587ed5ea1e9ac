//! [`AuditEntry`]: one attempt to apply a plan or to roll it back.

use std::time::{Duration, SystemTime};

use gateway_storage_macros::Setters;
use serde::Serialize;

use crate::{
    Error, ErrorKind, Key,
    model::{PayloadHash, named, time},
};

/// The maximum number of audit entries that a store keeps. It keeps the newest.
pub const MAX_AUDIT_ENTRIES: usize = 10_000;

named! {
    /// What was attempted.
    PlanAction {
        /// [`apply_plan`](crate::ConfigBatch::apply_plan).
        Apply = "apply",
        /// [`rollback_plan`](crate::ConfigBatch::rollback_plan).
        Rollback = "rollback",
        /// A [forced](crate::plan::RollbackOptions::force) rollback.
        ForcedRollback = "forced_rollback",
    }
}

named! {
    /// How an attempt ended.
    AuditStatus {
        /// Its changes were committed.
        Committed = "committed",
        /// It was done before: nothing was changed.
        Replayed = "replayed",
        /// It was refused: nothing was changed.
        Failed = "failed",
    }
}

named! {
    /// Why an attempt was refused.
    PlanRefusal {
        /// Another plan was applied under the key.
        OtherPayload = "other_payload",
        /// The plan of the key was rolled back.
        RolledBack = "rolled_back",
        /// A value is not what a mutation expects.
        Unexpected = "unexpected",
        /// The values that the plan would replace are too large.
        TooLarge = "too_large",
        /// A value has been changed since the plan was applied.
        Changed = "changed",
        /// The key has no record of a plan.
        NotFound = "not_found",
    }
}

impl PlanRefusal {
    /// The error for the caller. `key` is that of the config value that caused the refusal.
    #[cold]
    #[must_use]
    pub fn error(self, key: Option<&Key>) -> Error {
        let (kind, message) = match self {
            Self::OtherPayload => (ErrorKind::Conflict, "another plan was applied under this key"),
            Self::RolledBack => {
                (ErrorKind::Conflict, "the plan of this key was rolled back; apply it under another key")
            }
            Self::Unexpected => {
                (ErrorKind::Conflict, "a value is not what the plan expects; nothing was applied")
            }
            Self::TooLarge => {
                (ErrorKind::TooLarge, "the values to be replaced are too large to keep for a rollback")
            }
            Self::Changed => (ErrorKind::Conflict, "a value has been changed since the plan was applied"),
            Self::NotFound => {
                (ErrorKind::NotFound, "no plan was applied under this key, or its record expired")
            }
        };
        // The same call would be refused again.
        let error = Error::new(kind, message).with_retryable(false);
        key.into_iter().fold(error, Error::with_key)
    }
}

/// One attempt to apply a plan or to roll it back. It contains no config key and no value.
///
/// As JSON the times are in RFC 3339, and the duration is `duration_seconds`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AuditEntry {
    /// The backend's label: `"file"`, `"redis"`.
    pub backend: &'static str,
    /// The plan's key.
    pub key: Key,
    /// What was attempted.
    pub action: PlanAction,
    /// How it ended.
    pub status: AuditStatus,
    /// The stage from the caller's options; for a rollback, that of the plan.
    pub stage: Option<String>,
    /// The source from the caller's options.
    pub source: Option<String>,
    /// When it began: `finished` minus `duration`.
    #[serde(serialize_with = "time::millis")]
    pub started: SystemTime,
    /// When it was committed or failed, by the store's clock, in whole milliseconds.
    #[serde(serialize_with = "time::millis")]
    pub finished: SystemTime,
    /// How long it took until then, by the caller's clock, in whole microseconds.
    #[serde(rename = "duration_seconds", serialize_with = "time::as_seconds")]
    pub duration: Duration,
    /// The number of mutations in the plan; 0 for a rollback of an unknown key.
    pub mutations: usize,
    /// The hash of the plan; `None` for a rollback of an unknown key.
    pub payload_hash: Option<PayloadHash>,
    /// Why it was refused.
    pub error: Option<PlanRefusal>,
}

impl AuditEntry {
    /// An entry without data of a plan, as for a rollback of an unknown key. For backends outside this crate.
    #[must_use]
    pub fn new(
        backend: &'static str,
        key: &Key,
        (action, status): (PlanAction, AuditStatus),
        finished: SystemTime,
        duration: Duration,
    ) -> Self {
        Self {
            backend,
            key: key.clone(),
            action,
            status,
            stage: None,
            source: None,
            started: finished.checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH),
            finished,
            duration,
            mutations: 0,
            payload_hash: None,
            error: None,
        }
    }

    /// Sets the stage.
    #[must_use]
    pub fn with_stage(self, stage: impl Into<String>) -> Self {
        Self { stage: Some(stage.into()), ..self }
    }

    /// Sets the source.
    #[must_use]
    pub fn with_source(self, source: impl Into<String>) -> Self {
        Self { source: Some(source.into()), ..self }
    }

    /// Sets the plan's hash and its number of mutations.
    #[must_use]
    pub fn with_plan(self, payload_hash: PayloadHash, mutations: usize) -> Self {
        Self { payload_hash: Some(payload_hash), mutations, ..self }
    }

    /// Sets the reason of a refusal.
    #[must_use]
    pub fn with_error(self, error: PlanRefusal) -> Self {
        Self { error: Some(error), ..self }
    }
}

/// Selects audit entries. The default selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Setters)]
#[non_exhaustive]
pub struct AuditFilter {
    /// Only entries for the plan with this key.
    pub key: Option<Key>,
    /// Only entries with this stage.
    pub stage: Option<String>,
    /// Only entries with this status.
    pub status: Option<AuditStatus>,
    /// Only entries that finished at this time or later.
    pub since: Option<SystemTime>,
    /// At most this number of entries, the newest ones.
    pub limit: Option<usize>,
}

impl AuditFilter {
    /// Whether the filter selects this entry, apart from the limit.
    #[must_use]
    pub fn wants(&self, entry: &AuditEntry) -> bool {
        self.key.as_ref().is_none_or(|key| *key == entry.key)
            && self.stage.as_ref().is_none_or(|stage| Some(stage) == entry.stage.as_ref())
            && self.status.is_none_or(|status| status == entry.status)
            && self.since.is_none_or(|since| entry.finished >= since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_64_digits() {
        let text = "00ff".repeat(16);
        assert_eq!(text.parse::<PayloadHash>().unwrap().to_string(), text);
        for wrong in ["", "00", &"0G".repeat(32), &"0F".repeat(32), &"0".repeat(65)] {
            assert_eq!(wrong.parse::<PayloadHash>().unwrap_err().kind(), ErrorKind::InvalidValue);
        }
    }
}
