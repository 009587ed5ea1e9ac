//! [`transact!`](crate::transact): a transaction that is retried after a conflict.

use std::time::Duration;

use crate::{Error, ErrorKind, Outcome, Result, Storage, Transaction, Transactional};

/// The number of attempts after which [`transact!`](crate::transact) returns the conflict to the caller.
pub const TRANSACTION_ATTEMPTS: u32 = 10;

const MIN_PAUSE: Duration = Duration::from_millis(1);
const MAX_PAUSE: Duration = Duration::from_millis(100);

/// Runs a transaction, and retries it from the start after a conflict or a lost server.
///
/// `transact!(&storage, |tx| { .. })` expands to a loop, not to a closure: the block may borrow local
/// variables and use `.await` and `?`, and the resulting future may be spawned. The block evaluates to a
/// [`Result`]: `Ok` commits, an error rolls back. After a [`Conflict`](crate::ErrorKind::Conflict) or
/// [`Unavailable`](crate::ErrorKind::Unavailable) the block runs again, after a pause, if the error is
/// retryable and its outcome is [`NotApplied`](crate::Outcome::NotApplied). There are at most
/// [`TRANSACTION_ATTEMPTS`] attempts. An error of [`begin`](crate::Transactional::begin) is returned at once.
///
/// # Side effects
///
/// Whatever the block does outside the transaction is repeated with each attempt. Never refresh a token in
/// it: several processes would send the same refresh token to the provider before all but one of them fail
/// with a conflict, and each may send it again in its next attempt. Within one process, hold a lock per
/// credential; in a fleet, let one process refresh.
///
/// # Backends
///
/// Those with [`Transactional`](crate::Transactional): `Memory`, `MongoDb` and `Postgres`. `File`, `Redis`
/// and `Git` have no transactions.
///
/// ```
/// use gateway_storage::{Memory, Storage, Transaction, transact};
/// # use gateway_storage::Key;
/// # use serde_json::json;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
/// # let storage = Storage::<Memory>::open("memory:").await?;
/// # storage.set_config("quota", json!(10)).await?;
/// let quota = Key::new("quota")?;
/// let left = transact!(&storage, |tx| {
///     let left = tx.get_config(&quota).await?.as_i64().unwrap_or(0) - 1;
///     tx.set_config(&quota, &json!(left).try_into()?).await?;
///     Ok(left)
/// })?;
/// assert_eq!(left, 9);
/// # Ok(()) }
/// ```
#[macro_export]
macro_rules! transact {
    ($storage:expr, |$transaction:ident| $body:block) => {{
        let mut attempts = $crate::Attempts::new($storage);
        loop {
            let mut transaction = match attempts.begin().await {
                Ok(transaction) => transaction,
                Err(error) => break Err(error),
            };
            let result = async {
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
}

/// The attempts that are left. For the expansion of [`transact!`](crate::transact) only.
#[doc(hidden)]
pub struct Attempts<'s, B> {
    storage: &'s Storage<B>,
    left: u32,
    pause: Duration,
}

impl<'s, B: Transactional> Attempts<'s, B> {
    pub fn new(storage: &'s Storage<B>) -> Self {
        Self { storage, left: TRANSACTION_ATTEMPTS - 1, pause: MIN_PAUSE }
    }

    pub async fn begin(&self) -> Result<B::Transaction> {
        self.storage.begin().await
    }

    /// Commits or rolls back. `None`: the transaction must be retried.
    pub async fn settle<T>(&mut self, transaction: B::Transaction, result: Result<T>) -> Option<Result<T>> {
        let result = match result {
            Ok(value) => transaction.commit().await.map(|()| value),
            Err(error) => {
                // The caller must get the block's error, not one of the rollback.
                drop(transaction.rollback().await);
                Err(error)
            }
        };
        match result {
            Err(error) if self.left > 0 && may_retry(&error) => {
                self.left -= 1;
                tokio::time::sleep(self.pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                self.pause = MAX_PAUSE.min(self.pause * 2);
                None
            }
            settled => Some(settled),
        }
    }
}

fn may_retry(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unavailable)
        && error.outcome() == Outcome::NotApplied
        && error.is_retryable()
}
