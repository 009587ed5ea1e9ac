//! The types of the data that is stored and returned.

mod audit;
mod batch;
mod cache;
mod config;
mod credential;
mod document;
mod hash;
mod key;
mod plan;
mod record;
mod remark;
mod revision;
mod scan;
mod secret;
mod stats;
mod usage;

pub use audit::{AuditEntry, AuditFilter, AuditStatus, MAX_AUDIT_ENTRIES, PlanAction, PlanRefusal};
pub use batch::{BatchFailure, BatchReport, Found};
pub use cache::CacheEntry;
pub use config::ConfigValue;
pub use credential::Credential;
pub(crate) use document::{BYTE_ORDER_MARK, parse_any, too_large, unreadable, without_mark};
pub use document::{MAX_DEPTH, MAX_VALUE_BYTES};
pub use hash::{PayloadHash, RecordDigest};
pub use key::{AsKey, Key};
pub(crate) use plan::size_of_record;
pub use plan::{
    Applied, ApplyOptions, DEFAULT_PLAN_TTL, Expect, MAX_PLAN_BYTES, MAX_PLAN_MUTATIONS, MAX_PLAN_TTL,
    Mutation, Plan, Rollback, RollbackOptions,
};
pub use record::{Record, RecordKind};
pub(crate) use remark::Piece;
#[cfg(feature = "git")]
pub(crate) use remark::with_causes;
pub use remark::{Remark, RemarkKind};
pub use revision::{Revision, RevisionId, VersionedKind};
pub(crate) use scan::{Members, Refused, Watched};
pub use secret::{MAX_SECRET_BYTES, Secret};
pub use stats::{Performance, PoolStats, StorageStats};
pub use usage::{Increment, UsageRecord};
