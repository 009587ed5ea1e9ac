//! Input: values, export files, and the bytes of both.

pub(crate) mod archive;
pub(crate) mod bytes;
pub(crate) mod input;
