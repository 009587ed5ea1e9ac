//! [`ConfigBatch`]: plans, which change many config values together and once.

use futures_core::Stream;

use crate::{
    ConfigStore, Key, Result, capability,
    plan::{Applied, ApplyOptions, AuditEntry, AuditFilter, Plan, Rollback, RollbackOptions},
};

/// Applies plans to the configuration: idempotent by key, all or nothing, reversible, audited.
///
/// A plan's key is an idempotency key: it stands for one list of mutations until the plan's record expires.
/// The config values, the record and the audit entry are written in one atomic commit. A caller that does not
/// know whether a plan was applied can therefore apply it again under the same key.
///
/// Every attempt that reaches the store leaves an audit entry, whether it was committed, replayed or refused.
#[capability(wrapper = ConfigBatchWrapper)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot apply config batches",
    note = "backends that can: `File`, `Memory`, `MongoDb`, `Postgres`, `Redis`"
)]
pub trait ConfigBatch: ConfigStore {
    /// Applies a plan under a key.
    ///
    /// - **All or nothing.** All mutations are applied, in order, or none; of several for one key the last
    ///   one decides. After a crash of this process or of the server at any moment, all or none are applied,
    ///   and the plan's key can be used.
    /// - **Replay.** The first call is [`Applied`](Applied::Applied). The same plan under the same key is
    ///   then [`Replayed`](Applied::Replayed), whatever its options are and however the values have changed
    ///   since: nothing is changed, and the record does not live longer. The operation is replayable,
    ///   although the second answer differs.
    /// - **Conflict.** Another plan under the same key is [`Conflict`](crate::ErrorKind::Conflict). So is a
    ///   plan that was rolled back, so that a repeated request can't undo the rollback. The error has no key.
    /// - **Expectations.** If the stored value is not what a mutation [expects](crate::plan::Expect), the
    ///   error is `Conflict`, and its [key](crate::Error::key) is that of the first such mutation.
    ///   Expectations are compared with the values before the plan, not with those that its earlier mutations
    ///   set. A replay ignores them.
    /// - **Expiry.** After the [time to live](ApplyOptions::ttl), by the store's clock, the key can be used
    ///   for another plan. The time to live must exceed the time for which a caller or a
    ///   [`Retry`](crate::layer::Retry) layer retries: an attempt after it applies the plan again.
    /// - **Concurrency.** Of several concurrent calls with one key and one plan, one is `Applied`; the others
    ///   are `Replayed`, or [`Busy`](crate::ErrorKind::Busy) if they would wait too long. Plans with
    ///   different keys that change the same config values are applied one after another.
    /// - [`TooLarge`](crate::ErrorKind::TooLarge) if the values that the plan would replace exceed
    ///   [`MAX_PLAN_BYTES`](crate::plan::MAX_PLAN_BYTES); [`InvalidValue`](crate::ErrorKind::InvalidValue) if
    ///   an option is invalid.
    #[operation(write, replayable, batch = plan)]
    fn apply_plan(
        &self,
        key: &Key,
        plan: &Plan,
        options: &ApplyOptions,
    ) -> impl Future<Output = Result<Applied>> + Send;

    /// Restores the values that a plan replaced.
    ///
    /// - All values or none, in one atomic commit.
    /// - [`Refused`](Rollback::Refused), with the keys, if values differ from those that the plan set, unless
    ///   [forced](RollbackOptions::force). A value that was changed and changed back does not differ.
    /// - A second rollback is [`AlreadyRolledBack`](Rollback::AlreadyRolledBack), and changes nothing.
    /// - [`NotFound`](crate::ErrorKind::NotFound) if no plan was applied under this key, or its record
    ///   expired.
    #[operation(write, replayable)]
    fn rollback_plan(
        &self,
        key: &Key,
        options: &RollbackOptions,
    ) -> impl Future<Output = Result<Rollback>> + Send;

    /// Streams the audit, newest first.
    ///
    /// - One entry per attempt that the filter matches. Entries contain no config keys and no values.
    /// - A store keeps the newest [`MAX_AUDIT_ENTRIES`](crate::plan::MAX_AUDIT_ENTRIES) entries.
    /// - The stream ends after the first error.
    #[operation(read)]
    fn audit_plans(&self, filter: AuditFilter) -> impl Stream<Item = Result<AuditEntry>> + Send;
}
