//! The types of the data that is stored and returned.

mod batch;
mod cache;
mod config;
mod credential;
pub(crate) mod document;
mod hash;
mod key;
mod lease;
mod list;
mod named;
mod record;
mod remark;
mod revision;
mod scan;
mod secret;
mod stats;
pub(crate) mod time;
mod usage;

pub use batch::{BatchFailure, BatchItem, BatchReport, Found, Totals};
pub use cache::CacheEntry;
pub use config::ConfigValue;
pub(crate) use credential::redacted;
pub use credential::{Credential, Redacted};
pub(crate) use document::{BYTE_ORDER_MARK, parse_any, too_large, unreadable, without_mark};
pub use document::{MAX_DEPTH, MAX_VALUE_BYTES};
pub use hash::{PayloadHash, RecordDigest};
pub use key::{IntoKey, Key};
pub use lease::{Claim, Holder, Lease, LeaseState, MAX_HOLDER_BYTES, MAX_LEASE_TTL};
pub(crate) use lease::{check_rest, check_ttl, lost};
#[cfg(feature = "postgres")]
pub(crate) use list::BEHIND_ALL;
pub(crate) use list::KeyRange;
pub use list::ListOptions;
pub(crate) use named::named;
pub use record::{Record, RecordKind};
pub(crate) use remark::Piece;
pub use remark::{Remark, RemarkKind};
pub use revision::{Condition, Revision};
pub(crate) use scan::{Members, Refused, Watched};
pub use secret::{MAX_SECRET_BYTES, Secret};
pub use stats::{Performance, PoolStats, StorageStats};
pub use time::{rfc3339_millis, rfc3339_seconds};
pub use usage::{Increment, IncrementItem, UsageRecord, Within};
