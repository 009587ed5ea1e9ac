//! [`ConfigStore`]: any JSON value by key.

use std::collections::BTreeMap;

use futures_core::Stream;

use super::{
    batch::{Deadline, READ, WRITE},
    stream,
};
use crate::{Backend, BatchReport, ConfigValue, Found, Key, Result, capability, model::ListOptions};

/// Stores configuration: any JSON value by key.
///
/// The default body of each batch calls the operation for one value, once for each key and one after another.
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

    /// Reads many values.
    ///
    /// - Returns the values that exist, sorted by key, and a failure for each other key.
    /// - A key that is passed twice is returned once; if it is missing, each mention is a failure.
    #[operation(read, batch = keys)]
    fn get_configs(&self, keys: &[Key]) -> impl Future<Output = Result<Found<ConfigValue>>> + Send {
        async move {
            let deadline = Deadline::of(self);
            deadline.read_each(keys, |key| deadline.run(READ, self.get_config(key))).await
        }
    }

    /// Stores many values.
    ///
    /// - A failed item does not stop the others; the report lists each failure.
    /// - Of several items with one key the last one is stored, and all of them count as succeeded.
    /// - All-or-nothing only where the backend says so (`File`, `Git`, `Memory`). Elsewhere use a
    ///   [plan](crate::ConfigBatch).
    #[operation(write, overwrites, batch = values)]
    fn set_configs(&self, values: &[(Key, ConfigValue)]) -> impl Future<Output = Result<BatchReport>> + Send {
        async move {
            let deadline = Deadline::of(self);
            deadline.set_each(values, |key, value| deadline.run(WRITE, self.set_config(key, value))).await
        }
    }

    /// Reads all values, sorted by key. [`stream_configs`](ConfigStore::stream_configs) has them one by one.
    #[operation(read)]
    fn list_configs(&self) -> impl Future<Output = Result<BTreeMap<Key, ConfigValue>>> + Send;

    /// Streams values, sorted by key: those that the [options](ListOptions) name. The default body lists all
    /// values.
    ///
    /// - The stream ends after the first error.
    /// - It is read page by page, and is no snapshot: a value that is there all the time is returned once.
    ///   One that is stored or deleted meanwhile may be returned or not.
    #[operation(read)]
    fn stream_configs(&self, options: ListOptions) -> impl Stream<Item = Result<(Key, ConfigValue)>> + Send {
        stream::of_map(options, self.list_configs())
    }
}
