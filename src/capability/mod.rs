//! The contract: one trait per file. A backend can do what the traits that it implements promise.

mod backend;
mod cache;
mod conditional;
mod config;
mod credential;
mod export;
mod history;
mod leases;
mod plan;
mod pool;
mod transaction;
mod usage;

pub use backend::{Backend, DEFAULT_DEADLINE, Open};
pub(crate) use cache::check_cache;
pub use cache::{CacheStore, MAX_CACHE_TTL};
pub use conditional::Conditional;
pub(crate) use conditional::document_of;
pub use config::ConfigStore;
pub use credential::CredentialStore;
pub use export::Exportable;
pub use history::History;
pub use leases::Leases;
pub use plan::ConfigBatch;
pub use pool::Pooled;
pub use transaction::{Transaction, Transactional};
pub use usage::UsageStore;
