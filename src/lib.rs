//! Storage for LLM gateways.
#![cfg_attr(docsrs, feature(doc_cfg))]

// `#[capability]` names this crate by its name, here as in an application.
extern crate self as gateway_storage;

mod backend;
mod capability;
#[cfg(not(fuzzing))]
mod codec;
#[cfg(fuzzing)]
pub mod codec;
mod error;
pub mod layer;
mod model;
mod storage;
mod transact;

#[cfg(feature = "file")]
pub use backend::file::{File, FileConfig};
#[cfg(feature = "memory")]
pub use backend::memory::{Memory, MemoryConfig, MemoryTransaction};
pub use capability::*;
pub use error::{Error, ErrorKind, Optional, Outcome, Result};
pub use gateway_storage_macros::capability;
pub use layer::{
    Call, Count, Layer, Layered, LayeredTransaction, Operation, OperationKind, Owned, Receiver, Trace,
};
pub use model::*;
pub use storage::{IMPORT_CHUNK, Storage};
#[doc(hidden)]
pub use transact::Attempts;
pub use transact::TRANSACTION_ATTEMPTS;
/// How long a call may take unless its storage says otherwise: 10 s.
pub const DEFAULT_DEADLINE: std::time::Duration = std::time::Duration::from_secs(10);
