//! [`ConfigStore`]: any JSON value by key.

use std::collections::BTreeMap;

use crate::{Backend, ConfigValue, Key, Result, capability};

/// Stores configuration: any JSON value by key.
#[capability(wrapper = ConfigStoreWrapper)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot store configuration",
    note = "backends that store configuration: `File`, `Git`, `Memory`, `MongoDb`, `Postgres`, `Redis`"
)]
pub trait ConfigStore: Backend {
    /// Reads one value.
    ///
    /// - It equals the value that was stored: `"123"` stays a string, and 2^53+1 is not rounded.
    /// - [`NotFound`](crate::ErrorKind::NotFound) if there is none; a stored `null` is a value.
    #[operation(read)]
    fn get_config(&self, key: &Key) -> impl Future<Output = Result<ConfigValue>> + Send;

    /// Stores one value, and replaces any value under this key.
    ///
    /// - After `Ok` it is as durable as the backend's page promises.
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
