//! Records that move: copies, export files, and legacy data.

#[cfg(feature = "memory")]
mod adopt;
#[cfg(feature = "memory")]
mod archive;
#[cfg(all(feature = "memory", feature = "mongodb"))]
mod extended_json;
#[cfg(all(feature = "conformance", feature = "file", feature = "memory"))]
mod migrate;
#[cfg(all(feature = "file", feature = "memory"))]
mod previous;
