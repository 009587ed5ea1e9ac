//! How a plan is applied and rolled back: the options and the results.

use std::time::Duration;

use gateway_storage_macros::Setters;
use serde::Serialize;

use super::PlanAction;
use crate::{Error, ErrorKind, Key, Result};

/// How long the record of a plan is kept, unless [`ApplyOptions::ttl`] is set: 14 days.
pub const DEFAULT_PLAN_TTL: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// The maximum time for which the record of a plan can be kept: 10,000 days.
pub const MAX_PLAN_TTL: Duration = Duration::from_secs(10_000 * 24 * 60 * 60);

/// Options for applying a plan.
#[derive(Clone, Debug, PartialEq, Eq, Setters)]
#[non_exhaustive]
pub struct ApplyOptions {
    /// How long the plan's record is kept, rounded up to whole milliseconds. During this time its key is
    /// taken, and the plan can be rolled back. More than zero, at most [`MAX_PLAN_TTL`].
    pub ttl: Duration,
    /// A label for the audit: "canary", "all". The rules are those of a [`Key`]: 1 to 255 bytes, no control
    /// characters.
    pub stage: Option<String>,
    /// The caller's name, for the audit. The rules are those of a [`Key`].
    pub source: Option<String>,
}

impl Default for ApplyOptions {
    fn default() -> Self {
        Self { ttl: DEFAULT_PLAN_TTL, stage: None, source: None }
    }
}

impl ApplyOptions {
    /// Checks the options, as every backend does first, and returns the time to live in milliseconds.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidValue`] if the time to live is out of range, or the stage or source is invalid.
    pub fn check(&self) -> Result<u64> {
        check_label("stage", self.stage.as_deref())?;
        check_label("source", self.source.as_deref())?;
        if self.ttl.is_zero() || self.ttl > MAX_PLAN_TTL {
            return Err(Error::new(
                ErrorKind::InvalidValue,
                "a plan's time to live must be more than zero and at most 10,000 days",
            ));
        }
        let millis = self.ttl.as_nanos().div_ceil(1_000_000);
        Ok(u64::try_from(millis).expect("10,000 days in milliseconds fit into a u64"))
    }
}

fn check_label(what: &str, label: Option<&str>) -> Result<()> {
    match label.map(Key::new) {
        Some(Err(why)) => {
            Err(Error::new(ErrorKind::InvalidValue, format!("the {what} is invalid")).with_source(why))
        }
        _ => Ok(()),
    }
}

/// Options for rolling back a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Setters)]
#[non_exhaustive]
pub struct RollbackOptions {
    /// Whether values that have been changed since are restored, too. Default: `false`.
    pub force: bool,
    /// The caller's name, for the audit. The rules are those of a [`Key`].
    pub source: Option<String>,
}

impl RollbackOptions {
    /// The action that the audit records.
    #[must_use]
    pub fn action(&self) -> PlanAction {
        if self.force { PlanAction::ForcedRollback } else { PlanAction::Rollback }
    }

    /// Checks the options, as every backend does first.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidValue`] if the source is invalid.
    pub fn check(&self) -> Result<()> {
        check_label("source", self.source.as_deref())
    }
}

/// The result of applying a plan. A new variant needs a major version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Applied {
    /// The plan was applied.
    Applied,
    /// The plan was applied before under this key: nothing was changed.
    Replayed,
}

/// The result of a rollback. A new variant needs a major version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[must_use = "a refused rollback is Ok"]
pub enum Rollback {
    /// The values that the plan replaced were restored.
    RolledBack,
    /// The plan was rolled back before: nothing was changed.
    AlreadyRolledBack,
    /// Values differ from those that the plan set: nothing was changed.
    Refused {
        /// Their keys, sorted.
        changed: Vec<Key>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked() {
        let check = |options: ApplyOptions| options.check().map_err(|error| error.kind());
        assert_eq!(check(ApplyOptions::default()), Ok(1_209_600_000));
        assert_eq!(check(ApplyOptions::default().with_ttl(Duration::from_micros(1))), Ok(1));
        for wrong in [
            ApplyOptions::default().with_ttl(Duration::ZERO),
            ApplyOptions::default().with_ttl(MAX_PLAN_TTL + Duration::from_nanos(1)),
            ApplyOptions::default().with_stage(""),
            ApplyOptions::default().with_source("a\nb"),
        ] {
            assert_eq!(check(wrong), Err(ErrorKind::InvalidValue));
        }
    }
}
