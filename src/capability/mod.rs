//! The contract: one trait per file. A backend can do what the traits that it implements promise.

mod backend;
mod cache;
mod config;
mod credential;
mod export;
mod plan;
mod pool;
mod transaction;
mod usage;
mod versioned;

pub use backend::{Backend, Open};
pub(crate) use cache::check_cache;
pub use cache::{CacheStore, MAX_CACHE_TTL};
pub use config::ConfigStore;
pub use credential::CredentialStore;
pub use export::Exportable;
pub use plan::ConfigBatch;
#[cfg(feature = "redis")]
pub(crate) use plan::first_unexpected;
#[cfg(any(feature = "mongodb", feature = "postgres", feature = "redis"))]
pub(crate) use plan::last_mutations;
pub(crate) use plan::{ApplyStep, Attempt, RollbackStep, apply_step, rollback_step};
pub use pool::Pooled;
pub use transaction::{Transaction, Transactional};
pub use usage::UsageStore;
pub use versioned::Versioned;
