//! [`transact!`](crate::transact): a transaction that is tried again when it loses.

use std::time::Duration;

use crate::{Error, ErrorKind, Outcome, Result, Storage, Transaction, Transactional};

/// How often [`transact!`](crate::transact) tries before it gives the conflict to the caller.
pub const TRANSACTION_ATTEMPTS: u32 = 10;

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Runs a transaction, and again from the start, after a pause, if another one came between, or its server was lost.
///
/// `transact!(&storage, |tx| { .. })` expands to a loop, not to a closure: the block may borrow local variables and use
/// `.await` and `?`, and the whole may be spawned. The block gives a [`Result`]; `Ok` is committed, an error rolls back.
/// [`Conflict`](crate::ErrorKind::Conflict) and [`Unavailable`](crate::ErrorKind::Unavailable) are tried again if they are
/// certain not to be applied, at most [`TRANSACTION_ATTEMPTS`] times: what the block does besides the transaction happens
/// that often. An error of beginning is the caller's.
///
/// So nothing that happens once may be in the block: no refresh of a token, above all. Several processes would all ask the
/// provider with one refresh token, and only then lose to one of them, and each may ask again in its next attempt. In one process,
/// hold a lock for the credential; in a fleet, let one process refresh.
///
/// It takes a backend with [`Transactional`](crate::Transactional): `Memory`, `MongoDb` or `Postgres`. `File`, `Redis` and `Git`
/// have no transactions.
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

/// How often a transaction may still be tried. Only [`transact!`](crate::transact) needs this.
#[doc(hidden)]
pub struct Attempts<'s, B> {
    storage: &'s Storage<B>,
    left: u32,
    pause: Duration,
}

impl<'s, B: Transactional> Attempts<'s, B> {
    pub fn new(storage: &'s Storage<B>) -> Self {
        Self { storage, left: TRANSACTION_ATTEMPTS - 1, pause: FIRST_PAUSE }
    }

    pub async fn begin(&self) -> Result<B::Transaction> {
        self.storage.begin().await
    }

    /// Commits or rolls back. `None`: it lost, and may be tried again.
    pub async fn settle<T>(&mut self, transaction: B::Transaction, result: Result<T>) -> Option<Result<T>> {
        let result = match result {
            Ok(value) => transaction.commit().await.map(|()| value),
            Err(error) => {
                // The block's own error is what the caller must see.
                drop(transaction.rollback().await);
                Err(error)
            }
        };
        match result {
            Err(error) if self.left > 0 && lost(&error) => {
                self.left -= 1;
                tokio::time::sleep(self.pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                self.pause = LONGEST_PAUSE.min(self.pause * 2);
                None
            }
            settled => Some(settled),
        }
    }
}

fn lost(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unavailable)
        && error.outcome() == Outcome::NotApplied
        && error.is_retryable()
}
