//! Records that move: copies, export files, and data that the Go program left.

#[cfg(feature = "memory")]
mod adopt;
#[cfg(feature = "memory")]
mod archive;
#[cfg(all(feature = "conformance", feature = "file", feature = "memory"))]
mod migrate;
