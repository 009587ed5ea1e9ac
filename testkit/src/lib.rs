//! What the tests and benches of `gateway-storage` share: real servers, a provider of tokens, a workload of
//! every operation, a search for secrets in logs, tables of pinned numbers, a backend with faults,
//! and several handles to one store as one backend.
//!
//! It is a library, so that it is compiled once and not in each test.

#[cfg(feature = "storage")]
pub mod broken;
#[cfg(feature = "storage")]
pub mod listener;
pub mod pins;
#[cfg(feature = "storage")]
pub mod provider;
pub mod runner;
pub mod servers;
#[cfg(feature = "storage")]
pub mod turns;
#[cfg(feature = "storage")]
pub mod workload;
