//! Transactions, and what became of a commit whose reply was lost.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use mongodb::{
    bson::doc,
    error::{Result as DriverResult, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT},
};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    MongoDb, config, credential, document, error,
    pool::{Lane, Lease},
    session::{Session, Slot, take},
};
use crate::{
    ConfigValue, Credential, Error, ErrorKind, Key, Outcome, Result, Transaction, Transactional,
    backend::remote::Effect,
};

/// How long a new transaction waits for rollbacks that are under way. After it a conflict with one is possible.
const ROLLBACKS: Duration = Duration::from_millis(100);

/// A transaction of [`MongoDb`]: snapshot isolation, committed to the majority.
///
/// It holds no connection between its calls. After an error of the server, or a call that was cut off, it is over: every later
/// call and [`commit`](Transaction::commit) fail, and nothing was changed. The server ends one that takes longer than a minute
/// (`transactionLifetimeLimitSeconds`).
pub struct MongoDbTransaction {
    mongodb: MongoDb,
    /// The client that began it: its session is good for no other.
    lane: Arc<Lane>,
    /// Empty while a call is under way, after one was cut off, and when the store is closed.
    session: Arc<Slot>,
    failed: Option<Error>,
}

impl std::fmt::Debug for MongoDbTransaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MongoDbTransaction")
    }
}

impl Transactional for MongoDb {
    type Transaction = MongoDbTransaction;

    /// A standalone server has no transactions: [`Unsupported`](ErrorKind::Unsupported). The snapshot is taken by the first call.
    async fn begin(&self) -> Result<MongoDbTransaction> {
        let call = self.call()?;
        // One that was dropped holds its documents until the server has heard of it.
        drop(timeout(ROLLBACKS, self.server.lane()?.transactions.settled()).await);
        let lease = call.lease().await?;
        if !lease.writable.has_transactions() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a standalone MongoDB server has no transactions: make it a replica set, of one member if need be",
            ));
        }
        let session = Session::begin(&call, &lease).await?;
        let session = lease.transactions.slot(session);
        Ok(MongoDbTransaction { mongodb: self.clone(), lane: lease.lane.clone(), session, failed: None })
    }
}

impl MongoDbTransaction {
    fn take_session(&mut self) -> Result<Session> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        take(&self.session).ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, "a call of this transaction was cut off: it is rolled back")
        })
    }

    /// Runs a request in a task of its own. If nobody waits for it any more, the session is dropped when it ends.
    async fn run<T, F>(&mut self, request: impl FnOnce(Lease, Session) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = (Session, DriverResult<T>)> + Send + 'static,
    {
        let mongodb = self.mongodb.clone();
        let call = mongodb.call()?;
        let session = self.take_session()?;
        let result = match call.lease_of(&self.lane).await {
            // What is cut off is never committed.
            Ok(lease) => call.detached(Effect::Read, request(lease, session)).await,
            Err(error) => Err(error),
        };
        let result = match result {
            Ok((session, Ok(value))) => {
                *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
                Ok(value)
            }
            Ok((session, Err(error))) => {
                if error.contains_label(TRANSIENT_TRANSACTION_ERROR) {
                    session.end();
                }
                Err(of_statement(&error))
            }
            Err(error) => Err(error),
        };
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }
}

/// A statement of a transaction that failed: the transaction did not happen, and may be tried again if the server says so.
#[cold]
pub(super) fn of_statement(error: &mongodb::error::Error) -> Error {
    let failure = error::of_request(error, Effect::Read);
    if error.contains_label(TRANSIENT_TRANSACTION_ERROR) { failure.with_retryable(true) } else { failure }
}

/// One statement on a collection of the transaction.
macro_rules! statement {
    ($transaction:ident, |$lane:ident| $request:expr) => {
        $transaction
            .run(|$lane, mut session| async move {
                let result = $request.session(session.driver()).await;
                (session, result)
            })
            .await
    };
}

impl Transaction for MongoDbTransaction {
    async fn get_credential(&mut self, id: &Key) -> Result<Credential> {
        let query = doc! { "_id": id.as_str() };
        let found = statement!(self, |lane| lane.credentials.find_one(query))?;
        document::credential(id, &found.ok_or_else(|| credential::missing(id))?)
    }

    async fn set_credential(&mut self, id: &Key, credential: &Credential) -> Result<()> {
        let (query, body) = (doc! { "_id": id.as_str() }, document::of_credential(credential));
        statement!(self, |lane| lane.credentials.replace_one(query, body).upsert(true)).map(drop)
    }

    async fn delete_credential(&mut self, id: &Key) -> Result<()> {
        let query = doc! { "_id": id.as_str() };
        match statement!(self, |lane| lane.credentials.delete_one(query))?.deleted_count {
            0 => Err(credential::missing(id)),
            _ => Ok(()),
        }
    }

    async fn get_config(&mut self, key: &Key) -> Result<ConfigValue> {
        let query = doc! { "_id": key.as_str() };
        let found = statement!(self, |lane| lane.configs.find_one(query))?;
        document::config(key, &found.ok_or_else(|| config::missing(key))?)
    }

    async fn set_config(&mut self, key: &Key, value: &ConfigValue) -> Result<()> {
        let (query, body) = (doc! { "_id": key.as_str() }, document::of_config(value));
        statement!(self, |lane| lane.configs.replace_one(query, body).upsert(true)).map(drop)
    }

    async fn delete_config(&mut self, key: &Key) -> Result<()> {
        let query = doc! { "_id": key.as_str() };
        match statement!(self, |lane| lane.configs.delete_one(query))?.deleted_count {
            0 => Err(config::missing(key)),
            _ => Ok(()),
        }
    }

    /// A lost reply is resolved: within the deadline the commit, and nothing but the commit, is sent until it is answered. The
    /// server carries it out once.
    async fn commit(mut self) -> Result<()> {
        let mongodb = self.mongodb.clone();
        let call = mongodb.call()?;
        let session = self.take_session()?;
        let (lease, deadline) = (call.lease_of(&self.lane).await?, call.deadline());
        let committing = async move {
            let _lease = lease;
            commit(session, deadline).await
        };
        call.detached(Effect::Write, committing).await?
    }

    async fn rollback(self) -> Result<()> {
        let call = self.mongodb.call()?;
        // Dropped, it rolls back in the background, like one whose call was cut off.
        drop(take(&self.session));
        drop(timeout_at(call.deadline(), self.lane.transactions.settled()).await);
        Ok(())
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Pauses between tries, until a deadline.
pub(super) struct Pauses {
    next: Duration,
    deadline: Instant,
}

impl Pauses {
    pub(super) fn until(deadline: Instant) -> Self {
        Self { next: FIRST_PAUSE, deadline }
    }

    /// False: there is no time for another try.
    pub(super) async fn pause(&mut self) -> bool {
        let end = Instant::now() + self.next.mul_f64(0.5 + fastrand::f64() / 2.0);
        if end >= self.deadline {
            return false;
        }
        tokio::time::sleep_until(end).await;
        self.next = LONGEST_PAUSE.min(self.next * 2);
        true
    }
}

/// Commits, and asks again while nobody can tell what became of it.
pub(super) async fn commit(mut session: Session, deadline: Instant) -> Result<()> {
    let mut pauses = Pauses::until(deadline);
    let result = loop {
        let Err(error) = session.driver().commit_transaction().await else { break Ok(()) };
        if !error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT) {
            // Only this label says that it did not happen.
            let is_undone = error.contains_label(TRANSIENT_TRANSACTION_ERROR);
            break Err(if is_undone {
                of_statement(&error)
            } else {
                error::of_request(&error, Effect::Write)
            });
        }
        if !pauses.pause().await {
            break Err(error::of_request(&error, Effect::Write).with_outcome(Outcome::Unknown));
        }
    };
    session.end();
    result
}
