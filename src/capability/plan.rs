//! [`ConfigBatch`]: many changes to the configuration under one key, once.

use std::{
    collections::BTreeMap,
    time::{Instant, SystemTime},
};

use futures_core::Stream;

use crate::{
    Applied, ApplyOptions, AuditEntry, AuditFilter, AuditStatus, ConfigStore, ConfigValue, Expect, Key,
    MAX_PLAN_BYTES, PayloadHash, Plan, PlanAction, PlanRefusal, Result, Rollback, RollbackOptions,
    capability,
    codec::{PlanChange, PlanRecord, is_same, times, to_micros, to_millis},
    model::size_of_record,
};

/// Applies plans to the configuration: idempotent by their key, all or nothing, reversible, audited.
///
/// A plan's key is an idempotency key: it names one set of mutations, until its record expires. The configuration, the
/// record and the audit entry change in one atomic commit; so whoever is not sure whether a plan was applied applies it
/// again, under the same key.
///
/// Every attempt that reaches the store leaves an audit entry, whether it was committed, replayed or refused.
#[capability]
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot apply config batches",
    note = "backends that can: `File`, `Memory`, `MongoDb`, `Postgres`, `Redis`"
)]
pub trait ConfigBatch: ConfigStore {
    /// Applies a plan under a key.
    ///
    /// - All mutations or none, in their order: of several of one key the last one stays. A crash at any moment, of this
    ///   process or of the server, leaves all or nothing, and the key usable.
    /// - The first time it is [`Applied`](Applied::Applied). The same plan under the same key is
    ///   [`Replayed`](Applied::Replayed), whatever the options and whatever happened to the values since: nothing is
    ///   changed, and the record does not live longer. So it is repeated like any replayable operation, although the
    ///   second answer differs.
    /// - Another plan under the same key is [`Conflict`](crate::ErrorKind::Conflict); so is a plan that was rolled back:
    ///   a repeated request must not undo what an operator took back. The error has no key.
    /// - If something that a mutation [expects](Expect) does not hold, it is `Conflict`, and the error's
    ///   [key](crate::Error::key) is the first that it does not hold for. Expectations are compared with what is stored
    ///   before the plan, not with what earlier mutations of it made. A replay expects nothing.
    /// - After the [time to live](ApplyOptions::ttl), by the clock of whoever stores it, the key is free again. One that is shorter
    ///   than the tries of a caller, or of a [`Retry`](crate::Retry) layer, makes a second application of a late try.
    /// - Of many at once with one key and one plan, one is `Applied`, the others `Replayed`, or
    ///   [`Busy`](crate::ErrorKind::Busy) if they would wait too long. Plans with different keys that touch the same
    ///   config values are applied one after the other.
    /// - [`TooLarge`](crate::ErrorKind::TooLarge) if the values that it would replace are over [`MAX_PLAN_BYTES`];
    ///   [`InvalidValue`](crate::ErrorKind::InvalidValue) if an option is.
    #[operation(write, replayable, batch = plan)]
    fn apply_plan(
        &self,
        key: &Key,
        plan: &Plan,
        options: &ApplyOptions,
    ) -> impl Future<Output = Result<Applied>> + Send;

    /// Puts back what a plan replaced.
    ///
    /// - All values or none, in one atomic commit.
    /// - [`Refused`](Rollback::Refused), with their keys, if some values are not what the plan left, unless
    ///   [forced](RollbackOptions::force). (Values that were changed and changed back are.)
    /// - A second one is [`AlreadyRolledBack`](Rollback::AlreadyRolledBack), and changes nothing.
    /// - [`NotFound`](crate::ErrorKind::NotFound) if no plan was applied under this key, or its record expired.
    #[operation(write, replayable)]
    fn rollback_plan(
        &self,
        key: &Key,
        options: &RollbackOptions,
    ) -> impl Future<Output = Result<Rollback>> + Send;

    /// Streams the audit, newest first.
    ///
    /// - One entry for each attempt, of those that the filter wants. No config keys, no values.
    /// - Of the newest [`MAX_AUDIT_ENTRIES`](crate::MAX_AUDIT_ENTRIES); older ones are gone.
    /// - Ends after the first error.
    #[operation(read)]
    fn audit_plans(&self, filter: AuditFilter) -> impl Stream<Item = Result<AuditEntry>> + Send;
}

/// An attempt to apply a plan, or to roll one back: what its audit entry says.
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
    /// To apply this plan, whose hash is made once.
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

    /// To roll back what this key names.
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

    /// The same, about this record.
    pub(crate) fn about(self, record: &'a PlanRecord) -> Self {
        let (stage, mutations) = (record.stage.as_deref(), record.mutations);
        Self { stage, mutations, payload: Some(record.payload), ..self }
    }

    pub(crate) fn micros(&self) -> i64 {
        to_micros(self.begun.elapsed())
    }

    /// Its audit entry, if it ends now.
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

/// What applying a plan comes to.
pub(crate) enum ApplyStep {
    /// To make these changes, and to keep them as its record.
    Change(Vec<PlanChange>),
    /// Nothing: it was done.
    Replay,
    /// Nothing: it may not. The key is the config value that is to blame.
    Refuse(PlanRefusal, Option<Key>),
}

impl ApplyStep {
    /// How the attempt ends, for its audit entry and for its caller.
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

/// Decides what applying a plan comes to, given the record of its key that has not expired, and what is stored.
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

/// The first key for which the plan expects what does not hold.
pub(crate) fn first_unexpected(plan: &Plan, holds: impl Fn(&Key, &Expect) -> bool) -> Option<&Key> {
    let expectations =
        plan.mutations().iter().filter_map(|mutation| Some((&mutation.key, mutation.expect.as_ref()?)));
    expectations.into_iter().find(|(key, expect)| !holds(key, expect)).map(|(key, _)| key)
}

/// What the plan leaves under each key that it touches: mutations are applied in order, so the last one stays.
pub(crate) fn last_mutations(plan: &Plan) -> BTreeMap<&Key, Option<&ConfigValue>> {
    plan.mutations().iter().map(|mutation| (&mutation.key, mutation.value.as_ref())).collect()
}

/// What rolling a plan back comes to.
pub(crate) enum RollbackStep {
    /// To put back what was before.
    Restore,
    /// Nothing: it was done.
    Already,
    /// Nothing: these were changed since.
    Refuse(Vec<Key>),
    /// There is no such plan.
    Unknown,
}

impl RollbackStep {
    /// How the attempt ends, for its audit entry and for its caller.
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

/// Decides what rolling back comes to, given the record of its key that has not expired, and what is stored.
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
