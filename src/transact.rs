//! [`transact!`](crate::transact): a transaction that is retried after a conflict.

use std::time::Duration;

use gateway_storage_macros::Setters;
use tokio::time::Instant;

use crate::{
    Error, Result, Storage, StorageTransaction, Transactional,
    layer::{Backoff, later, time_left},
    storage::may_repeat,
};

/// The number of attempts after which [`transact!`](crate::transact) returns the error to the caller, unless
/// [`TransactOptions::attempts`] is set.
pub const TRANSACTION_ATTEMPTS: u32 = 10;

/// Runs a transaction, and retries it from the start after a conflict or a lost server.
///
/// `transact!(&storage, |tx| { .. })` expands to a loop, not to a closure: the block may borrow local
/// variables and use `.await` and `?`, and the resulting future may be spawned. `tx` is a
/// `&mut` [`StorageTransaction`]. The block evaluates to a [`Result`]: `Ok` commits, an error rolls back.
/// `return` ends the block, not the function around it, and `break` and `continue` can't leave it. The block
/// can be any expression: `|tx| change(tx).await`.
///
/// ```
/// use gateway_storage::{Memory, Storage, transact};
/// # use serde_json::json;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
/// # let storage = Storage::<Memory>::open("memory:").await?;
/// # storage.set_config("quota", json!(10)).await?;
/// let left = transact!(&storage, |tx| {
///     let left = tx.get_config_as::<i64>("quota").await? - 1;
///     tx.set_config_as("quota", &left).await?;
///     Ok(left)
/// })?;
/// assert_eq!(left, 9);
/// # Ok(()) }
/// ```
///
/// # An error type of your own
///
/// The block's error is [`Error`](crate::Error), unless the result is named. Any error that is
/// `From<gateway_storage::Error>` can be:
///
/// ```
/// # use gateway_storage::{Memory, Storage, transact};
/// #[derive(Debug)]
/// enum Refused {
///     NoQuota,
///     Storage(gateway_storage::Error),
/// }
///
/// impl From<gateway_storage::Error> for Refused {
///     fn from(error: gateway_storage::Error) -> Self {
///         Self::Storage(error)
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), gateway_storage::Error> {
/// # let storage = Storage::<Memory>::open("memory:").await?;
/// let refused = transact!(&storage, |tx| -> Result<(), Refused> {
///     let left: u64 = tx.get_config_or("quota", 0).await?;
///     if left == 0 {
///         return Err(Refused::NoQuota);
///     }
///     Ok(tx.set_config_as("quota", &(left - 1)).await?)
/// });
/// assert!(matches!(refused, Err(Refused::NoQuota)));
/// # Ok(()) }
/// ```
///
/// # When the block runs again
///
/// A failure is repeated if it is a [`Conflict`](crate::ErrorKind::Conflict) or
/// [`Unavailable`](crate::ErrorKind::Unavailable), is retryable, and its outcome is
/// [`NotApplied`](crate::Outcome::NotApplied). Only failures of the transaction itself count:
///
/// - The block returns an error, and the last call on `tx` failed like that. The returned error itself does
///   not matter: after a call that succeeded, one that the block made or that came from another storage
///   ends the transaction.
/// - The commit fails like that. If the block caught the error of a call and returns `Ok`, the commit
///   decides: after a conflict `Postgres` and `MongoDb` fail every later call, and the commit.
/// - [`begin`](crate::Transactional::begin) fails like that.
///
/// There is a pause before each attempt. After the last attempt the caller gets its error. There are at most
/// [`TRANSACTION_ATTEMPTS`] attempts, and none begins after the handle's [deadline](crate::Backend::deadline).
/// [`TransactOptions`] set both limits: `transact!(&storage, options, |tx| { .. })`.
///
/// # Side effects
///
/// Whatever the block does outside the transaction is repeated with each attempt. Never refresh a token in
/// it: several processes would send the same refresh token to the provider before all but one of them fail
/// with a conflict, and each may send it again in its next attempt. Use
/// [`refresh_once`](Storage::refresh_once).
///
/// # Backends
///
/// Those with [`Transactional`](crate::Transactional): `Memory`, `MongoDb` and `Postgres`. `File`, `Redis`
/// and `Git` have no transactions.
#[macro_export]
macro_rules! transact {
    (@run $storage:expr, $options:expr, $transaction:ident, $result:ty, $body:block) => {{
        let mut attempts = $crate::Attempts::new($storage, $options);
        loop {
            let mut transaction = match attempts.begin().await {
                Ok(transaction) => transaction,
                Err(error) => break Err(error.into()),
            };
            let result: $result = async {
                let $transaction = &mut transaction;
                $body
            }
            .await;
            match attempts.settle(transaction, result).await {
                Some(settled) => break settled,
                None => continue,
            }
        }
    }};
    ($storage:expr, |$($rest:tt)*) => {
        $crate::transact!($storage, $crate::TransactOptions::default(), |$($rest)*)
    };
    ($storage:expr, $options:expr, |$transaction:ident| -> $result:ty $body:block $(,)?) => {
        $crate::transact!(@run $storage, $options, $transaction, $result, $body)
    };
    ($storage:expr, $options:expr, |$transaction:ident| $body:block $(,)?) => {
        $crate::transact!(@run $storage, $options, $transaction, $crate::Result<_>, $body)
    };
    ($storage:expr, $options:expr, |$transaction:ident| $body:expr $(,)?) => {
        $crate::transact!(@run $storage, $options, $transaction, $crate::Result<_>, { $body })
    };
}

/// The limits of [`transact!`](crate::transact). Neither ends an attempt that has begun: the handle's
/// [deadline](crate::Backend::deadline) bounds each of its calls.
///
/// ```
/// # use std::time::Duration;
/// # use gateway_storage::{Memory, Storage, TransactOptions, transact};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
/// # let storage = Storage::<Memory>::open("memory:").await?;
/// let patient = TransactOptions::default().with_attempts(100).with_time(Duration::from_secs(60));
/// transact!(&storage, patient, |tx| tx.set_config_as("retries", &3).await)?;
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Setters)]
#[non_exhaustive]
pub struct TransactOptions {
    /// The most attempts: [`TRANSACTION_ATTEMPTS`] unless set. One is made even if this is 0.
    pub attempts: u32,
    /// How long after the start an attempt may begin. `None`: until the handle's
    /// [deadline](crate::Backend::deadline), as in [`Storage::update_credential`].
    pub time: Option<Duration>,
}

impl Default for TransactOptions {
    fn default() -> Self {
        Self { attempts: TRANSACTION_ATTEMPTS, time: None }
    }
}

/// The attempts that are left. For the expansion of [`transact!`](crate::transact) only.
#[doc(hidden)]
pub struct Attempts<'s, B> {
    storage: &'s Storage<B>,
    left: u32,
    backoff: Backoff,
}

impl<'s, B: Transactional> Attempts<'s, B> {
    pub fn new(storage: &'s Storage<B>, options: TransactOptions) -> Self {
        let time = options.time.unwrap_or_else(|| time_left(storage.backend().deadline()));
        Self {
            storage,
            left: options.attempts.saturating_sub(1),
            backoff: Backoff::until(later(Instant::now(), time)),
        }
    }

    pub async fn begin(&mut self) -> Result<StorageTransaction<B::Transaction>> {
        loop {
            match self.storage.begin().await {
                Err(error) if may_repeat(&error) => {
                    if !self.pause().await {
                        return Err(error);
                    }
                }
                begun => return begun,
            }
        }
    }

    /// Commits or rolls back. `None`: the transaction must be retried.
    pub async fn settle<T, E: From<Error>>(
        &mut self,
        transaction: StorageTransaction<B::Transaction>,
        result: Result<T, E>,
    ) -> Option<Result<T, E>> {
        let (may_repeat, result) = match result {
            Ok(value) => match transaction.commit().await {
                Ok(()) => (false, Ok(value)),
                Err(error) => (may_repeat(&error), Err(error.into())),
            },
            Err(error) => {
                let may_repeat = transaction.may_repeat();
                // The caller must get the block's error, not one of the rollback.
                drop(transaction.rollback().await);
                (may_repeat, Err(error))
            }
        };
        if may_repeat && self.pause().await { None } else { Some(result) }
    }

    /// Returns false, without a pause, if there is no other attempt.
    async fn pause(&mut self) -> bool {
        let Some(left) = self.left.checked_sub(1) else { return false };
        self.left = left;
        self.backoff.pause().await
    }
}
