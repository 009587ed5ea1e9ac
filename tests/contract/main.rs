//! The contract: the kit finds violations of it, backends behave as `Memory` does, layers keep it, and a
//! backend and a capability outside this crate can follow it. Also, the provider of tokens is as planned.

#[cfg(feature = "memory")]
mod cached;
#[cfg(all(feature = "conformance", feature = "memory"))]
mod catches;
#[cfg(all(feature = "file", feature = "memory"))]
mod either;
#[cfg(feature = "memory")]
mod json;
#[cfg(all(feature = "conformance", feature = "memory"))]
mod layers;
#[cfg(feature = "memory")]
mod live;
#[cfg(all(feature = "conformance", feature = "file", feature = "memory"))]
mod model;
#[cfg(feature = "conformance")]
mod own_backend;
mod own_capability;
#[cfg(feature = "conformance")]
mod provider;
#[cfg(feature = "memory")]
mod refresh;
#[cfg(feature = "memory")]
mod scopes;
#[cfg(all(feature = "conformance", feature = "memory"))]
mod short_keys;
#[cfg(feature = "memory")]
mod spawned;
#[cfg(all(feature = "conformance", feature = "memory"))]
mod telemetry;
#[cfg(feature = "memory")]
mod transactions;
#[cfg(feature = "memory")]
mod updates;
#[cfg(feature = "full")]
mod urls;
