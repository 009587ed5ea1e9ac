//! [`ConfigStore`]: any JSON value by key.

use std::collections::BTreeMap;

use crate::{Backend, ConfigValue, Key, Result, capability};

/// Stores configuration: any JSON value by key.
#[capability]
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot store configuration",
    note = "backends that store configuration: `File`, `Git`, `Memory`, `MongoDb`, `Postgres`, `Redis`"
)]
pub trait ConfigStore: Backend {
    /// Reads one value.
    ///
    /// - It is equal to what was stored: `"123"` stays a string, 2^53+1 stays what it is.
    /// - [`NotFound`](crate::ErrorKind::NotFound) if there is none; a stored `null` is a value.
    #[operation(read)]
    fn get_config(&self, key: &Key) -> impl Future<Output = Result<ConfigValue>> + Send;

    /// Stores one value, in place of any other under this key.
    ///
    /// - `Ok` means durable, as far as the backend promises.
    #[operation(write, overwrites)]
    fn set_config(&self, key: &Key, value: &ConfigValue) -> impl Future<Output = Result<()>> + Send;

    /// Deletes one value.
    ///
    /// - [`NotFound`](crate::ErrorKind::NotFound) if there is none.
    #[operation(write)]
    fn delete_config(&self, key: &Key) -> impl Future<Output = Result<()>> + Send;

    /// Reads all values, sorted by key.
    #[operation(read)]
    fn list_configs(&self) -> impl Future<Output = Result<BTreeMap<Key, ConfigValue>>> + Send;
}
