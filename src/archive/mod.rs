//! Export files.

pub use crate::codec::RecordHasher;
