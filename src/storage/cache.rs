//! Values that are computed and cached.

use std::{borrow::Borrow, sync::Arc, time::Duration};

use super::Storage;
use crate::{CacheStore, Error, ErrorKind, IntoKey, Key, Result, capability::check_cache};

/// Values that are computed and cached. See [`CacheStore`].
impl<B> Storage<B> {
    /// Reads one value, or computes it and stores it for the time `ttl`. One task of this process computes;
    /// the others that want the value wait for it.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use gateway_storage::{Memory, Result, Storage};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<()> {
    /// let storage = Storage::<Memory>::open("memory:").await?;
    /// let list_models = || async { Ok::<_, gateway_storage::Error>(b"gpt, claude".to_vec()) };
    /// let models = storage.get_or_cache("models", Duration::from_secs(300), list_models).await?;
    /// assert_eq!(models, storage.get_cache("models").await?);
    /// # Ok(()) }
    /// ```
    ///
    /// - Clones of a handle wait for each other, and so do handles to scopes of its store. Other processes
    ///   compute for themselves: where one computation in a fleet matters, take a
    ///   [lease](crate::lease::Leases).
    /// - While the store is [unavailable, busy or slow](Error::is_retryable), a value is computed and
    ///   returned as if it were missing, and is not stored.
    /// - The deadline of the handle does not bind `compute`, which has one of its own if it needs one.
    /// - If the call is dropped, `compute` is dropped with it, and one of those that wait computes instead.
    ///
    /// # Errors
    ///
    /// The error of `compute`. The tasks that waited for it then get [`Unavailable`](ErrorKind::Unavailable):
    /// they would only fail one after another. Errors of the store that do not pass by themselves, such as
    /// [`TooLarge`](ErrorKind::TooLarge), and those of the arguments, before anything is computed.
    pub fn get_or_cache<V, E, F>(
        &self,
        key: impl IntoKey,
        ttl: Duration,
        compute: impl FnOnce() -> F + Send,
    ) -> impl Future<Output = Result<Vec<u8>, E>> + Send
    where
        B: CacheStore,
        V: Into<Vec<u8>> + Send,
        E: From<Error> + Send,
        F: Future<Output = Result<V, E>> + Send,
    {
        async move {
            let key = key.into_key()?;
            let key = key.borrow();
            check_cache(&[], ttl)?;
            loop {
                if let Some(value) = self.cached(key).await? {
                    return Ok(value);
                }
                let flight = match self.flights.compute(key) {
                    Ok(flight) => flight,
                    Err(joined) => match joined.end().await {
                        Some(Some(value)) => return Ok(Arc::unwrap_or_clone(value)),
                        Some(None) => {
                            let message = "another task computed this cache value, and failed";
                            return Err(Error::new(ErrorKind::Unavailable, message).with_key(key).into());
                        }
                        None => continue,
                    },
                };
                // Another task may have stored it since it was read.
                if let Some(value) = self.cached(key).await? {
                    return Ok(value);
                }
                let computed = match compute().await {
                    Ok(value) => self.keep(key, value.into(), ttl).await.map_err(E::from),
                    Err(error) => Err(error),
                };
                return match computed {
                    Ok(value) => {
                        let value = Arc::new(value);
                        flight.end(Some(value.clone()));
                        Ok(Arc::unwrap_or_clone(value))
                    }
                    Err(error) => {
                        flight.end(None);
                        Err(error)
                    }
                };
            }
        }
    }

    /// A value, if there is one and it can be read now.
    async fn cached(&self, key: &Key) -> Result<Option<Vec<u8>>>
    where
        B: CacheStore,
    {
        match self.backend.get_cache(key).await {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.kind() == ErrorKind::NotFound || error.is_retryable() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Stores a value, if that is possible now.
    async fn keep(&self, key: &Key, value: Vec<u8>, ttl: Duration) -> Result<Vec<u8>>
    where
        B: CacheStore,
    {
        match self.backend.set_cache(key, &value, ttl).await {
            Err(error) if !error.is_retryable() => Err(error),
            Ok(()) | Err(_) => Ok(value),
        }
    }
}
