//! Decides from the stored values what an attempt to apply a plan or to roll it back does. The rules are the
//! same for every backend.

use std::{
    collections::BTreeMap,
    time::{Instant, SystemTime},
};

use crate::{
    ConfigValue, Key, Result,
    codec::{PlanChange, PlanRecord, is_same, times, to_micros, to_millis},
    plan::{
        Applied, ApplyOptions, AuditEntry, AuditStatus, Expect, MAX_PLAN_BYTES, PayloadHash, Plan,
        PlanAction, PlanRefusal, Rollback, RollbackOptions, size_of_record,
    },
};

/// An attempt to apply a plan or to roll it back, with the data for its audit entry.
pub(crate) struct Attempt<'a> {
    pub(crate) backend: &'static str,
    pub(crate) action: PlanAction,
    pub(crate) key: &'a Key,
    pub(crate) stage: Option<&'a str>,
    pub(crate) source: Option<&'a str>,
    pub(crate) mutations: usize,
    pub(crate) payload: Option<PayloadHash>,
    pub(crate) begun: Instant,
}

impl<'a> Attempt<'a> {
    /// An attempt to apply a plan. `payload` is the plan's hash, which the caller computes only once.
    pub(crate) fn to_apply(
        backend: &'static str,
        key: &'a Key,
        plan: &Plan,
        payload: PayloadHash,
        options: &'a ApplyOptions,
    ) -> Self {
        Self {
            backend,
            action: PlanAction::Apply,
            key,
            stage: options.stage.as_deref(),
            source: options.source.as_deref(),
            mutations: plan.len(),
            payload: Some(payload),
            begun: Instant::now(),
        }
    }

    /// An attempt to roll back the plan of this key.
    pub(crate) fn to_roll_back(backend: &'static str, key: &'a Key, options: &'a RollbackOptions) -> Self {
        Self {
            backend,
            action: options.action(),
            key,
            stage: None,
            source: options.source.as_deref(),
            mutations: 0,
            payload: None,
            begun: Instant::now(),
        }
    }

    /// Adds the data of the plan's record, if there is one.
    pub(crate) fn about(self, record: Option<&'a PlanRecord>) -> Self {
        let Some(record) = record else { return self };
        let (stage, mutations) = (record.stage.as_deref(), record.mutations);
        Self { stage, mutations, payload: Some(record.payload), ..self }
    }

    /// Microseconds since it began.
    pub(crate) fn micros(&self) -> i64 {
        to_micros(self.begun.elapsed())
    }

    /// The audit entry of an attempt that ends now.
    pub(crate) fn entry(
        &self,
        status: AuditStatus,
        error: Option<PlanRefusal>,
        now: SystemTime,
    ) -> Result<AuditEntry> {
        let (started, finished, duration) = times(to_millis(now), self.micros())?;
        Ok(AuditEntry {
            backend: self.backend,
            key: self.key.clone(),
            action: self.action,
            status,
            stage: self.stage.map(str::to_owned),
            source: self.source.map(str::to_owned),
            started,
            finished,
            duration,
            mutations: self.mutations,
            payload_hash: self.payload,
            error,
        })
    }
}

/// The decision about applying a plan.
pub(crate) enum ApplyStep {
    /// Make these changes, and keep them in the plan's record.
    Change(Vec<PlanChange>),
    /// Change nothing: the plan was applied before.
    Replay,
    /// Change nothing: the plan is refused. The key is that of the config value that caused it.
    Refuse(PlanRefusal, Option<Key>),
}

impl ApplyStep {
    /// How the attempt ends, for the audit entry and for the caller.
    pub(crate) fn end(&self) -> (AuditStatus, Option<PlanRefusal>, Result<Applied>) {
        match self {
            Self::Change(_) => (AuditStatus::Committed, None, Ok(Applied::Applied)),
            Self::Replay => (AuditStatus::Replayed, None, Ok(Applied::Replayed)),
            Self::Refuse(refusal, key) => {
                (AuditStatus::Failed, Some(*refusal), Err(refusal.error(key.as_ref())))
            }
        }
    }
}

/// Decides about applying a plan, given the unexpired record of its key, if any, and the stored values.
pub(crate) fn apply_step(
    plan: &Plan,
    payload: PayloadHash,
    record: Option<&PlanRecord>,
    stored: impl Fn(&Key) -> Option<ConfigValue>,
) -> ApplyStep {
    match record {
        Some(record) if record.payload != payload => ApplyStep::Refuse(PlanRefusal::OtherPayload, None),
        Some(record) if record.is_rolled_back => ApplyStep::Refuse(PlanRefusal::RolledBack, None),
        Some(_) => ApplyStep::Replay,
        None => {
            let unexpected = first_unexpected(plan, |key, wanted| match (wanted, stored(key)) {
                (Expect::Absent, found) => found.is_none(),
                (Expect::Value(wanted), Some(found)) => is_same(wanted, &found),
                (Expect::Value(_), None) => false,
            });
            if let Some(key) = unexpected {
                return ApplyStep::Refuse(PlanRefusal::Unexpected, Some(key.clone()));
            }
            let changes: Vec<PlanChange> = last_mutations(plan)
                .into_iter()
                .map(|(key, after)| PlanChange {
                    key: key.clone(),
                    before: stored(key),
                    after: after.cloned(),
                })
                .collect();
            let replaced: usize =
                changes.iter().map(|change| size_of_record(&change.key, change.before.as_ref())).sum();
            if replaced > MAX_PLAN_BYTES {
                return ApplyStep::Refuse(PlanRefusal::TooLarge, None);
            }
            ApplyStep::Change(changes)
        }
    }
}

/// The first key whose stored value is not what the plan expects.
pub(crate) fn first_unexpected(plan: &Plan, holds: impl Fn(&Key, &Expect) -> bool) -> Option<&Key> {
    let expectations =
        plan.mutations().iter().filter_map(|mutation| Some((&mutation.key, mutation.expect.as_ref()?)));
    expectations.into_iter().find(|(key, expect)| !holds(key, expect)).map(|(key, _)| key)
}

/// The final value of each key that the plan changes: of several mutations for one key the last one decides.
pub(crate) fn last_mutations(plan: &Plan) -> BTreeMap<&Key, Option<&ConfigValue>> {
    plan.mutations().iter().map(|mutation| (&mutation.key, mutation.value.as_ref())).collect()
}

/// The decision about rolling a plan back.
pub(crate) enum RollbackStep {
    /// Restore the values from before the plan.
    Restore,
    /// Change nothing: the plan was rolled back before.
    Already,
    /// Change nothing: the values of these keys have changed since.
    Refuse(Vec<Key>),
    /// Change nothing: there is no such plan.
    Unknown,
}

impl RollbackStep {
    /// How the attempt ends, for the audit entry and for the caller.
    pub(crate) fn end(self) -> (AuditStatus, Option<PlanRefusal>, Result<Rollback>) {
        use AuditStatus::{Committed, Failed, Replayed};
        match self {
            Self::Restore => (Committed, None, Ok(Rollback::RolledBack)),
            Self::Already => (Replayed, None, Ok(Rollback::AlreadyRolledBack)),
            Self::Refuse(changed) => (Failed, Some(PlanRefusal::Changed), Ok(Rollback::Refused { changed })),
            Self::Unknown => {
                let refusal = PlanRefusal::NotFound;
                (Failed, Some(refusal), Err(refusal.error(None)))
            }
        }
    }
}

/// Decides about rolling back a plan, given the unexpired record of its key, if any, and the stored values.
pub(crate) fn rollback_step(
    record: Option<&PlanRecord>,
    force: bool,
    stored: impl Fn(&Key) -> Option<ConfigValue>,
) -> RollbackStep {
    let Some(record) = record else { return RollbackStep::Unknown };
    if record.is_rolled_back {
        return RollbackStep::Already;
    }
    let is_changed = |change: &&PlanChange| match (&change.after, stored(&change.key)) {
        (None, None) => false,
        (Some(left), Some(found)) => !left.is_clone_of(&found) && !is_same(left, &found),
        _ => true,
    };
    let changed: Vec<Key> =
        record.changes.iter().filter(is_changed).map(|change| change.key.clone()).collect();
    if force || changed.is_empty() { RollbackStep::Restore } else { RollbackStep::Refuse(changed) }
}
