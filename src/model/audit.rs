//! [`AuditEntry`]: one attempt to apply a plan or to roll it back.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::hash::PayloadHash;
use crate::{Error, ErrorKind, Key, Result};

/// The most audit entries that a store keeps: the newest.
pub const MAX_AUDIT_ENTRIES: usize = 10_000;

/// An enum whose variants have stable names, in stores and in JSON.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            /// The stable name.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// What has this name.
            pub(crate) fn named(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)* _ => None }
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                Self::named(text).ok_or_else(|| {
                    Error::new(ErrorKind::InvalidValue, concat!("not one of:" $(, " ", $text)*))
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

named! {
    /// What was attempted.
    PlanAction {
        /// [`apply_plan`](crate::ConfigBatch::apply_plan).
        Apply = "apply",
        /// [`rollback_plan`](crate::ConfigBatch::rollback_plan).
        Rollback = "rollback",
        /// The same, [forced](crate::RollbackOptions::force).
        ForcedRollback = "forced_rollback",
    }
}

named! {
    /// How an attempt ended.
    AuditStatus {
        /// It changed what it was meant to change.
        Committed = "committed",
        /// It had been done before: nothing was changed.
        Replayed = "replayed",
        /// It was refused: nothing was changed.
        Failed = "failed",
    }
}

named! {
    /// Why an attempt was refused.
    PlanRefusal {
        /// The key names another payload.
        OtherPayload = "other_payload",
        /// The key's plan was rolled back.
        RolledBack = "rolled_back",
        /// A value is not what a mutation expects.
        Unexpected = "unexpected",
        /// What the plan would replace is larger than a record may be.
        TooLarge = "too_large",
        /// A value was changed since the plan was applied.
        Changed = "changed",
        /// There is no record of a plan under this key.
        NotFound = "not_found",
    }
}

impl PlanRefusal {
    /// The error that the caller gets. `key` is the config value that is to blame.
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
                (ErrorKind::TooLarge, "what the plan would replace is too large to be kept for a rollback")
            }
            Self::Changed => (ErrorKind::Conflict, "a value was changed since the plan was applied"),
            Self::NotFound => {
                (ErrorKind::NotFound, "no plan was applied under this key, or its record expired")
            }
        };
        // It would be refused again.
        let error = Error::new(kind, message).with_retryable(false);
        key.into_iter().fold(error, Error::with_key)
    }
}

/// One attempt to apply a plan or to roll it back. It holds no config key and no value.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// The stage that the caller named; of a rollback, that of the plan.
    pub stage: Option<String>,
    /// Who the caller said to be.
    pub source: Option<String>,
    /// When it began: `finished` without `duration`.
    pub started: SystemTime,
    /// When it was committed, or had failed: by the clock of whoever stores it, in milliseconds.
    pub finished: SystemTime,
    /// How long it took until then, by the caller's clock, in microseconds.
    pub duration: Duration,
    /// How many mutations the plan has; 0 for a rollback of an unknown key.
    pub mutations: usize,
    /// The plan's payload; none for a rollback of an unknown key.
    pub payload_hash: Option<PayloadHash>,
    /// Why it failed.
    pub error: Option<PlanRefusal>,
}

impl AuditEntry {
    /// An attempt that ended then and took so long, with nothing said of its plan, as a rollback of an unknown key has: for backends
    /// outside this crate.
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

    /// The same, with the caller's name for the stage.
    #[must_use]
    pub fn with_stage(self, stage: impl Into<String>) -> Self {
        Self { stage: Some(stage.into()), ..self }
    }

    /// The same, with who the caller said to be.
    #[must_use]
    pub fn with_source(self, source: impl Into<String>) -> Self {
        Self { source: Some(source.into()), ..self }
    }

    /// The same, of a plan with this payload and so many mutations.
    #[must_use]
    pub fn with_plan(self, payload_hash: PayloadHash, mutations: usize) -> Self {
        Self { payload_hash: Some(payload_hash), mutations, ..self }
    }

    /// The same, with why it failed.
    #[must_use]
    pub fn with_error(self, error: PlanRefusal) -> Self {
        Self { error: Some(error), ..self }
    }
}

/// Which audit entries are wanted: all, unless it says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditFilter {
    /// Those of this plan.
    pub key: Option<Key>,
    /// Those of this stage.
    pub stage: Option<String>,
    /// Those that ended so.
    pub status: Option<AuditStatus>,
    /// Those that finished then or later.
    pub since: Option<SystemTime>,
    /// The newest so many of those.
    pub limit: Option<usize>,
}

impl AuditFilter {
    /// Only those of this plan.
    #[must_use]
    pub fn with_key(self, key: &Key) -> Self {
        Self { key: Some(key.clone()), ..self }
    }

    /// Only those of this stage.
    #[must_use]
    pub fn with_stage(self, stage: impl Into<String>) -> Self {
        Self { stage: Some(stage.into()), ..self }
    }

    /// Only those that ended so.
    #[must_use]
    pub fn with_status(self, status: AuditStatus) -> Self {
        Self { status: Some(status), ..self }
    }

    /// Only those that finished then or later.
    #[must_use]
    pub fn with_since(self, since: SystemTime) -> Self {
        Self { since: Some(since), ..self }
    }

    /// Only the newest so many.
    #[must_use]
    pub fn with_limit(self, limit: usize) -> Self {
        Self { limit: Some(limit), ..self }
    }

    /// Whether an entry is wanted, apart from the limit.
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
