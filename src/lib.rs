//! Storage for LLM gateways and API proxies: credentials, live configuration, usage counters, a cache.
//!
//! **The backend is a type. What it can't do doesn't compile. What it can do is tested to be the same on
//! every backend.**
//!
//! ```
//! use gateway_storage::{File, Storage};
//! use serde_json::json;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> gateway_storage::Result<()> {
//! # let folder = tempfile::tempdir().unwrap();
//! # let url = format!("file:{}/data", folder.path().display());
//! let storage = Storage::<File>::open(url).await?; // "file:./data"
//! storage.set_credential("alice", json!({ "access_token": "ya29.xxx" })).await?;
//! assert_eq!(storage.increment_usage("alice", "requests", 1).await?, 1);
//! assert_eq!(format!("{:?}", storage.get_credential("alice").await?), "Credential(1 field)");
//! storage.close().await
//! # }
//! ```
//!
//! An application holds a [`Storage<B>`](Storage). `B` is the backend, and the capability traits that it
//! implements say what it can do:
//!
//! | | [`File`] | [`Redis`] | [`MongoDb`] | [`Postgres`] | [`Git`] | [`Memory`] |
//! |---|:---:|:---:|:---:|:---:|:---:|:---:|
//! | [`CredentialStore`]: get, set, delete, list, batches, streams | x | x | x | x | x | x |
//! | [`ConfigStore`]: get, set, delete, list, batches, streams | x | x | x | x | x | x |
//! | [`Conditional`](revision::Conditional): set or delete only what has not changed | x | x | x | x | x | x |
//! | [`Leases`](lease::Leases): one of many processes does something, for a while | x | x | x | x | | x |
//! | [`ConfigBatch`]: many config changes at once, idempotent by key, reversible, audited | x | x | x | x | | x |
//! | [`UsageStore`]: increment one, many, or within a [budget](usage); get, reset, list, streams | x | x | x | x | | x |
//! | [`CacheStore`]: get (optionally with the time left), set with a time to live, set if absent, delete, batches | | x | | | | x |
//! | [`Transactional`]: begin, then commit or roll back; [`transact!`] retries conflicts | | | x | x | | x |
//! | [`Exportable`]: export as a stream, import | x | x | x | x | x | x |
//! | [`Watch`](watch::Watch): a stream of what changes | x | x | x | x | x | x |
//! | [`Pooled`]: statistics and size of the connection pool | | x | x | x | | |
//! | [`History`]: history of a record, its value at a commit, revert | | | | | x | |
//!
//! A backend that is chosen at run time is [`Either`] of two, or [`one_of!`] of several: the capability
//! traits are not `dyn` compatible, so there is no `Box<dyn ..>` of a backend. A [`scope`] is one tenant's
//! part of a store. A wrapper of your own ([`wrap`]) can change keys and values.
//!
//! Each method of these traits lists what it promises. [`Backend`] says what holds for all of them, and
//! [`Error`] what can go wrong. A [`layer`] wraps every operation: telemetry ([`Storage::instrumented`]), a
//! deadline, retries and a limit ([`Stack`](layer::Stack)), or one of your own.
//!
//! [`migrate`] copies records between any two stores and compares them. [`Adoption`](adopt::Adoption) reads
//! the files and databases that gcli2api-go left. That is an earlier gateway, written in Go: the rest of this
//! documentation calls it "the Go program".
//!
//! # Limits
//!
//! | | |
//! |---|---|
//! | a key or a counter's field | [`Key::MAX_BYTES`] (255), UTF-8, no control characters |
//! | a credential, config value (compact JSON) or cache value | [`MAX_VALUE_BYTES`] (1 MiB) |
//! | the nesting of JSON | [`MAX_DEPTH`] (64) levels |
//! | a counter | `i64` |
//! | a cache value's time to live | [`MAX_CACHE_TTL`] (10,000 days) |
//! | a plan | [`MAX_PLAN_MUTATIONS`](plan::MAX_PLAN_MUTATIONS) (10,000) and [`MAX_PLAN_BYTES`](plan::MAX_PLAN_BYTES) (8 MiB); the values that it replaces, 8 MiB too |
//! | a plan's record, during which its key is taken | [`DEFAULT_PLAN_TTL`](plan::DEFAULT_PLAN_TTL) (14 days) unless set, at most [`MAX_PLAN_TTL`](plan::MAX_PLAN_TTL) |
//! | the audit | the newest [`MAX_AUDIT_ENTRIES`](plan::MAX_AUDIT_ENTRIES) (10,000) entries |
//! | the duration of a call | [`DEFAULT_DEADLINE`] (10 s) unless set |
//!
//! # Features
//!
//! | feature | adds | default |
//! |---|---|:---:|
//! | `file` | [`File`] | x |
//! | `memory` | [`Memory`] | x |
//! | `git` | [`Git`] | |
//! | `git-https`, `git-ssh` | [`Git`] with remotes over HTTPS, over SSH | |
//! | `mongodb` | [`MongoDb`] | |
//! | `postgres` | [`Postgres`] | |
//! | `redis` | [`Redis`] | |
//! | `conformance` | the public conformance kit, for backends of your own | |
//! | `cli` | the command `storage`, with the backends whose features are on | |
//! | `full` | `cli` with all backends | |

// docs.rs shows the feature that an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
// Helpers that only some backends use are unused in a build without those backends, and links to those have
// no target.
#![cfg_attr(
    not(feature = "full"),
    allow(dead_code, unused_imports, unused_macros, rustdoc::broken_intra_doc_links)
)]

#[cfg(all(any(feature = "file", feature = "git"), not(unix)))]
compile_error!("the features `file` and `git` need a Unix system; build with `default-features = false`");

// `#[capability]` generates paths that begin with `::gateway_storage`, in this crate as in an application.
extern crate self as gateway_storage;

pub mod adopt;
pub mod archive;
mod backend;
mod capability;
#[cfg(not(fuzzing))]
mod codec;
#[cfg(fuzzing)]
pub mod codec;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod either;
mod error;
mod event;
pub mod history;
pub mod layer;
pub mod migrate;
mod model;
pub mod plan;
pub mod scope;
mod storage;
mod transact;
pub mod wrap;

#[cfg(feature = "file")]
pub use backend::file::{
    BackupReport, CheckReport, CheckedRecords, File, FileOptions, MAX_PLAN_RECORDS, Miscount, Sharing, Verify,
};
#[cfg(feature = "git")]
pub use backend::git::{Git, GitOptions};
#[cfg(feature = "memory")]
pub use backend::memory::{Memory, MemoryOptions};
#[cfg(feature = "mongodb")]
pub use backend::mongodb::{MongoDb, MongoDbOptions};
#[cfg(feature = "postgres")]
pub use backend::postgres::{Postgres, PostgresOptions};
#[cfg(feature = "redis")]
pub use backend::redis::{Redis, RedisOptions};
pub use capability::{
    Backend, CacheStore, ConfigBatch, ConfigStore, CredentialStore, DEFAULT_DEADLINE, Exportable, History,
    MAX_CACHE_TTL, Open, Pooled, Transaction, Transactional, UsageStore,
};
pub use either::Either;
pub use error::{Error, ErrorKind, OptionalExt, Outcome, Result};
pub use gateway_storage_macros::capability;
pub use model::{
    BatchFailure, BatchItem, BatchReport, CacheEntry, ConfigValue, Credential, Found, Increment,
    IncrementItem, IntoKey, Key, MAX_DEPTH, MAX_SECRET_BYTES, MAX_VALUE_BYTES, Performance, PoolStats,
    Record, RecordKind, Redacted, Secret, StorageStats, UsageRecord,
};
#[doc(hidden)]
pub use model::{rfc3339_millis, rfc3339_seconds};
pub use storage::{IMPORT_CHUNK, Storage, StorageTransaction};
#[doc(hidden)]
pub use transact::Attempts;
pub use transact::{TRANSACTION_ATTEMPTS, TransactOptions};

/// A type of [`GitOptions`], and the commits that closing did not send.
#[cfg(feature = "git")]
pub mod git {
    pub use crate::backend::git::{GitSync, Unsent};
}

/// The transaction of [`Memory`].
#[cfg(feature = "memory")]
pub mod memory {
    pub use crate::backend::memory::MemoryTransaction;
}

/// The types of [`MongoDbOptions`], and the transaction of [`MongoDb`].
#[cfg(feature = "mongodb")]
pub mod mongodb {
    pub use crate::backend::mongodb::{MongoDbTransaction, ReadLevel, WriteLevel};
}

/// The types of [`PostgresOptions`], the transaction of [`Postgres`] and the state of its schema.
#[cfg(feature = "postgres")]
pub mod postgres {
    pub use crate::backend::postgres::{
        ChannelBinding, Isolation, PostgresTransaction, SchemaStatus, SslMode, SslNegotiation,
    };
}

/// The types of [`RedisOptions`].
#[cfg(feature = "redis")]
pub mod redis {
    pub use crate::backend::redis::{RedisDurability, RedisSentinel, RedisTls, RedisTopology};
}

/// Streams of records: [`ListOptions`](list::ListOptions).
///
/// [`stream_credentials`](crate::Storage::stream_credentials),
/// [`stream_configs`](crate::Storage::stream_configs) and [`stream_usage`](crate::Storage::stream_usage) read
/// records page by page, in the order of their keys, in the memory of one page. With a prefix they read a
/// part of a store; with a limit, and the last key as `after`, one page of a list.
///
/// The keys of `Redis` have no order: its page has the cost. [The contract](crate::CredentialStore) has the
/// promises.
pub mod list {
    pub use crate::model::ListOptions;
}

/// Leases: [`Leases`](lease::Leases) and its types.
pub mod lease {
    pub use crate::{
        capability::Leases,
        model::{Claim, Holder, Lease, LeaseState, MAX_HOLDER_BYTES, MAX_LEASE_TTL},
    };
}

#[doc = include_str!("../docs/refresh.md")]
pub mod refresh {
    pub use crate::storage::refresh::{CLOSE_WAIT, Refresh, RefreshError, Refreshed, Refused};
}

/// Conditional writes: [`Conditional`](revision::Conditional) and its types.
pub mod revision {
    pub use crate::{
        capability::{Conditional, Wake},
        model::{Condition, Revision},
    };
}

#[doc = include_str!("../docs/usage.md")]
pub mod usage {
    pub use crate::model::{Totals, Within};
}

#[doc = include_str!("../docs/watch.md")]
pub mod watch {
    pub use crate::{
        capability::Watch,
        event::{Cursor, Event, WatchOptions},
        storage::live::{Current, Live},
    };
}

/// Compiles the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
