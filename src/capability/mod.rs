//! The contract: one trait per file. A backend can do what the traits that it implements promise.

mod backend;
mod batch;
mod cache;
mod conditional;
mod config;
mod credential;
mod export;
mod history;
mod leases;
mod plan;
mod pool;
mod stream;
mod transaction;
mod usage;
mod watch;

pub use backend::{Backend, BackendWrapper, DEFAULT_DEADLINE, Open};
pub(crate) use cache::check_cache;
pub use cache::{CacheStore, CacheStoreWrapper, MAX_CACHE_TTL};
pub(crate) use conditional::document_of;
pub use conditional::{Conditional, ConditionalWrapper, Wake};
pub use config::{ConfigStore, ConfigStoreWrapper};
pub use credential::{CredentialStore, CredentialStoreWrapper};
pub use export::{Exportable, ExportableWrapper};
pub use history::{History, HistoryWrapper};
pub use leases::{Leases, LeasesWrapper};
pub use plan::{ConfigBatch, ConfigBatchWrapper};
pub use pool::{Pooled, PooledWrapper};
pub(crate) use stream::{existing, pages};
pub use transaction::{Transaction, TransactionWrapper, Transactional, TransactionalWrapper};
pub use usage::{UsageStore, UsageStoreWrapper};
pub use watch::{Watch, WatchWrapper};
