//! [`Count`]: counts calls per operation.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures_core::Stream;

use crate::{
    Result,
    layer::{Call, Layer, Operation, Receiver},
};

/// Counts calls per operation, for tests that ask "was it one call, or one per key?".
///
/// ```
/// # use gateway_storage::{layer::Count, Memory, Storage};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
/// let count = Count::default();
/// let storage = Storage::<Memory>::open("memory:").await?.layer(count.clone());
/// storage.set_config("retries", serde_json::json!(3)).await?;
/// assert_eq!(count.of("set_config"), 1);
/// # Ok(()) }
/// ```
///
/// Clones share their counts. A call is counted when it starts, whether it succeeds or fails.
#[derive(Clone, Debug, Default)]
pub struct Count(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl Count {
    /// The number of calls of this operation.
    #[must_use]
    pub fn of(&self, operation: &str) -> u64 {
        self.all().get(operation).copied().unwrap_or(0)
    }

    /// The number of calls of each operation that was called.
    #[must_use]
    pub fn all(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add(&self, operation: Operation) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(operation.name).or_default() += 1;
    }
}

impl Layer for Count {
    async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> Result<C::Output> {
        self.add(C::OPERATION);
        call.run(on).await
    }

    fn around_stream<T: Send, S: Stream<Item = Result<T>> + Send>(
        &self,
        operation: Operation,
        items: S,
    ) -> impl Stream<Item = Result<T>> + Send {
        self.add(operation);
        items
    }
}
