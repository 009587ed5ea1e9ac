//! Wrappers: backends around a backend that see the keys and values of each call.
//!
//! A [`Layer`](crate::layer::Layer) treats all operations alike and sees no argument. A wrapper implements
//! the traits here, one for each capability that it shall have. Each method gets the backend inside and
//! forwards to it, unless the wrapper overrides it. [`Wrapped`] puts the wrapper around a backend.
//!
//! A wrapper that has to treat every record, as encryption has, writes
//! `#[deny(clippy::missing_trait_methods)]` on its implementations. Then clippy refuses one that does not
//! override an operation, also an operation that a later version adds. [`Scope`](crate::scope::Scope) is such
//! a wrapper.
//!
//! A complete wrapper, with which credentials can be stored and not deleted:
//!
//! ```
//! use gateway_storage::{
//!     Backend, BatchReport, CredentialStore, Error, ErrorKind, Key, Memory, Result, Storage,
//!     wrap::{BackendWrapper, CredentialStoreWrapper, Wrapped},
//! };
//!
//! #[derive(Clone)]
//! struct Keep;
//!
//! impl<B: Backend> BackendWrapper<B> for Keep {}
//!
//! impl<B: CredentialStore> CredentialStoreWrapper<B> for Keep {
//!     async fn delete_credential(&self, _: &B, _: &Key) -> Result<()> {
//!         Err(Error::new(ErrorKind::Denied, "credentials are kept"))
//!     }
//!
//!     async fn delete_credentials(&self, _: &B, _: &[Key]) -> Result<BatchReport> {
//!         Err(Error::new(ErrorKind::Denied, "credentials are kept"))
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<()> {
//! let memory = Storage::<Memory>::open("memory:").await?;
//! let storage = Storage::new(Wrapped::new(Keep, memory.backend().clone()));
//! storage.set_credential("alice", serde_json::json!({})).await?;
//! assert!(storage.delete_credential("alice").await.is_err());
//! # Ok(()) }
//! ```

pub use crate::capability::{
    BackendWrapper, CacheStoreWrapper, ConditionalWrapper, ConfigBatchWrapper, ConfigStoreWrapper,
    CredentialStoreWrapper, ExportableWrapper, HistoryWrapper, LeasesWrapper, PooledWrapper,
    TransactionWrapper, TransactionalWrapper, UsageStoreWrapper, WatchWrapper,
};

/// A backend with a wrapper around it, or a transaction of one. It has the capabilities whose traits in
/// [this module](self) the wrapper implements and whose traits the backend inside implements.
#[derive(Clone, Debug)]
pub struct Wrapped<W, B> {
    wrapper: W,
    inner: B,
}

impl<W, B> Wrapped<W, B> {
    /// Puts the wrapper around the backend.
    #[must_use]
    pub const fn new(wrapper: W, inner: B) -> Self {
        Self { wrapper, inner }
    }

    /// The wrapper and the backend inside.
    #[inline]
    pub const fn parts(&self) -> (&W, &B) {
        (&self.wrapper, &self.inner)
    }

    /// The wrapper and the backend inside, to change their settings.
    #[inline]
    pub const fn parts_mut(&mut self) -> (&mut W, &mut B) {
        (&mut self.wrapper, &mut self.inner)
    }

    /// Splits into the wrapper and the backend.
    #[inline]
    pub fn into_parts(self) -> (W, B) {
        (self.wrapper, self.inner)
    }
}
