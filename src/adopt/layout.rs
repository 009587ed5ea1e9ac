//! The layouts of legacy data.

use crate::model::named;

pub(super) const NOT_RECOGNIZED: &str = "no legacy data of gcli2api-go was recognized";
pub(super) const NAME_LAYOUT: &str = "if there is some, name its layout (`--layout` on a command line)";

named! {
    /// How gcli2api-go stored its data. See [`Adoption`](super::Adoption).
    ///
    /// A variant is named after the data; [`as_str`](Self::as_str) is the name of gcli2api-go's backend.
    Layout {
        /// The directory of its file backend.
        Directory = "file",
        /// A directory of credential files.
        Folder = "folder",
        /// The work tree of its Git backend.
        WorkTree = "git",
        /// An exported document.
        Document = "json",
        /// The collections of its MongoDB backend.
        Collections = "mongodb",
        /// The tables of its PostgreSQL backend.
        Tables = "postgres",
        /// The keys of its Redis backend.
        Keys = "redis",
    }
}

pub(super) fn names(layouts: &[Layout]) -> String {
    layouts.iter().map(|layout| format!("`{layout}`")).collect::<Vec<_>>().join(", ")
}
