//! Records that move: copies, export files, and legacy data.

#[cfg(feature = "memory")]
mod adopt;
#[cfg(feature = "memory")]
mod archive;
#[cfg(all(feature = "conformance", feature = "file", feature = "memory"))]
mod migrate;
