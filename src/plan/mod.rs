//! Plans: many config changes, applied all or none, idempotent by key, reversible and audited.
//!
//! [`ConfigBatch`](crate::ConfigBatch) applies a [`Plan`] and rolls it back.

mod audit;
mod changes;
mod options;

pub use audit::{AuditEntry, AuditFilter, AuditStatus, MAX_AUDIT_ENTRIES, PlanAction, PlanRefusal};
pub(crate) use changes::size_of_record;
pub use changes::{Expect, MAX_PLAN_BYTES, MAX_PLAN_MUTATIONS, Mutation, Plan};
pub use options::{Applied, ApplyOptions, DEFAULT_PLAN_TTL, MAX_PLAN_TTL, Rollback, RollbackOptions};

pub use crate::model::PayloadHash;
