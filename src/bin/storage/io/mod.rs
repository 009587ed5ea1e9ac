//! Reads values and export files, with the async readers and writers for their bytes.

pub(crate) mod archive;
pub(crate) mod bytes;
pub(crate) mod input;
