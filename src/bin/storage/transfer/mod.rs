//! Moving records into a store and comparing stores, for `copy`, `import`, `adopt` and `verify`.

mod checkpoint;
pub(crate) mod comparison;
pub(crate) mod copy;
mod empty_store;
pub(crate) mod filter;
pub(crate) mod source;
