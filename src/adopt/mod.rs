//! Adoption: reads the legacy data of gcli2api-go, files and databases, as records.

#[cfg(any(feature = "file", feature = "mongodb", feature = "postgres", feature = "redis"))]
mod adoption;
#[cfg(feature = "file")]
mod directory;
#[cfg(feature = "file")]
mod document;
#[cfg(feature = "file")]
mod folder;
mod layout;

#[cfg(any(feature = "file", feature = "mongodb", feature = "postgres", feature = "redis"))]
pub use adoption::Adoption;
pub use layout::Layout;

pub use crate::model::{Remark, RemarkKind};
