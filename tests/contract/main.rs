//! The contract: that the kit finds what violates it, that backends behave as `Memory` does, that layers keep
//! it, and that an application's own backend and capability can be under it.

#[cfg(all(feature = "conformance", feature = "memory"))]
mod catches;
#[cfg(all(feature = "conformance", feature = "memory"))]
mod layers;
#[cfg(all(feature = "conformance", feature = "file", feature = "memory"))]
mod model;
#[cfg(feature = "conformance")]
mod own_backend;
mod own_capability;
#[cfg(feature = "memory")]
mod spawned;
#[cfg(all(feature = "conformance", feature = "memory"))]
mod telemetry;
