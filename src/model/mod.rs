//! What is stored and returned.

mod batch;
mod cache;
mod config;
mod credential;
mod document;
mod key;
mod record;
mod stats;
mod usage;

pub use batch::{BatchFailure, BatchReport, Found};
pub use cache::CacheEntry;
pub use config::ConfigValue;
pub use credential::Credential;
pub(crate) use document::too_large;
pub use document::{MAX_DEPTH, MAX_VALUE_BYTES};
pub use key::{AsKey, Key};
pub use record::Record;
pub use stats::{Performance, PoolStats, StorageStats};
pub use usage::{Increment, UsageRecord};
